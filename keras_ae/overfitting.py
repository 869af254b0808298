"""Says at the end of a run that a model overfits."""

from keras_ae.evaluation.evidence import reconstruction_term

COMPARED = 200  # training and test images whose errors are compared at the end of a run
# Smallest ratio of the test error to the training error, and to the test error of an earlier epoch.
GAP, RISE = 1.25, 1.02


def error_of(model, images):
    """The mean reconstruction term of the images of an `ImageData`, in evaluation mode and without noise."""
    rebuilt = model.reconstruct(model.inputs_of(images))
    return float(reconstruction_term(model, images.images, rebuilt).mean())


def parted(history, settings, measured=None):
    """A warning if the model overfits: if test images are reconstructed worse than training images. Else None.

    That is so if the error of test images is more than `GAP` times that of training images, or more than
    `RISE` times its lowest value so far while the error of training images has fallen since then.

    `measured`: the errors of training and test images at the end, if not those of the last epoch.
    """
    rows = [row for row in history if {"reconstruction", "val_reconstruction"} <= row.keys()]
    if not rows or rows[-1]["reconstruction"] <= 0:
        return None
    best, last = min(rows, key=lambda row: row["val_reconstruction"]), rows[-1]
    train, test = last["reconstruction"], last["val_reconstruction"]
    rises = test > RISE * best["val_reconstruction"] and train < best["reconstruction"]
    if measured is not None:
        train, test = measured
    if train <= 0 or test <= train or (test < GAP * train and not rises):
        return None
    lowest = f", and was {best['val_reconstruction']:.4g} in epoch {best['epoch']}" if rises else ""
    early = "--early-stopping 5"
    if settings.warmup_epochs >= settings.epochs:
        early += " --kl-warmup 0.5"
    return (
        f"test images are rebuilt worse than training images: their {settings.reconstruction} is {test:.4g} an "
        f"image, {test / train - 1:.0%} above {train:.4g}{lowest}; more images help, or --augment flip,shift "
        f"where that leaves them what they are, or {early}"
    )

"""kae evaluate: the figures of a model."""

import contextlib
import sys

import click

from kae import console, options
from keras_ae.errors import need

# Figure: (its title, its unit). Figures are printed in the order in which they are measured.
TABLE = {
    "reconstruction_l1": ("L1 of reconstructions", "mean per pixel of [0, 1]"),
    "reconstruction_mse": ("MSE of reconstructions", "mean per pixel of [0, 1]"),
    "psnr": ("PSNR of reconstructions", "dB, mean over images"),
    "ssim": ("SSIM of reconstructions", "of 1, mean over images"),
    "kl": ("KL from N(0, I)", "nats per image"),
    "elbo": ("ELBO", "nats per image, likelihood {likelihood}"),
    "bits_per_dimension": ("bits per dimension, at most", "bits per value"),
    "mutual_information": ("mutual information of image and code", "nats"),
    "mutual_information_limit": ("… at most, from so many images", "nats"),
    "active_units": ("active latents", "of {latent_dim}"),
    "kl_per_latent": ("KL of each latent", "nats"),
    "log_likelihood": (
        "log-likelihood, importance-weighted",
        "nats per image, likelihood {likelihood}, k = {importance_samples}",
    ),
}
SETS = {"": "samples", "_reconstructions": "reconstructions", "_test_images": "test images"}
LISTED = 16  # a figure with more items is printed as a range; --json has all items
DISTANCES = {"fid": "FID", "kid": "KID", "swd": "sliced Wasserstein"}
for by, words in (
    ("patch_", "by patches"),
    ("onnx_", "by ONNX features"),
    ("", "by the classifier"),
):
    for name, title in DISTANCES.items():
        for of, what in SETS.items():
            TABLE[f"{by}{name}{of}"] = (f"{title} of {what}", f"from training images, {words}")
            if (by, name) == ("patch_", "swd"):
                TABLE[f"patch_swd_per_scale{of}"] = ("… of each scale", "fine to coarse")
TABLE |= {
    "conditional_accuracy": ("samples recognised as asked", "share"),
    "conditional_accuracy_per_class": ("… of each class", "share"),
    "confident": ("samples recognised as any class", "share, at confidence 0.9 or more"),
    "precision": ("precision of samples", "share near a test image"),
    "recall": ("recall of samples", "share of test images near one"),
    "density": ("density of samples", "about 1 for real images"),
    "coverage": ("coverage of samples", "share of test images that have one near"),
}


@click.command("evaluate")
@options.model_argument
@options.dataset_option
@options.data_dir_option
@click.option("--limit", type=options.Count(1), help="Use the first so many test images only.")
@click.option(
    "--samples",
    type=options.Count(0),
    default=10_000,
    show_default=True,
    help="Images to draw and judge.",
)
@click.option(
    "--iw",
    type=options.Count(0),
    default=0,
    show_default=True,
    help="Importance samples per image for the log-likelihood; 0 leaves it out.",
)
@click.option(
    "--no-classifier", is_flag=True, help="Only the figures that need no classifier; takes seconds."
)
@click.option(
    "--classifier-minutes",
    type=options.Number(0, min_open=True),
    default=10,
    show_default=True,
    help="Do not train a classifier that would take longer.",
)
@click.option(
    "--second-classifier",
    is_flag=True,
    help="Judge by a second classifier with another seed, to see how much figures depend on it.",
)
@click.option(
    "--features",
    type=options.AnyPath(),
    help="An ONNX file with a network, such as Inception or DINOv2, whose features compare images as well.",
)
@options.seed_option
@options.json_option
def command(
    model, dataset, data_dir, limit, samples, iw, no_classifier, classifier_minutes,
    second_classifier, features, seed, as_json,
):  # fmt: skip
    """Measure MODEL on the test images of a dataset, and measure its samples.

    MODEL is a name (ae, vae, cvae), a run folder or a .keras file. Figures that need no classifier are
    printed first, as soon as they are known. Then a classifier of the dataset judges the samples; if
    there is none yet, it is trained first and kept. Brackets hold 95 % intervals over draws of the images.
    """
    if no_classifier and second_classifier:
        raise click.UsageError("--no-classifier and --second-classifier: give one of them.")
    if no_classifier and options.given("classifier_minutes"):
        raise click.UsageError("--no-classifier trains none: leave --classifier-minutes out.")
    need("kae evaluate", "sklearn")
    network, checkpoint = console.load(model)

    from keras_ae.evaluation import evaluate

    train, test = console.load_splits(network, checkpoint, dataset, data_dir)
    known, stdout = {}, sys.stdout

    def found(figures):
        known.update(figures)
        with contextlib.redirect_stdout(stdout):
            for line in [] if as_json else table(figures, known):
                console.echo(line)

    figures = console.stdout_to_stderr(evaluate)(
        network,
        train,
        test,
        samples=samples,
        importance_samples=iw,
        seed=seed,
        limit=limit,
        binarize=checkpoint.settings.get("binarize", False),
        classifier=False if no_classifier else None,
        progress=console.say,
        found=found,
        second_classifier=second_classifier,
        classifier_minutes=classifier_minutes,
        features=features,
    )
    if as_json:
        console.print_json({"path": str(checkpoint.path)} | figures)


def table(figures, known):
    """Yields the lines of a group of figures, one per figure, with its unit; then why figures are missing.

    Args:
        figures: the group, as `evaluate` passes it to `found`.
        known: all figures so far.
    """
    if "n" in figures:
        yield (
            f"{figures['model']} on {figures['n']:,} images of {figures['dataset']} {figures['split']}"
            f"{', binarized' if figures['binarized'] else ''}; {figures['samples']:,} samples"
            f"{' from ' + figures['prior'] if figures['prior'] else ''}"
        )
    if figures.get("classifier"):
        yield (
            "These depend on our own classifier, which is right on "
            f"{figures['classifier_accuracy']:.2%} of the test images; they compare under one classifier:"
        )
    second = figures.get("second_classifier") or {}
    if second:
        yield (
            "The same by a second classifier, of another seed, right on "
            f"{second['classifier_accuracy']:.2%} of the test images:"
        )
    for name, (title, unit) in TABLE.items():
        value = (second or figures).get(name)
        if value is None:
            continue
        interval = (second or figures).get(f"{name}_interval")
        reach = "" if interval is None else f"  [{', '.join(map(number, interval))}]"
        yield f"{title:40} {number(value):>10}  {unit.format_map(known)}{reach}"
    for name, distances in (figures.get("nearest_training_image") or {}).items():
        title = f"from {name.replace('_', ' ')} to a training image"
        unit = f"Euclidean, median of {distances['n']:,}; closest {number(distances['closest'])}"
        yield f"{title:40} {number(distances['median']):>10}  {unit}"
    for name, reason in (figures.get("reasons") or {}).items():
        yield f"no {name.replace('_', ' ')}: {reason}"


def number(value):
    """A figure with four digits after the point, three for each item of a list; of a long list, its range."""
    if isinstance(value, list):
        known = sorted(v for v in value if v is not None)
        if len(value) > LISTED and known:
            return f"{known[0]:.3f} to {known[-1]:.3f}, median {known[len(known) // 2]:.3f}"
        return " ".join("-" if v is None else f"{v:.3f}" for v in value)
    return str(value) if isinstance(value, int) else f"{value:.4f}"

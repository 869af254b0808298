"""Computes all figures of a model in groups. Groups that need no classifier come first."""

import dataclasses
import math
import time

import numpy as np

from keras_ae.classifier import MINUTES, evaluation_classifier
from keras_ae.data.arrays import StoredImages, select, splits_of_arrays
from keras_ae.errors import LEAST, UserError
from keras_ae.evaluation.arrays import BATCH, images_and_labels
from keras_ae.evaluation.distances import (
    NEIGHBOURS,
    Reference,
    conditional_accuracy,
    manifold_overlap,
    nearest_training_images,
)
from keras_ae.evaluation.evidence import (
    active_units,
    binary,
    bits_per_dimension,
    elbo,
    importance_weighted_log_likelihood,
    kl_per_latent,
    mutual_information,
    why_no_likelihood,
)
from keras_ae.evaluation.features import OnnxFeatures, laplacian_patches, normalised
from keras_ae.evaluation.intervals import mean_with_interval
from keras_ae.evaluation.reconstructions import errors_per_image, missing_for_ssim, psnr, ssim
from keras_ae.feed import binarized
from keras_ae.inference import check_count, check_memory, in_memory
from keras_ae.inputs import check_range

CONFIDENT = 0.9  # a sample is recognisable if its most probable class has this probability
PAIRS = 1_000  # most images for which the nearest training image is searched
REFERENCE = 200_000  # most training images for the distances with a classifier
MANIFOLD = 10_000  # most images whose features or posteriors are compared in all pairs
PATCHED = 2_000  # most images of each set that patches are cut from
MEASURED = 2_000  # most test images for the final figures of a run

DISTANCES = ("fid", "kid", "swd")
OF_LIKELIHOOD = ("likelihood", "elbo", "bits_per_dimension", "bits_per_dimension_interval")
SETS = ("", "_reconstructions", "_test_images")  # samples have no suffix
BY_CLASSIFIER = (
    "confident", "conditional_accuracy", "conditional_accuracy_per_class",
    *(name + of + more for name in DISTANCES for of in SETS for more in ("", "_interval")),
    "precision", "recall", "density", "coverage",
)  # fmt: skip


def evaluate(
    model,
    train,
    test,
    samples=10_000,
    importance_samples=0,
    seed=0,
    limit=None,
    binarize=False,
    classifier=None,
    progress=None,
    found=None,
    second_classifier=False,
    classifier_minutes=MINUTES,
    features=None,
):
    """Computes all figures of a model on a dataset.

    Figures of reconstructions, evidence and codes use the test images. Samples are drawn from the
    model's own prior, for a CVAE with labels that are as frequent as in the training set. They are
    compared with the training images (the first 200,000 with a classifier, the first 2,000 with
    patches) and with the test images (precision and the like). If not all test images fit into
    memory, only the first ones that fit are used. Figures that need no classifier come first.

    Args:
        model: AE, VAE or CVAE.
        train, test: whole `keras_ae.data.ImageData`; or images, or pairs (images, labels), as
            `keras_ae.fit` takes them.
        samples: number of samples to draw.
        importance_samples: k of the importance-weighted log-likelihood; 0 leaves it out.
        seed: seed of everything random.
        limit: use only this many test images, the first ones.
        binarize: draw each pixel of the test images as 0 or 1, with its grey value as the
            probability, before they are reconstructed. For a model that was trained like that.
        classifier: a `Classifier` to use; None for the dataset's own, False for none.
        progress: called with one line of text when there is something to report.
        found: called with each group of figures, a dict, as soon as it is known.
        second_classifier: also use a second classifier, with another seed. This shows how much the
            figures depend on the classifier.
        classifier_minutes: a classifier whose training would take longer is not trained.
        features: path of an ONNX file. Its features are also used to compare images; see
            `evaluation.features.OnnxFeatures`.

    Returns:
        A dict of numbers, strings, lists and dicts. `NAME_interval` is the 95 % interval of NAME over
        images. If a figure does not exist for this model or dataset, it is None, and `reasons` says
        why. `by_classifier` lists the figures that depend on the classifier.

    Raises:
        UserError: the model does not fit the dataset, or the ONNX file is not valid.
        ValueError: images are on another scale, or a number of images or samples is no count.
    """
    if limit is not None:
        check_count("limit", limit, 1)
    check_count("samples", samples, 0)
    check_count("importance_samples", importance_samples, 0)
    progress, found = progress or (lambda line: None), found or (lambda figures: None)
    started = time.perf_counter()
    train, test = splits_of_arrays(train, test, "arrays")
    for split, what in ((train, "Training images"), (test, "Test images")):
        model.check_data(split)
        check_range(split.images, what)
    network = None if features is None else OnnxFeatures(features, model.image_shape)
    if network is not None:
        progress(network.describe())
    reasons, figures = {}, {}
    if why := missing_for_ssim(model.image_shape):
        reasons["ssim"] = why
        progress(f"no SSIM: {why}")
    limit = _within_memory(test.images, limit, progress)
    images = test.images[:limit]
    labels = None if test.labels is None else test.labels[:limit]
    has_prior = hasattr(model, "sample")

    def tell(**new):
        figures.update(new)
        found(new)

    tell(
        model=type(model).__name__,
        dataset=train.name,
        version=train.version,
        split=test.split,
        n=len(images),
        binarized=bool(binarize),
        latent_dim=model.latent_dim,
        seed=seed,
        samples=samples if has_prior else 0,
        prior=model.prior.describe() if has_prior and samples else None,
    )
    progress(f"reconstructing {len(images):,} images of {train.name} {test.split} …")
    measured = binarized(images, seed) if binarize else images
    inputs = model.inputs_of(dataclasses.replace(test, images=measured, labels=labels))
    originals = images_and_labels(model, inputs)[0]
    reconstructions = model.reconstruct(inputs, batch_size=BATCH)
    tell(**of_reconstructions(originals, reconstructions, seed))
    values = None if "ssim" in reasons else ssim(originals, reconstructions)
    tell(**_with_interval("ssim", values, seed))
    tell(**of_posterior(model, inputs, seed, reasons))
    tell(**_log_likelihood(model, inputs, importance_samples, seed, reasons, progress))

    drawn = drawn_labels = None
    if not has_prior:
        reasons["samples"] = f"{type(model).__name__} has no prior to draw samples from"
    elif samples:
        check_memory(4 * samples * math.prod(model.image_shape), f"{samples:,} samples")
        progress(f"drawing {samples:,} samples …")
        if model.num_classes:
            drawn_labels = np.random.default_rng(seed).choice(train.labels, samples)
        drawn = model.sample(samples, drawn_labels, seed=seed, batch_size=BATCH)
    else:
        reasons["samples"] = "no samples were asked for"
    sets = {"": drawn, "_reconstructions": reconstructions, "_test_images": images}
    progress("comparing patches of images …")
    tell(**_by_patches(sets, train.images, seed, reasons))
    figures["nearest_training_image"] = None
    if drawn is not None:
        progress("looking for the nearest training images …")
        nearest = {
            "samples": _distances(drawn[:PAIRS], train.images),
            "test_images": _distances(images[:PAIRS], train.images),
        }
        tell(nearest_training_image=nearest)
    if network is not None:
        progress("comparing images by the features of the ONNX file …")
        described = {"onnx": network.describe()}
        tell(**described, **_by_network(network, sets, train.images, seed, reasons))

    def judge(classifier_seed):
        try:
            return evaluation_classifier(train, test, progress, classifier_seed, classifier_minutes)
        except UserError as error:
            reasons["second_classifier" if classifier_seed else "classifier"] = str(error)

    def judged(by):
        if by:
            progress("comparing images by the classifier's features …")
        return _judged(by, train.images, sets, drawn_labels, seed, reasons)

    if classifier is False:
        reasons["classifier"] = "none was asked for"
    elif classifier is None:
        classifier = judge(0)
    tell(**judged(classifier), by_classifier=list(BY_CLASSIFIER))
    second = judge(1) if second_classifier and classifier else None
    tell(second_classifier=judged(second) if second else None)
    tell(seconds=round(time.perf_counter() - started, 1), reasons=reasons)
    return figures


def final_figures(model, test, seed=0, binarize=False):
    """The figures that a run reports at its end, on the first 2,000 test images. They suit every loss.

    Args:
        test: `keras_ae.data.ImageData`.
        seed, binarize: as for `evaluate`.

    Returns:
        A dict: "measured", the number of images; "psnr"; and, for a model with a posterior, "elbo",
        "likelihood" and "bits_per_dimension", which are None if the loss is not a likelihood.
    """
    test = test.first(in_memory(test.images.shape[1:], MEASURED))
    if binarize:
        test = dataclasses.replace(test, images=binarized(test.images, seed))
    inputs = model.inputs_of(test)
    errors = of_reconstructions(test.images, model.reconstruct(inputs, batch_size=BATCH), seed)
    figures = {"measured": len(test.images), "psnr": errors["psnr"]}
    if hasattr(model, "posterior"):
        evidence = of_likelihood(model, inputs, seed, {})
        figures |= {k: evidence[k] for k in ("elbo", "likelihood", "bits_per_dimension")}
    return figures


# The groups


def of_reconstructions(images, reconstructions, seed=0):
    """L1 and MSE of pixels in [0, 1], and PSNR in dB as the mean over images, with its interval."""
    absolute, squared = errors_per_image(images, reconstructions)
    return {
        "reconstruction_l1": float(absolute.mean()),
        "reconstruction_mse": float(squared.mean()),
        **_with_interval("psnr", psnr(squared), seed),
    }


def of_posterior(model, inputs, seed, reasons):
    """The figures that need a posterior; they are None for a model without one."""
    names = (
        "likelihood_scale kl kl_per_latent active_units mutual_information mutual_information_limit"
    )
    figures = dict.fromkeys([*OF_LIKELIHOOD, *names.split()])
    if not hasattr(model, "posterior"):
        reasons["kl"] = reasons["elbo"] = f"{type(model).__name__} has no posterior"
        return figures
    mean, log_var = model.posterior(inputs, batch_size=BATCH)
    kl = kl_per_latent(mean, log_var)
    figures["likelihood_scale"] = model.scale_of_likelihood()
    figures["kl"], figures["kl_per_latent"] = float(kl.sum()), kl.tolist()
    figures["active_units"] = active_units(mean)
    figures["mutual_information"] = mutual_information(mean[:MANIFOLD], log_var[:MANIFOLD], seed)
    figures["mutual_information_limit"] = float(np.log(len(mean[:MANIFOLD])))
    return figures | of_likelihood(model, inputs, seed, reasons)


def of_likelihood(model, inputs, seed, reasons):
    """The figures that need a likelihood; they are None if the loss is not a likelihood."""
    figures = dict.fromkeys(OF_LIKELIHOOD)
    if why := why_no_likelihood(model):
        reasons["elbo"] = why
        return figures
    values, figures["likelihood"] = elbo(model, inputs, seed)
    figures["elbo"] = float(values.mean())
    images = images_and_labels(model, inputs)[0]
    density = figures["likelihood"] != "bernoulli"
    if not density and not binary(images):
        reasons["bits_per_dimension"] = "bernoulli is a likelihood of black and white, not of greys"
        return figures
    bits = bits_per_dimension(values, images[0].size, density)
    return figures | _with_interval("bits_per_dimension", bits, seed)


def _log_likelihood(model, inputs, importance_samples, seed, reasons, progress):
    figures = dict.fromkeys(("log_likelihood", "importance_samples"))
    if not hasattr(model, "posterior") or why_no_likelihood(model):
        return figures
    if not importance_samples:
        reasons["log_likelihood"] = "no importance samples were asked for"
        return figures
    progress(f"estimating log-likelihoods from {importance_samples:,} samples an image …")
    values = importance_weighted_log_likelihood(
        model, inputs, importance_samples, seed, progress=progress
    )
    return {"log_likelihood": float(values.mean()), "importance_samples": importance_samples}


def _by_patches(sets, train_images, seed, reasons):
    """Distances of patches from patches of training images: means over scales, and the SWD of each scale.

    An interval is the mean of the intervals of the scales, as if all scales varied together. That is
    the widest case.
    """
    figures = _no_distances("patch_") | {f"patch_swd_per_scale{of}": None for of in SETS}
    few = min(len(images) for images in sets.values() if images is not None)
    if min(few, len(train_images)) < 2:
        reasons["patch_swd"] = "fewer than 2 images or samples"
        return figures
    channels = train_images.shape[-1]
    reference = laplacian_patches(select(train_images, slice(PATCHED)), seed=seed)
    normal = normalised(reference, reference, channels)
    of_levels = [Reference(level, seed) for level in normal]
    for of, images in sets.items():
        if images is None:
            continue
        levels = normalised(laplacian_patches(images[:PATCHED], seed=seed + 1), reference, channels)
        found = [other.distances(level) for level, other in zip(levels, of_levels)]
        for name in DISTANCES:
            figures[f"patch_{name}{of}"] = float(np.mean([x[name] for x in found]))
            intervals = [x[f"{name}_interval"] for x in found]
            if None not in intervals:
                figures[f"patch_{name}{of}_interval"] = np.mean(intervals, axis=0).tolist()
        figures[f"patch_swd_per_scale{of}"] = [x["swd"] for x in found]
    return figures


def _by_network(network, sets, train_images, seed, reasons):
    """Distances by the features of an ONNX file. As many training images are used as the largest other
    set has."""
    figures = _no_distances("onnx_")
    counts = [len(images) for images in sets.values() if images is not None]
    if min(*counts, len(train_images)) <= NEIGHBOURS:
        reasons["onnx_fid"] = f"fewer than {NEIGHBOURS + 1} images or samples"
        return figures
    reference = Reference(network(select(train_images, slice(max(counts)))), seed)
    for of, images in sets.items():
        if images is not None:
            figures |= _named("onnx_", of, reference.distances(network(images)))
    return figures


def _judged(classifier, train_images, sets, labels, seed, reasons):
    """The figures that need a classifier; None without one, or if their images or labels are missing."""
    figures = dict.fromkeys(("classifier", "classifier_accuracy", *BY_CLASSIFIER))
    if not classifier:
        return figures
    drawn, images = sets[""], sets["_test_images"]
    figures["classifier"] = classifier.origin
    figures["classifier_accuracy"] = classifier.accuracy
    features = {}
    if drawn is not None:
        features[""], probabilities = classifier(drawn)
        figures["confident"] = float((probabilities.max(-1) >= CONFIDENT).mean())
        if labels is not None:
            accuracy, per_class = conditional_accuracy(probabilities, labels)
            figures["conditional_accuracy"] = accuracy
            figures["conditional_accuracy_per_class"] = per_class
    if min(len(images), len(train_images), len(images if drawn is None else drawn)) <= NEIGHBOURS:
        reasons["fid"] = reasons["precision"] = f"fewer than {NEIGHBOURS + 1} images or samples"
        return figures
    reference = Reference(classifier(select(train_images, slice(REFERENCE)))[0], seed)
    for of in ("_test_images", "_reconstructions"):
        features[of], _ = classifier(sets[of])
    for of, found in features.items():
        figures |= _named("", of, reference.distances(found))
    if drawn is not None:
        real = features["_test_images"]
        figures |= manifold_overlap(real[:MANIFOLD], features[""][:MANIFOLD])
    return figures


# Small helpers


def _within_memory(images, limit, progress):
    """Lowers the limit to what fits into memory: see `in_memory`."""
    wanted = min(len(images), limit or len(images))
    # Stored images are large by the user's own bound, however low that is.
    most = in_memory(images.shape[1:], wanted, 0 if isinstance(images, StoredImages) else LEAST)
    if most == wanted:
        return limit
    progress(f"measuring the first {most:,} test images, for which there is memory")
    return most


def _with_interval(name, values, seed):
    """{NAME: mean, NAME_interval: its interval} of values (N,); both are None without values."""
    mean, interval = (None, None) if values is None else mean_with_interval(values, seed)
    return {name: mean, f"{name}_interval": interval}


def _no_distances(prefix):
    return {
        f"{prefix}{name}{of}{more}": None
        for of in SETS
        for name in DISTANCES
        for more in ("", "_interval")
    }


def _named(prefix, of, found):
    """Renames the result of `Reference.distances` for a set: fid_interval becomes fid_SET_interval."""
    names = {name: f"{prefix}{name}{of}" for name in DISTANCES}
    return {names[key.removesuffix("_interval")] + key[3:]: value for key, value in found.items()}


def _distances(images, train_images):
    distance, _ = nearest_training_images(images, train_images)
    return {
        "n": len(images),
        "closest": float(distance.min()),
        "percentile_1": float(np.percentile(distance, 1)),
        "median": float(np.median(distance)),
    }

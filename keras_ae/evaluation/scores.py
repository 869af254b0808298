"""Anomaly scores: how unusual each image is for a model."""

import math

import numpy as np

from keras_ae.errors import UserError
from keras_ae.evaluation.arrays import BATCH, chunks, rows_of
from keras_ae.evaluation.evidence import (
    negative_log_likelihood,
    reconstruction_term,
    why_no_likelihood,
)
from keras_ae.inference import check_finite
from keras_ae.inputs import check_range
from keras_ae.priors import log_density

DRAWS = 4  # codes per image over which its evidence is averaged
SCORES = ("reconstruction_error", "negative_elbo", "negative_log_prior")


def score(model, inputs, reference=None, seed=0):
    """Scores how unusual images are for a model; a higher score means more unusual.

    An image's scores do not depend on the other images. An image is unusual if the model cannot
    reconstruct it, if the likelihood gives it a low probability, or if the prior gives its code a low
    probability. These three scores often disagree.

    Args:
        model: AE, VAE or CVAE.
        inputs: images (N, H, W, C), uint8 or float in [0, 1]; for a CVAE also a pair (images, labels).
            Without labels, each score of a CVAE is the lowest one over all classes.
        reference: inputs that are usual, such as the test images. The percentiles of scores refer to
            them.
        seed: seed of the codes over which the evidence is averaged.

    Returns:
        A dict of float64 (N,):

        - "reconstruction_error": the model's own reconstruction term, averaged over the values of an
            image; the code is the mean of q(z|x);
        - "negative_elbo": in nats, see `elbo`, for a VAE or CVAE whose loss is a likelihood;
        - "negative_log_prior": -log p(z) in nats of that code under the model's prior, as fitted by
            `fit_prior`, for a VAE or CVAE;

        and, with a reference, a "NAME_percentile" for each: the percentage of the reference with a lower
        score.

    Raises:
        UserError: labels are given for a model without classes, or images have another shape.
        ValueError: images are on another scale.

    References:
        An & Cho 2015, Variational Autoencoder based Anomaly Detection using Reconstruction Probability.
        Nalisnick et al. 2019, Do Deep Generative Models Know What They Don't Know?, arXiv:1810.09136.
    """
    pair = inputs if isinstance(inputs, tuple | list) else (inputs, None)
    if len(pair) != 2:
        raise UserError("Give one array of images (N, H, W, C), or a pair of images and labels.")
    images, labels = pair
    if labels is not None and not model.num_classes:
        raise UserError("This model has no classes: give images alone.")
    if (shape := np.shape(images)[1:]) != tuple(model.image_shape):
        raise UserError(
            f"This model takes images of {tuple(model.image_shape)}; these are {shape}."
        )
    check_range(images)
    if labels is not None:
        labels = model.class_labels(labels, len(images))
    if model.num_classes and labels is None:
        each = [np.full(len(images), y) for y in range(model.num_classes)]
        scores = [_scores(model, images, labels, seed) for labels in each]
        found = {name: np.min([of[name] for of in scores], axis=0) for name in scores[0]}
    else:
        found = _scores(model, images, labels, seed)
    if reference is None:
        return found
    usual = score(model, reference, seed=seed)
    ranks = {f"{k}_percentile": percentiles(found[k], usual[k]) for k in found}
    return found | ranks


def percentiles(values, reference):
    """For each value, the percentage of the reference that is lower: (N,), (M,) -> (N,)."""
    return 100 * np.searchsorted(np.sort(reference), values) / len(reference)


def auroc(odd, usual):
    """The probability that an unusual image has a higher score than a usual one; 0.5 is chance.

    Shapes (N,), (M,) -> float: the area under the receiver operating characteristic.
    """
    from sklearn.metrics import roc_auc_score

    truth = np.repeat([1, 0], [len(odd), len(usual)])
    return float(roc_auc_score(truth, np.concatenate([odd, usual])))


def _scores(model, images, labels, seed):
    """Computes the scores of images of known classes, or for a model without classes."""
    parts = [
        _of_part(model, images[rows], rows_of(labels, rows), seed)
        for rows in chunks(len(images), 4 * math.prod(model.image_shape)) or [slice(0)]
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _of_part(model, images, labels, seed):
    inputs = images if labels is None else (images, labels)
    rebuilt = model.reconstruct(inputs, batch_size=BATCH)
    error = reconstruction_term(model, images, rebuilt)
    found = {"reconstruction_error": error / math.prod(model.image_shape)}
    if not hasattr(model, "posterior"):
        return found
    mean, log_var = (x.astype("float64") for x in model.posterior(inputs, batch_size=BATCH))
    if why_no_likelihood(model) is None:
        kl = 0.5 * (np.square(mean) + np.exp(log_var) - 1 - log_var).sum(-1)
        # All images get the same noise, so that a score does not depend on the other images.
        noise = np.random.default_rng(seed).standard_normal((DRAWS, mean.shape[1]))
        codes = [mean + np.exp(0.5 * log_var) * row for row in noise]
        found["negative_elbo"] = kl + np.mean(
            [negative_log_likelihood(model, images, code, labels)[0] for code in codes], axis=0
        )
    found["negative_log_prior"] = -log_density(model.prior, mean, labels)
    check_finite(found.values(), "Some scores by the model")
    return found

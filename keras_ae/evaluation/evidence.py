"""Likelihoods, divergences and figures of latent codes, in nats per image."""

import math

import keras
import numpy as np
from scipy.special import logsumexp

from keras_ae.evaluation.arrays import BATCH, chunks, images_and_labels, rows_of
from keras_ae.inference import check_count, check_finite, check_memory
from keras_ae.inputs import check_range
from keras_ae.losses import RECONSTRUCTIONS, nll_per_image
from keras_ae.pictures import to_float
from keras_ae.priors import log_density
from keras_ae.tensors import to_numpy

ACTIVE = 0.01  # a latent counts as active if the variance of its posterior mean is larger


def kl_per_code(mean, log_var):
    """KL(q(z|x) || N(0, I)) of each image and latent in nats: (N, D), (N, D) -> (N, D) float64.

    Kingma & Welling 2014, appendix B.
    """
    mean, log_var = (to_numpy(a, "float64") for a in (mean, log_var))
    with np.errstate(over="ignore", invalid="ignore"):
        return 0.5 * (np.square(mean) + np.exp(log_var) - 1 - log_var)


def kl_per_latent(mean, log_var):
    """KL(q(z|x) || N(0, I)) of each latent, averaged over images, in nats: (N, D), (N, D) -> (D,).

    The sum over latents is the KL term in nats per image.
    """
    return kl_per_code(mean, log_var).mean(0)


def elbo(model, inputs, seed=0):
    """The evidence lower bound: log p(x|z) - KL(q(z|x) || N(0, I)), with one z drawn from q(z|x).

    Returns:
        (N,) float64 in nats per image, and the name of the likelihood, see `losses.nll_per_image`.

    Raises:
        NotFinite: the bound of an image is NaN or infinite.
        ValueError: the model has no posterior, or images are on another scale.

    References:
        Kingma & Welling 2014, Auto-Encoding Variational Bayes, equation 3.
    """
    _check_posterior(model)
    images, labels = images_and_labels(model, inputs)
    check_range(images)
    mean, log_var = model.posterior(inputs, batch_size=BATCH)
    noise = np.random.default_rng(seed).standard_normal(mean.shape, dtype="float32")
    codes = mean + np.exp(0.5 * log_var) * noise
    result = np.empty(len(images))
    for rows in chunks(len(images), math.prod(model.image_shape)) or [slice(0)]:
        nll, likelihood = negative_log_likelihood(
            model, images[rows], codes[rows], rows_of(labels, rows)
        )
        result[rows] = -nll - kl_per_code(mean[rows], log_var[rows]).sum(-1)
    check_finite([result], "The evidence lower bounds of some images")
    return result, likelihood


def importance_weighted_log_likelihood(
    model, inputs, k=100, seed=0, prior="normal", progress=lambda line: None
):
    """log of 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x), with z_i drawn from q(z|x).

    Its expectation is a lower bound of log p(x). The bound rises with k and converges to log p(x). With
    k = 1 it is the evidence lower bound.

    Args:
        model: VAE, or CVAE, for which it is log p(x|y).
        inputs: images, or (images, labels).
        k: number of importance samples, >= 1.
        seed: seed of the samples.
        prior: p(z): see `VAE.prior_named`; "normal" is N(0, I).
        progress: called with one line of text after each tenth of the images.

    Returns:
        (N,) float64 in nats per image, under the likelihood that `elbo` names.

    Raises:
        UserError: so many importance samples of one image would take too much memory.
        ValueError: the model has no posterior, images are on another scale, or k is no whole number of 1 or more.

    References:
        Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders, equation 8.
    """
    _check_posterior(model)
    check_count("k", k, 1)
    images, labels = images_and_labels(model, inputs)
    check_range(images)
    values = math.prod(model.image_shape)
    check_memory(8 * k * (values + model.latent_dim), f"{k:,} importance samples")
    density = model.prior_named(prior)
    mean, log_var = (a.astype("float64") for a in model.posterior(inputs, batch_size=BATCH))
    random = np.random.default_rng(seed)
    result = np.empty(len(images))
    for rows in chunks(len(images), k * values):
        noise = random.standard_normal((len(mean[rows]), k, mean.shape[1]))
        spread = log_var[rows, None]
        codes = mean[rows, None] + np.exp(0.5 * spread) * noise
        log_q = -0.5 * (np.square(noise) + spread + np.log(2 * np.pi)).sum(-1)
        codes = codes.reshape(-1, mean.shape[1])
        repeated = None if labels is None else np.repeat(labels[rows], k)
        nll, _ = negative_log_likelihood(model, np.repeat(images[rows], k, axis=0), codes, repeated)
        log_joint = log_density(density, codes, repeated) - nll
        result[rows] = logsumexp(log_joint.reshape(-1, k) - log_q, axis=1) - np.log(k)
        if 10 * rows.start // len(images) < 10 * rows.stop // len(images):
            progress(f"log-likelihoods: {rows.stop:,} of {len(images):,} images")
    check_finite([result], "The log-likelihoods of some images")
    return result


def active_units(mean):
    """Number of active latents: those whose posterior mean varies over images, Var_x E[z|x] > 0.01.

    Shapes (N, D) -> int. Burda, Grosse & Salakhutdinov 2016, section 5.
    """
    return int((np.var(mean, axis=0, dtype="float64") > ACTIVE).sum())


def mutual_information(mean, log_var, seed=0):
    """Estimate of I(x; z) in nats: the mean of log q(z|x) - log q(z), with one z from each q(z|x).

    q(z) is the mixture of the N given posteriors. So this is the information between a code and the
    index of its image, and it cannot exceed log N. A value near log N only says that the codes tell
    the images apart.

    Args:
        mean, log_var: (N, D), parameters of q(z|x).
        seed: seed of the codes.

    Raises:
        ValueError: they are of other shapes, or of no images.

    References:
        Hoffman & Johnson 2016, ELBO surgery: yet another way to carve up the variational evidence lower
        bound, section 2.
    """
    mean, log_var = (to_numpy(a, "float64") for a in (mean, log_var))
    if mean.ndim != 2 or mean.shape != log_var.shape or not len(mean):
        raise ValueError(
            f"mean and log_var must be (N, D), N >= 1; got {mean.shape} and {log_var.shape}."
        )
    n = len(mean)
    precision = np.exp(-log_var)
    codes = mean + np.exp(0.5 * log_var) * np.random.default_rng(seed).standard_normal(mean.shape)
    # log q(z_i|x_j) = -0.5 sum_d (z_i - mean_j)^2 / var_j + log var_j (+ log 2 pi, which cancels).
    # The square is expanded, which gives two matrix products.
    constant = -0.5 * (np.square(mean) * precision + log_var).sum(-1)
    total = 0.0
    for rows in chunks(n, n):
        z = codes[rows]
        with np.errstate(over="ignore", invalid="ignore"):
            log_q = z @ (mean * precision).T - 0.5 * np.square(z) @ precision.T + constant
            of_itself = log_q[np.arange(len(z)), np.arange(n)[rows]]
            total += (of_itself - logsumexp(log_q, axis=1) + np.log(n)).sum()
    check_finite([total], "The densities of some codes")
    return float(total / n)


def _check_posterior(model):
    if not hasattr(model, "posterior"):
        raise ValueError(
            f"{type(model).__name__} has no posterior, and so no likelihood: give a VAE or CVAE."
        )


def reconstruction_term(model, images, rebuilt):
    """The model's own reconstruction term of M images and what they were rebuilt as: (M,) float64, sums over pixels."""
    term = RECONSTRUCTIONS.find(model.reconstruction)(to_float(images), rebuilt)
    return keras.ops.convert_to_numpy(term).astype("float64")


def negative_log_likelihood(model, images, codes, labels):
    """-log p(x|z) of M images and their codes: (M,) float64 in nats, and the likelihood's name."""
    rebuilt = model.decode(codes, labels, batch_size=BATCH)
    term = reconstruction_term(model, images, rebuilt)
    values = math.prod(model.image_shape)
    return nll_per_image(term, model.reconstruction, values, model.scale_of_likelihood())


def why_no_likelihood(model):
    """Explains in one line why a model's reconstruction term is not a likelihood; None if it is one."""
    reconstruction = RECONSTRUCTIONS.find(model.reconstruction)
    if reconstruction.likelihood is None:
        return "this reconstruction term stands for no likelihood"
    if not model.scale_of_likelihood() and reconstruction.scale is not None:
        return f"{model.reconstruction} at a kl_weight of 0 stands for no likelihood"
    return None


def bits_per_dimension(log_likelihood, num_values, density=True):
    """A log-likelihood, or a lower bound of it, in bits per value of an image.

    The values of an image have steps of 1/255. If the likelihood is a density over [0, 1], the
    probability of a step is density / 255. This is accurate if the scale of the likelihood is much
    larger than a step.

    Args:
        log_likelihood: (N,) in nats per image.
        num_values: H * W * C.
        density: False for a likelihood of binary images, which is already a probability.

    Returns:
        (N,) float64. A uniform guess costs 8 bits per value, or 1 bit per value of a binary image.

    References:
        Theis et al. 2016, A note on the evaluation of generative models, section 3.1.
    """
    bits = -np.asarray(log_likelihood, "float64") / (num_values * np.log(2))
    return bits + np.log2(255) if density else bits


def binary(images):
    """Whether all values of images, whole numbers in 0..255 or floats in [0, 1], are black or white."""
    highest = 255 if images.dtype.kind in "iu" else 1
    return all(
        bool(((part == 0) | (part == highest)).all())
        for rows in chunks(len(images), math.prod(images.shape[1:]))
        for part in [images[rows]]
    )

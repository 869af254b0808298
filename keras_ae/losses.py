"""The terms of the loss, each in nats or pixel units *per image*: sums, never means, over an image.

    loss = mean over the batch of [ reconstruction + kl_weight * kl ]

Summing over pixels and over latents keeps both terms on the scale of the evidence lower bound, so
that `kl_weight` means the same for every image size and every latent size.
"""

import math

from keras_ae import ops

PIXELS = (-3, -2, -1)


def l1(image, reconstruction):
    """Sum over pixels of |x - x'|. Shapes (N, H, W, C) in [0, 1] -> (N,)."""
    image, reconstruction = _floats(image, reconstruction)
    return ops.sum(ops.abs(reconstruction - image), axis=PIXELS)


def mse(image, reconstruction):
    """Sum over pixels of (x - x')^2. Shapes (N, H, W, C) in [0, 1] -> (N,)."""
    image, reconstruction = _floats(image, reconstruction)
    return ops.sum(ops.square(reconstruction - image), axis=PIXELS)


def bce(image, reconstruction):
    """Negative Bernoulli log-likelihood in nats, summed over pixels; x' is a probability, not a logit.

    Shapes (N, H, W, C) in [0, 1] -> (N,). Probabilities are kept 1e-7 away from 0 and 1, which
    bounds the cost of one pixel at 16.1 nats.
    """
    # Not `ops.binary_crossentropy`: on torch it fails where x' is NaN, before the run can say so.
    # In float32, as 1 - 1e-7 of fewer bits is 1, whose logarithms are 0 and -inf.
    image, reconstruction = _floats(image, reconstruction)
    p = ops.clip(reconstruction, 1e-7, 1 - 1e-7)
    likelihood = image * ops.log(p) + (1 - image) * ops.log(1 - p)
    return -ops.sum(likelihood, axis=PIXELS)


def _floats(*arrays):
    """Both as float32, whatever precision the networks compute in."""
    return [ops.cast(array, "float32") for array in arrays]


RECONSTRUCTIONS = {"l1": l1, "mse": mse, "bce": bce}


def gaussian_kl(mean, log_var):
    """KL divergence KL(N(mean, exp(log_var)) || N(0, I)) in nats, summed over latents.

    Shapes (N, D) -> (N,). Kingma & Welling 2014, appendix B.
    """
    return 0.5 * ops.sum(mean * mean + ops.exp(log_var) - 1.0 - log_var, axis=-1)


def nll_per_image(reconstruction, name, num_pixels, kl_weight=1.0):
    """Turn a reconstruction term into -log p(x|z) in nats, and name the likelihood that this assumes.

    Minimising `reconstruction + b * kl` maximises the evidence lower bound under a likelihood whose
    scale is set by b: Laplace of scale b for l1, Gaussian of variance b / 2 for mse. A Bernoulli (bce)
    has no scale.

    Args:
        reconstruction: sum over pixels of l1, mse or bce, any shape.
        name: "l1", "mse" or "bce".
        num_pixels: H * W * C.
        kl_weight: the weight b > 0 of the KL term that the model was trained with.

    Returns:
        (-log p(x|z) of the same shape, the likelihood's name).
    """
    if name == "bce":
        return reconstruction, "bernoulli"
    if name == "l1":
        nats = reconstruction / kl_weight + num_pixels * math.log(2 * kl_weight)
        return nats, f"laplace(scale={kl_weight:g})"
    nats = reconstruction / kl_weight + 0.5 * num_pixels * math.log(math.pi * kl_weight)
    return nats, f"normal(variance={kl_weight / 2:g})"

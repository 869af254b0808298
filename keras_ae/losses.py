"""The terms of the loss, each summed over an image, and the likelihood of each reconstruction term.

    loss = mean over the batch of [ reconstruction + kl_weight * kl ]

Both terms are sums, over pixels and over latents, as in the evidence lower bound. So `kl_weight` means
the same for every image size and every number of latents.
"""

import dataclasses
import math
from collections.abc import Callable

from keras import ops

from keras_ae.settings import Registry

PIXELS = (-3, -2, -1)
LEAST_SCALE = 1e-3  # smallest scale of a likelihood: a quarter of an 8-bit grey level
SCALE_MOMENTUM = 0.99  # of the running mean of the scale, which covers about 100 batches


def l1(target, reconstruction):
    """Sum over pixels of |x - x'|. Shapes (N, H, W, C) in [0, 1] -> (N,)."""
    return ops.sum(ops.abs(_float(reconstruction) - _float(target)), axis=PIXELS)


def mse(target, reconstruction):
    """Sum over pixels of (x - x')^2. Shapes (N, H, W, C) in [0, 1] -> (N,)."""
    difference = _float(reconstruction) - _float(target)
    return ops.sum(difference * difference, axis=PIXELS)


def bce(target, reconstruction):
    """Negative Bernoulli log-likelihood in nats, summed over pixels; x' is a probability.

    Shapes (N, H, W, C) in [0, 1] -> (N,). Probabilities are clipped to [1e-7, 1 - 1e-7], so one pixel
    costs at most 16.1 nats. If its decoder ends in a sigmoid, a model computes this term from the
    logits instead: see `bce_of_logits`.
    """
    # `ops.binary_crossentropy` is not used: on torch it raises an error for NaN in x', before the run can
    # report the NaN. float32 is needed: with fewer bits 1 - 1e-7 rounds to 1, and log(1 - 1) is -inf.
    target = _float(target)
    p = ops.clip(_float(reconstruction), 1e-7, 1 - 1e-7)
    return -ops.sum(target * ops.log(p) + (1 - target) * ops.log(1 - p), axis=PIXELS)


def bce_of_logits(target, logits):
    """`bce` of x' = sigmoid(logits), computed so that rounding never makes the gradient 0.

    Shapes (N, H, W, C) -> (N,). The gradient is sigmoid(logits) - x. Computed from probabilities, a
    saturated pixel (logit -20 where x is 1) has a gradient of exactly 0 and is never learned.
    """
    target, logits = _float(target), _float(logits)
    return ops.sum(ops.softplus(logits) - target * logits, axis=PIXELS)


def _float(array):
    """Cast to float32, whatever precision the networks compute in."""
    return ops.cast(array, "float32")


def laplace(error, values, scale):
    """-log p(x|z) in nats for a Laplace distribution; `error` is the sum of |x - x'| over `values` values."""
    return error / scale + values * math.log(2 * scale), f"laplace(scale={scale:g})"


def normal(error, values, scale):
    """-log p(x|z) in nats for a Gaussian of variance scale / 2; `error` is the sum of (x - x')^2."""
    nats = error / scale + 0.5 * values * math.log(math.pi * scale)
    return nats, f"normal(variance={scale / 2:g})"


def bernoulli(error, values, scale):
    """-log p(x|z) in nats for Bernoulli pixels, which have no scale: this is `error` itself."""
    return error, "bernoulli"


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A reconstruction term and its properties.

    `RECONSTRUCTIONS["name"] = Reconstruction(...)` adds one. A plain function (target, reconstruction)
    -> (N,) is accepted in place of a `Reconstruction`; it then has no likelihood.

    Attributes:
        term: the loss of each image: (target, reconstruction), both (N, H, W, C) in [0, 1] -> (N,), a
            sum over pixels.
        likelihood: (sum over pixels of an image, number of values, scale) -> (-log p(x|z) in nats, name
            of the likelihood). Minimising `term + b * kl` maximises the evidence lower bound under the
            likelihood of scale b. None if the term is no log-likelihood: there is no ELBO then.
        scale: the likeliest scale is `scale` times the mean of the term per value. None if the likelihood
            has no scale. If it has one, a `kl_weight` of 0 corresponds to no likelihood.
        of_logits: the same term from the logits of the reconstruction, for a decoder that ends in a
            sigmoid. None if computing it from the output of the decoder is as good.
    """

    term: Callable
    likelihood: Callable | None = None
    scale: float | None = None
    of_logits: Callable | None = None

    def __call__(self, target, reconstruction):
        return self.term(target, reconstruction)


RECONSTRUCTIONS = Registry(
    "reconstruction",
    Reconstruction,
    {
        "l1": Reconstruction(l1, laplace, scale=1.0),
        "mse": Reconstruction(mse, normal, scale=2.0),
        "bce": Reconstruction(bce, bernoulli, of_logits=bce_of_logits),
    },
    of_function=Reconstruction,
)


def likeliest_scale(reconstruction, mean_term, num_values):
    """The scale b that makes a batch most likely; no gradient flows through it.

    Over all scales, the evidence lower bound is highest at b = mean |x - x'| per value for a Laplace
    distribution, and at b = twice the mean (x - x')^2 for a Gaussian of variance b / 2 (sigma-VAE,
    Rybkin, Daniilidis & Levine 2021, arXiv:2006.13202).

    Args:
        reconstruction: a `Reconstruction`.
        mean_term: its term (a sum over an image), averaged over the batch; a scalar.
        num_values: H * W * C.

    Returns:
        A scalar, at least LEAST_SCALE; 1 for a likelihood without a scale.
    """
    if reconstruction.scale is None:
        return ops.ones_like(mean_term)
    mean = ops.stop_gradient(mean_term) * (reconstruction.scale / num_values)
    return ops.maximum(mean, LEAST_SCALE)


def running_scale(scale, likeliest):
    """The running mean of the scale after a batch. A scale of 0 means no batch yet: `likeliest` replaces it."""
    moved = scale + (1.0 - SCALE_MOMENTUM) * (likeliest - scale)
    return ops.where(scale > 0.0, moved, likeliest)


def gaussian_kl(mean, log_var):
    """KL divergence KL(N(mean, exp(log_var)) || N(0, I)) in nats, summed over latents.

    Shapes (N, D) -> (N,). Kingma & Welling 2014, appendix B.
    """
    return 0.5 * ops.sum(mean * mean + ops.exp(log_var) - 1.0 - log_var, axis=-1)


def nll_per_image(error, reconstruction, num_values, scale=1.0):
    """Turn a reconstruction term into -log p(x|z) in nats, and name the likelihood that this assumes.

    Args:
        error: the term of each image, a sum over its pixels; an array of any shape.
        reconstruction: a name in `RECONSTRUCTIONS`, or a `Reconstruction`.
        num_values: H * W * C.
        scale: b > 0 of the likelihood, see `VAE.scale_of_likelihood`.

    Returns:
        (-log p(x|z) of the same shape, name of the likelihood).

    Raises:
        ValueError: the reconstruction term is no log-likelihood.
    """
    reconstruction = RECONSTRUCTIONS.find(reconstruction)
    if reconstruction.likelihood is None:
        raise ValueError("This reconstruction term stands for no likelihood.")
    return reconstruction.likelihood(error, num_values, scale)

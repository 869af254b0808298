"""The terms of the loss, each a sum over an image, and what each reconstruction stands for.

    loss = mean over the batch of [ reconstruction + kl_weight * kl ]

Summing over pixels and over latents keeps both terms on the scale of the evidence lower bound, so
that `kl_weight` means the same for every image size and every latent size.
"""

import dataclasses
import math
from collections.abc import Callable

from keras import ops

from keras_ae.settings import Registry

PIXELS = (-3, -2, -1)
LEAST_SCALE = 1e-3  # of a likelihood: a quarter of a grey level of 8 bits
SCALE_MOMENTUM = 0.99  # of its running mean: about the last hundred batches


def l1(target, reconstruction):
    """Sum over pixels of |x - x'|. Shapes (N, H, W, C) in [0, 1] -> (N,)."""
    return ops.sum(ops.abs(_float(reconstruction) - _float(target)), axis=PIXELS)


def mse(target, reconstruction):
    """Sum over pixels of (x - x')^2. Shapes (N, H, W, C) in [0, 1] -> (N,)."""
    difference = _float(reconstruction) - _float(target)
    return ops.sum(difference * difference, axis=PIXELS)


def bce(target, reconstruction):
    """Negative Bernoulli log-likelihood in nats, summed over pixels; x' is a probability.

    Shapes (N, H, W, C) in [0, 1] -> (N,). Probabilities are kept 1e-7 away from 0 and 1, which
    bounds the cost of one pixel at 16.1 nats. A model computes it from logits, where its decoder ends
    in a sigmoid: see `bce_of_logits`.
    """
    # Not `ops.binary_crossentropy`: on torch it fails where x' is NaN, before the run can say so.
    # In float32, as 1 - 1e-7 of fewer bits is 1, whose logarithms are 0 and -inf.
    target = _float(target)
    p = ops.clip(_float(reconstruction), 1e-7, 1 - 1e-7)
    return -ops.sum(target * ops.log(p) + (1 - target) * ops.log(1 - p), axis=PIXELS)


def bce_of_logits(target, logits):
    """`bce` of x' = sigmoid(logits), whose gradient sigmoid(logits) - x never vanishes by rounding.

    Shapes (N, H, W, C) -> (N,). In probabilities a saturated pixel (logit -20 where x is 1) has a
    gradient of exactly 0, and is never learned.
    """
    target, logits = _float(target), _float(logits)
    return ops.sum(ops.softplus(logits) - target * logits, axis=PIXELS)


def _float(array):
    """As float32, whatever precision the networks compute in."""
    return ops.cast(array, "float32")


def laplace(error, values, scale):
    """-log p(x|z) in nats of a Laplace distribution, of the sum of |x - x'| over so many values."""
    return error / scale + values * math.log(2 * scale), f"laplace(scale={scale:g})"


def normal(error, values, scale):
    """-log p(x|z) in nats of a Gaussian of variance scale / 2, of the sum of (x - x')^2."""
    nats = error / scale + 0.5 * values * math.log(math.pi * scale)
    return nats, f"normal(variance={scale / 2:g})"


def bernoulli(error, values, scale):
    """-log p(x|z) in nats of Bernoulli pixels, which have no scale."""
    return error, "bernoulli"


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A reconstruction term and what others need to know of it.

    `RECONSTRUCTIONS["name"] = Reconstruction(...)` adds one. A plain function (target, reconstruction)
    -> (N,) is accepted wherever one is; it stands for no likelihood.

    Attributes:
        term: the loss of each image: (N, H, W, C) twice, target and reconstruction, both in [0, 1] ->
            (N,), a sum over pixels.
        likelihood: (sum over pixels of an image, number of values, scale) -> (-log p(x|z) in nats, name
            of the likelihood). Minimising `term + b * kl` maximises the evidence lower bound under the
            likelihood of scale b. None where the term is no log-likelihood: there is no ELBO then.
        scale: the likeliest scale is so many times the mean of the term a value; None where the likelihood
            has no scale. With one, a weight of 0 stands for no likelihood.
        of_logits: the same term from the logits of the reconstruction, for a decoder that ends in a
            sigmoid; None where probabilities serve as well.
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
    """The scale b under which a batch is most likely, with no gradient through it.

    With the scale free as well, the evidence lower bound is highest at b = mean |x - x'| a value for a
    Laplace distribution, and at b = twice the mean (x - x')^2 for a Gaussian of variance b / 2
    (sigma-VAE, Rybkin, Daniilidis & Levine 2021, arXiv:2006.13202).

    Args:
        reconstruction: a `Reconstruction`.
        mean_term: mean over the batch of its term, a sum over an image; a scalar.
        num_values: H * W * C.

    Returns:
        A scalar, at least LEAST_SCALE; 1 for a likelihood without a scale.
    """
    if reconstruction.scale is None:
        return ops.ones_like(mean_term)
    mean = ops.stop_gradient(mean_term) * (reconstruction.scale / num_values)
    return ops.maximum(mean, LEAST_SCALE)


def running_scale(scale, likeliest):
    """The running mean of the scale after a batch; of 0, which is before the first one, that batch's own."""
    moved = scale + (1.0 - SCALE_MOMENTUM) * (likeliest - scale)
    return ops.where(scale > 0.0, moved, likeliest)


def gaussian_kl(mean, log_var):
    """KL divergence KL(N(mean, exp(log_var)) || N(0, I)) in nats, summed over latents.

    Shapes (N, D) -> (N,). Kingma & Welling 2014, appendix B.
    """
    return 0.5 * ops.sum(mean * mean + ops.exp(log_var) - 1.0 - log_var, axis=-1)


def nll_per_image(error, reconstruction, num_values, kl_weight=1.0):
    """Turn a reconstruction term into -log p(x|z) in nats, and name the likelihood that this assumes.

    Args:
        error: sum over pixels of an image, any shape.
        reconstruction: a name in `RECONSTRUCTIONS`, or a `Reconstruction`.
        num_values: H * W * C.
        kl_weight: the weight b > 0 of the KL term that the model was trained with: the scale.

    Returns:
        (-log p(x|z) of the same shape, the likelihood's name).

    Raises:
        ValueError: the reconstruction is no log-likelihood.
    """
    reconstruction = RECONSTRUCTIONS.find(reconstruction)
    if reconstruction.likelihood is None:
        raise ValueError("This reconstruction term stands for no likelihood.")
    return reconstruction.likelihood(error, num_values, kl_weight)

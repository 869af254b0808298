"""The scale that a likelihood chooses for itself, which is the weight of the KL term.

Minimising `reconstruction + b * KL` is maximising the evidence lower bound under a Laplace likelihood of
scale b (l1) or a Gaussian of variance b / 2 (mse). With the scale free as well, the bound is
highest at b = mean |x - x'| a value, or twice the mean (x - x')^2: what the images themselves say
(sigma-VAE, Rybkin, Daniilidis & Levine 2021, arXiv:2006.13202).
"""

import keras

from keras_ae import ops

MOMENTUM = 0.99  # of the running mean: about the last hundred batches
LEAST = 1e-3  # a quarter of a grey level of 8 bits: no scale is below it
FACTORS = {"l1": 1.0, "mse": 2.0}  # bce is a likelihood without a scale
UNSEEN = 0.0  # of a scale before its first batch


def likeliest_scale(reconstruction, name, num_values):
    """The scale b at which a batch is most likely, no gradient through it.

    Args:
        reconstruction: mean over a batch of the reconstruction term, a sum over an image; a scalar.
        name: "l1", "mse" or "bce".
        num_values: H * W * C of an image.

    Returns:
        A scalar; 1 for bce.
    """
    if name not in FACTORS:
        return keras.ops.ones_like(reconstruction)
    mean = keras.ops.stop_gradient(reconstruction) * (FACTORS[name] / num_values)
    return ops.where(mean > LEAST, mean, mean * 0.0 + LEAST)


def running_scale(scale, likeliest):
    """The running mean after a batch: the batch's own after the first, of which there is nothing to forget."""
    moved = scale + (1.0 - MOMENTUM) * (likeliest - scale)
    return ops.where(scale > UNSEEN, moved, likeliest)

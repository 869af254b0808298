"""One short mixin a backend, each overriding `train_step` and `test_step` of a Keras model.

What a step minimises and tracks is `compute_loss` of the model, written once. Here is only what
differs between backends: how to get gradients. numpy and openvino have no training in Keras; they
load, predict, evaluate and sample.
"""

import importlib

import keras


def forward_of(network):
    """A function from batches of arrays to the outputs of a network: Keras' own, but on jax."""
    return network.predict_on_batch


if keras.backend.backend() in ("torch", "jax", "tensorflow"):
    _backend = importlib.import_module(f"{__name__}.{keras.backend.backend()}")
    StepMixin, batches = _backend.StepMixin, _backend.batches
    forward_of = getattr(_backend, "forward_of", forward_of)
else:

    class StepMixin:  # type: ignore[no-redef]
        """Nothing to override where Keras cannot train."""

    def batches(feed):
        """As they come."""
        return feed

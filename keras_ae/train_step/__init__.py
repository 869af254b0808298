"""One short mixin a backend, each overriding `train_step` and `test_step` of a Keras model.

What a step minimises and tracks is `step_loss` of the model, written once. Here is only what differs
between backends: how to get gradients. numpy and openvino have no training in Keras; they load, predict,
evaluate and sample.
"""

import importlib

import keras

if keras.backend.backend() in ("torch", "jax", "tensorflow"):
    StepMixin = importlib.import_module(f"{__name__}.{keras.backend.backend()}").StepMixin
else:

    class StepMixin:  # type: ignore[no-redef]
        """Nothing to override where Keras cannot train."""

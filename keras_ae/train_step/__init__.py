"""One short mixin per backend, which overrides `train_step` and `test_step` of a Keras model.

The model's `step_loss` computes the loss and updates the metrics, on all backends. These mixins contain only
what differs between backends: how to get gradients. Keras cannot train on numpy and openvino; there a model can
be loaded, and can predict, evaluate and sample.
"""

import importlib

import keras

if keras.backend.backend() in ("torch", "jax", "tensorflow"):
    StepMixin = importlib.import_module(f"{__name__}.{keras.backend.backend()}").StepMixin
else:

    class StepMixin:  # type: ignore[no-redef]
        """Overrides nothing: Keras cannot train on this backend."""

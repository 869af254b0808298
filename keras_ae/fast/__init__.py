"""Levers: what makes training faster than Keras' own loops do. Everything is right without them.

KAE_FAST=0 in the environment, before the first import, switches all of them off. What each of them pays
is in docs/levers.md.

lever         module          what it does
executions    executions_*    several steps between two calls of the callbacks, on every backend
networks      networks        a Functional network as a list of torch's own functions
means         executions_*    the running means of an epoch in one kernel, on torch
Adam          adam            the fused kernels of torch and tensorflow
gathering     gathering       batches gathered within tensorflow's graph
prediction    prediction      what a forward pass on jax does not change is not written back
"""

import importlib
import os

import keras

ON = os.environ.get("KAE_FAST", "1") != "0"


class Steps:
    """Several steps between two calls of the callbacks, where Keras makes them one by one: no lever."""


_BACKEND = keras.backend.backend()
if ON and _BACKEND in ("torch", "jax", "tensorflow"):
    Steps = importlib.import_module(f"{__name__}.executions_{_BACKEND}").Steps  # type: ignore[misc]

"""Levers: optimizations that make this package faster than Keras' own loops. Results are correct without them.

KAE_FAST=0 in the environment, set before the first import, switches all of them off. docs/levers.md shows
how much time each of them saves.

lever         module          what it does
executions    executions_*    makes several steps between two calls of the callbacks, on every backend
networks      networks        runs a Functional network as a list of torch's own functions
means         executions_*    updates the running means of an epoch in one kernel, on torch
Adam          adam            uses the fused kernels of torch and tensorflow
gathering     gathering       gathers batches inside tensorflow's graph
prediction    prediction      on jax, writes back only the variables that a forward pass changes
transposition transposition   on jax, a faster gradient of transposed convolutions
"""

import importlib
import os

import keras

ON = os.environ.get("KAE_FAST", "1") != "0"


class Steps:
    """The base class without a lever: Keras' own loop makes the steps."""


_BACKEND = keras.backend.backend()
if ON and _BACKEND in ("torch", "jax", "tensorflow"):
    Steps = importlib.import_module(f"{__name__}.executions_{_BACKEND}").Steps  # type: ignore[misc]
if ON and _BACKEND == "jax":
    importlib.import_module(f"{__name__}.transposition")

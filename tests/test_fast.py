"""The levers of `keras_ae.fast` change nothing: with all of them off, every contract holds."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from keras_ae import fast

CONTRACT = Path(__file__).with_name("test_keras_contract.py")
PROGRAM = """
import keras_ae
from keras_ae.fast import adam
print(keras_ae.fast.ON, keras_ae.VAE.__mro__[2].__module__, adam.torch is not None)
"""


def python(*arguments, **environment):
    """What a Python process prints; a variable that is None is unset."""
    variables = {**os.environ, "KERAS_BACKEND": keras.backend.backend(), **environment}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={name: value for name, value in variables.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize("value, on", [("0", False), ("1", True), (None, True)])
def test_the_variable_switches_all_levers(value, on):
    module = "keras_ae.fast.executions_torch" if on else "keras_ae.fast"
    out = python("-c", PROGRAM, KAE_FAST=value, KERAS_BACKEND="torch")
    assert out.split() == [str(on), module, str(on)]


@pytest.mark.long
@pytest.mark.skipif(not fast.ON, reason="the levers are off already")
def test_every_contract_holds_without_the_levers():
    # Convolutions are in test_speed_paths.py, and XLA compiles them long.
    options = ["-n", "0", "-q", "-x", "-p", "no:cacheprovider", "-W", "ignore", "-k", "not conv"]
    assert "100%" in python("-m", "pytest", *options, CONTRACT, KAE_FAST="0")

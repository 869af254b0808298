"""The levers of `keras_ae.fast` change nothing: with all of them off, every contract holds."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from keras_ae import fast

CONTRACT = Path(__file__).with_name("test_keras_contract.py")


def python(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend(), **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("value, on", [("0", False), ("1", True), (None, True)])
def test_the_variable_switches_all_levers(value, on):
    program = """
import keras, keras_ae
from keras_ae import fast
from keras_ae.fast import adam, means, networks
print(fast.ON, fast.Steps.__module__, adam.torch is not None)
"""
    environment = {key: kept for key, kept in os.environ.items() if key != "KAE_FAST"}
    if value is not None:
        environment["KAE_FAST"] = value
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
        check=True,
    )
    module = "keras_ae.fast.executions_torch" if on else "keras_ae.fast"
    assert done.stdout.split() == [str(on), module, str(on)]


@pytest.mark.skipif(not fast.ON, reason="the levers are off already")
def test_every_contract_holds_without_the_levers():
    out = python(
        "-m", "pytest", "-n", "0", "-q", "-x", "-p", "no:cacheprovider", "-W", "ignore", CONTRACT,
        KAE_FAST="0",
    )  # fmt: skip
    assert " passed" in out or "100%" in out

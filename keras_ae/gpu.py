"""What makes a result on a GPU the same in every run, and the same as on a CPU.

By default, cuDNN's convolutions add up in another order in each run, and round float32 to TF32, with 10 bits.
On a CPU, no result changes.
"""

import contextlib
import threading

import keras

BACKEND = keras.backend.backend()


class Held:
    """A context in which a setting of the process has a value; the old one is back when no thread is in it."""

    def __init__(self, owner, name, value):
        self.owner, self.name, self.value = owner, name, value
        self.lock, self.threads, self.before = threading.Lock(), 0, None

    def __enter__(self):
        with self.lock:
            if not self.threads:
                self.before = getattr(self.owner, self.name)
                setattr(self.owner, self.name, self.value)
            self.threads += 1

    def __exit__(self, *error):
        with self.lock:
            self.threads -= 1
            if not self.threads:
                setattr(self.owner, self.name, self.before)


if BACKEND == "torch":
    import torch

    _deterministic = Held(torch.backends.cudnn, "deterministic", True)
    _ieee = Held(torch.backends.cudnn, "fp32_precision", "ieee")


def repeatable():
    """A context in which torch's convolutions and their gradients give the same numbers in every run."""
    return _deterministic if BACKEND == "torch" else contextlib.nullcontext()


def in_float32():
    """A context in which torch's convolutions, and jax, compute in float32 what is float32, as on a CPU.

    A choice that the process has made for torch's convolutions (`torch.backends.cudnn.conv.fp32_precision`, or the
    older `allow_tf32`, which torch refuses to read here) stays.
    """
    if BACKEND == "jax":
        import jax

        return jax.default_matmul_precision("float32")
    return _ieee if BACKEND == "torch" else contextlib.nullcontext()

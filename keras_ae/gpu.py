"""What makes a result on a GPU the same in every run, and the same as on a CPU.

By default, cuDNN's convolutions add up in another order in each run, and round float32 to TF32, with 10 bits.
On a CPU, no result changes.
"""

import contextlib
import threading

import keras

BACKEND = keras.backend.backend()


class Held:
    """A context in which settings of the process have a value; the old ones are back when no thread is in it.

    Args:
        value: of all of them.
        settings: pairs (owner, attribute). One that follows those before it is left alone.
    """

    def __init__(self, value, *settings):
        self.value, self.settings = value, settings
        self.lock, self.threads, self.before = threading.Lock(), 0, []

    def __enter__(self):
        with self.lock:
            for owner, name in () if self.threads else self.settings:
                if (before := getattr(owner, name)) != self.value:
                    self.before.append((owner, name, before))
                    setattr(owner, name, self.value)
            self.threads += 1

    def __exit__(self, *error):
        with self.lock:
            self.threads -= 1
            while self.before and not self.threads:
                setattr(*self.before.pop())


if BACKEND == "torch":
    import torch

    cudnn = torch.backends.cudnn
    _deterministic = Held(True, (cudnn, "deterministic"))
    _ieee = Held("ieee", (cudnn, "fp32_precision"), (cudnn.conv, "fp32_precision"))


def repeatable():
    """A context in which torch's convolutions and their gradients give the same numbers in every run."""
    return _deterministic if BACKEND == "torch" else contextlib.nullcontext()


def in_float32():
    """A context in which torch's convolutions, and jax, compute in float32 what is float32, as on a CPU.

    In it, torch refuses to read the older `torch.backends.cudnn.allow_tf32`.
    """
    if BACKEND == "jax":
        import jax

        return jax.default_matmul_precision("float32")
    return _ieee if BACKEND == "torch" else contextlib.nullcontext()

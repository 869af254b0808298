"""What makes results on a GPU those of a CPU. Where there is none, the settings are looked at."""

import os
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest

import keras_ae
from keras_ae import gpu, latents, pictures
from keras_ae.data.arrays import splits_of_arrays
from keras_ae.priors import ClassMixture

BACKEND = keras.backend.backend()
torch_only = pytest.mark.skipif(BACKEND != "torch", reason="torch's settings")


def settings():
    import torch

    cudnn = torch.backends.cudnn
    return cudnn.deterministic, cudnn.conv.fp32_precision


class Looks(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = {}

    def on_train_batch_end(self, batch, logs=None):
        self.seen["train"] = settings()

    def on_test_batch_end(self, batch, logs=None):
        self.seen["test"] = settings()

    def on_predict_batch_end(self, batch, logs=None):
        self.seen["predict"] = settings()


@torch_only
def test_the_settings_are_held_while_a_model_works_and_put_back(digits, monkeypatch):
    before, x, look = settings(), digits[0][:64], Looks()
    model = keras_ae.VAE(backbone="mlp", hidden=(8,), latent_dim=2)
    model.compile(keras_ae.Adam(1e-3))
    model.fit(x, batch_size=32, verbose=0, callbacks=[look], validation_data=(x,))
    assert look.seen == {"train": (True, before[1]), "test": (True, "ieee")}
    model.evaluate(x, verbose=0, callbacks=[look])
    model.predict(x, verbose=0, callbacks=[look])
    assert look.seen["test"] == look.seen["predict"] == (before[0], "ieee")
    seen = []
    forward = type(model).forward
    monkeypatch.setattr(
        keras_ae.VAE, "forward", lambda *a, **k: seen.append(settings()[1]) or forward(*a, **k)
    )
    model.encode(x)
    assert seen == ["ieee"] and settings() == before


@torch_only
def test_a_precision_of_convolutions_that_is_set_is_held_and_put_back_too():
    """As by `torch.backends.cudnn.flags`, which sets what it found; one that is not set stays so."""
    import torch

    cudnn = torch.backends.cudnn
    before = cudnn.fp32_precision, cudnn.conv.fp32_precision
    with cudnn.flags(enabled=True):
        pass
    for _ in range(2):
        with gpu.in_float32():
            assert cudnn.conv.fp32_precision == "ieee"
        assert (cudnn.fp32_precision, cudnn.conv.fp32_precision) == before
    program = """
import torch
from keras_ae import gpu
with gpu.in_float32():
    pass
torch.backends.fp32_precision = "ieee"
assert torch.backends.cudnn.conv.fp32_precision == "ieee"
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@torch_only
def test_the_last_of_several_threads_puts_a_setting_back():
    before, held, left = settings(), threading.Event(), threading.Event()

    def other():
        with gpu.in_float32():
            held.set()
            left.wait(10)
            assert settings()[1] == "ieee"

    thread = threading.Thread(target=other)
    with gpu.in_float32():
        thread.start()
        assert held.wait(10)
    assert settings()[1] == "ieee"
    left.set()
    thread.join()
    assert settings() == before


def test_tensors_are_taken_where_arrays_are(digits):
    """On a GPU, or with gradients, as NumPy takes none."""
    torch = pytest.importorskip("torch")

    def tensor(x):
        x = torch.from_numpy(np.array(x)).requires_grad_(x.dtype.kind == "f")
        return x.cuda() if torch.cuda.is_available() else x

    model = keras_ae.CVAE(backbone="mlp", hidden=(8,), latent_dim=2)
    x, labels = digits[0][:64].astype("float32") / 255, digits[1][:64]
    codes = model.encode((x, labels))
    equal = np.testing.assert_array_equal
    equal(model.decode(tensor(codes), tensor(labels)), model.decode(codes, labels))
    equal(np.array(pictures.grid(tensor(x))), np.array(pictures.grid(x)))
    prior, same = ClassMixture.fit(tensor(codes)), ClassMixture.fit(codes)
    equal(prior.log_prob(tensor(codes)), same.log_prob(codes))
    equal(latents.path(tensor(codes[0]), tensor(codes[1]), 3), latents.path(codes[0], codes[1], 3))
    split, _ = splits_of_arrays((tensor(x), tensor(labels)), (x, labels), "arrays")
    equal(split.images, x)
    equal(split.labels, labels)


@pytest.mark.long
def test_the_command_line_asks_jax_for_repeatable_results():
    code = "from kae import console; console.start_backend(); import os; print(os.environ['XLA_FLAGS'])"
    pytest.importorskip("jax")
    for given in ("", "--xla_gpu_deterministic_ops=false"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"KERAS_BACKEND": "jax", "XLA_FLAGS": given},
            capture_output=True,
            text=True,
        )
        # Of a flag that is given twice, the last one counts.
        assert done.stdout.split() == ["--xla_gpu_deterministic_ops=true", *given.split()], (
            done.stderr
        )

"""What makes a step fast changes nothing: the same losses as through Keras' own code."""

import keras
import numpy as np
import pytest

import keras_ae
from keras_ae import layers, models, noise, tracking

torch_only = pytest.mark.skipif(keras.backend.backend() != "torch", reason="levers of torch")
STEPS, BATCH = 100, 16


class Losses(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(dict(logs))


@pytest.fixture
def plain_keras(monkeypatch):
    """A function that takes every shortcut away."""

    def take_away():
        monkeypatch.setattr(
            models, "run", lambda network, x, training: network(x, training=training)
        )
        monkeypatch.setattr(layers, "_fast", lambda layer, x: False)
        monkeypatch.setattr(tracking, "torch", None)
        monkeypatch.setattr(noise, "torch", None)

    return take_away


def train(model_class, backbone, digits, optimizer):
    keras.utils.set_random_seed(0)
    images, labels = digits[0][: BATCH * STEPS - 5], digits[1][: BATCH * STEPS - 5]
    model = model_class(latent_dim=4, backbone=backbone, hidden=(8, 8, 16))
    model.compile(optimizer)
    if model_class is not keras_ae.AE:
        model.seed_generator.state.assign([3, 0])
    losses = Losses()
    x = (images, labels) if model.num_classes else images
    history = model.fit(
        keras_ae.fitting.Feed(images, labels if model.num_classes else None, BATCH, seed=1),
        shuffle=False,
        callbacks=[losses],
        verbose=0,
        validation_data=(x,),
    )
    return losses.seen, history.history


@torch_only
@pytest.mark.parametrize("backbone", ["mlp", "conv"])
@pytest.mark.parametrize("name", ["AE", "VAE", "CVAE"])
def test_100_steps_are_those_of_plain_keras(name, backbone, digits, plain_keras):
    model_class = getattr(keras_ae, name)
    ours, history = train(model_class, backbone, digits, keras_ae.Adam(1e-3))
    plain_keras()
    plain, plain_history = train(model_class, backbone, digits, keras.optimizers.Adam(1e-3))
    assert len(ours) == STEPS and ours[0].keys() == plain[0].keys()
    for key in plain[0]:
        np.testing.assert_allclose([s[key] for s in ours], [s[key] for s in plain], rtol=1e-4)
    for key in plain_history:
        np.testing.assert_allclose(history[key], plain_history[key], rtol=1e-4)


@torch_only
def test_the_shortcuts_are_taken(digits, monkeypatch):
    """A release of Keras or torch that takes a lever away is noticed here, not only in the figures."""
    model = keras_ae.CVAE(backbone="conv")
    assert model.encoder in layers._ROUTES and model.decoder in layers._ROUTES
    calls = []
    original = keras.layers.Layer.__call__
    monkeypatch.setattr(
        keras.layers.Layer,
        "__call__",
        lambda self, *a, **k: calls.append(self.name) or original(self, *a, **k),
    )
    import torch

    x = [torch.tensor(digits[0][:4]), torch.tensor(digits[1][:4])]
    model.autoencode(x, training=True, sample=True)
    assert calls == []
    model.autoencode(x, training=False)
    assert calls


@torch_only
def test_noise_is_that_of_keras_and_follows_its_state():
    ours, theirs = noise.SeedGenerator(5), keras.random.SeedGenerator(5)
    for assigned in (None, [7, 100], [2**31 - 1, 3], [7, 100]):
        for generator in (ours, theirs):
            if assigned:
                generator.state.assign(assigned)
        for _ in range(3):
            drawn = [ours.normal((2, 3)), keras.random.normal((2, 3), seed=theirs)]
            first, second = (keras.ops.convert_to_numpy(x) for x in drawn)
            np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(ours.state.numpy(), theirs.state.numpy())


def test_tracked_means_are_those_of_keras():
    ours, theirs = (keras.metrics.Mean(name="mean") for _ in range(2))
    for value, n in ((1.5, 128), (-2.0, 128), (7.25, 3)):
        value = keras.ops.convert_to_tensor(value)
        tracking.track(ours, value, n)
        theirs.update_state(value, sample_weight=n)
        result = tracking.results([ours])["mean"]
        assert float(result) == pytest.approx(float(theirs.result()), rel=1e-6)


@torch_only
def test_users_own_networks_take_the_plain_path(digits):
    model = keras_ae.VAE(backbone="mlp")
    model.encoder = keras.Model(model.encoder.inputs, model.encoder.output)
    assert model.encoder not in layers._ROUTES
    model.compile(keras_ae.Adam(1e-3))
    history = model.fit(digits[0][:64], verbose=0)
    assert np.isfinite(history.history["loss"][0])

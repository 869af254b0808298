"""What makes a step fast changes nothing: the same losses as through Keras' own code."""

import shutil

import keras
import numpy as np
import pytest

import keras_ae
from keras_ae import layers, models, noise, ops, tracking, train_step
from keras_ae.feed import Feed

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
    operations = [name for name in vars(ops) if callable(getattr(keras.ops, name, None))]
    assert {"abs", "mean", "sum"} <= set(operations)

    def take_away():
        monkeypatch.setattr(
            models, "run", lambda network, x, training: network(x, training=training)
        )
        monkeypatch.setattr(layers, "_fast", lambda layer, x: False)
        monkeypatch.setattr(tracking, "torch", None)
        monkeypatch.setattr(noise, "torch", None)
        for name in operations:
            monkeypatch.setattr(ops, name, getattr(keras.ops, name))

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
        Feed(images, labels if model.num_classes else None, BATCH, seed=1),
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
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
def test_compiled_steps_are_those_of_the_others(digits):
    """A compiler at work: half a minute."""

    def losses(**arguments):
        keras.utils.set_random_seed(0)
        model = keras_ae.VAE(latent_dim=2, backbone="mlp", hidden=(8, 4))
        model.compile(keras_ae.Adam(1e-2), **arguments)
        model.seed_generator.state.assign([3, 0])
        x = digits[0][:192]
        callbacks = [keras_ae.KLAnnealing()]
        history = model.fit(x, batch_size=32, epochs=2, verbose=0, callbacks=callbacks).history
        return model, history

    (compiled, ours), (_, theirs) = losses(jit_compile=True, steps_per_execution=4), losses()
    assert compiled._compiled_loss is not None and ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, err_msg=name)


@torch_only
def test_the_shortcuts_are_taken(digits, monkeypatch):
    """A release of Keras or torch that takes a lever away is noticed here, not only in the figures."""
    model = keras_ae.CVAE(backbone="conv")
    assert hasattr(model.encoder, "_route") and hasattr(model.decoder, "_route")
    calls = []
    original = keras.layers.Layer.__call__
    monkeypatch.setattr(
        keras.layers.Layer,
        "__call__",
        lambda self, *a, **k: calls.append(self.name) or original(self, *a, **k),
    )
    import torch

    x = [torch.tensor(digits[0][:4]), torch.tensor(digits[1][:4])]
    model.autoencode(*model.split(x), training=True, sample=True)
    assert calls == []
    model.autoencode(*model.split(x), training=False)
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
    ours, theirs = ([keras.metrics.Mean(name=name) for name in "ab"] for _ in range(2))
    means = tracking.Means(ours)
    for *values, n in ((1.5, 3.0, 128), (-2.0, 0.5, 128), (7.25, -1.0, 3)):
        values = list(map(keras.ops.convert_to_tensor, values))
        means.add(dict(zip(ours, values)), n)
        for mean, value in zip(theirs, values):
            mean.update_state(value, sample_weight=n)
            expected = float(mean.result())
            assert float(means.results()[mean.name]) == pytest.approx(expected, rel=1e-6)


class Extended(keras_ae.VAE):
    """A term of its own, a metric that is no mean, a mean of its own, and one of ours that is hidden."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.variation_tracker = keras.metrics.Mean(name="total_variation")
        self.seen = keras.metrics.Sum(name="seen")
        self.mine = keras.metrics.Mean(name="mean_loss")

    @property
    def metrics(self):
        return [m for m in super().metrics if m.name != "kl_weight"]

    def loss_terms(self, image, outputs):
        constant = 5.0 * keras.ops.ones(keras.ops.shape(image)[:1])
        return {**super().loss_terms(image, outputs), "variation": constant}

    def compute_loss(self, x=None, **kwargs):
        self.seen.update_state(keras.ops.shape(x)[0])
        loss = super().compute_loss(x, **kwargs) + 1000.0
        self.mine.update_state(loss)
        return loss


def test_metrics_of_the_users_own_are_left_to_them(digits):
    model = Extended(latent_dim=2, backbone="mlp", hidden=(8, 4))
    model.compile(keras_ae.Adam(1e-3))
    history = model.fit(digits[0][:48], batch_size=16, verbose=0).history
    names = {"loss", "reconstruction", "kl", "total_variation", "seen", "mean_loss"}
    assert history.keys() == names
    assert history["seen"] == [48.0] and history["total_variation"] == [5.0]
    assert history["mean_loss"][0] == pytest.approx(history["loss"][0] + 1000.0, rel=1e-5)
    total = history["reconstruction"][0] + history["kl"][0]
    assert history["loss"][0] == pytest.approx(total, rel=1e-5)


def test_a_mean_of_the_users_own_may_have_a_name_of_ours(digits):
    class Named(keras_ae.VAE):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.mine = keras.metrics.Mean(name="loss")

        def compute_loss(self, x=None, **kwargs):
            loss = super().compute_loss(x, **kwargs) + 1000.0
            self.mine.update_state(loss)
            return loss

    model = Named(latent_dim=2, backbone="mlp", hidden=(8, 4))
    model.compile(keras_ae.Adam(1e-3))
    history = model.fit(digits[0][:48], batch_size=16, verbose=0).history
    total = history["reconstruction"][0] + history["kl"][0] + 1000.0
    assert history["loss"][0] == pytest.approx(total, rel=1e-5)


class Noise(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seed_generator)


def test_a_network_that_draws_draws_anew(digits):
    """Where a forward pass changes variables, they are kept; and a network that is changed runs changed."""
    latent = keras.Input((2,), name="latent")
    x = keras.layers.Dense(784, activation="sigmoid", name="pixels")(Noise()(latent))
    decoder = keras.Model(latent, keras.layers.Reshape((28, 28, 1))(x))
    model = keras_ae.VAE(latent_dim=2, backbone="mlp", hidden=(8, 4), decoder=decoder)
    codes = np.ones((4, 2), "float32")
    first, second = model.decode(codes, batch_size=2), model.decode(codes, batch_size=2)
    assert np.abs(first[:2] - first[2:]).max() > 0 and np.abs(first - second).max() > 0
    model.decoder.get_layer("pixels").activation = keras.activations.relu
    model.decoder.compile()
    assert model.decode(10.0 * codes).max() > 1.0


@pytest.mark.parametrize("reconstruction", ["l1", "mse", "bce"])
def test_a_decoder_in_half_precision(reconstruction, digits):
    latent = keras.Input((2,), name="latent")
    x = keras.layers.Dense(784, activation="sigmoid", dtype="mixed_bfloat16")(latent)
    decoder = keras.Model(latent, keras.layers.Reshape((28, 28, 1), dtype="mixed_bfloat16")(x))
    model = keras_ae.VAE(
        latent_dim=2,
        backbone="mlp",
        hidden=(8, 4),
        decoder=decoder,
        reconstruction=reconstruction,
    )
    model.compile(keras_ae.Adam(1e-3))
    history = model.fit(digits[0][:48], batch_size=16, verbose=0, epochs=2).history
    assert history["loss"][1] < history["loss"][0] < 1000.0


@torch_only
def test_low_rank_adapters_are_trained(digits):
    model = keras_ae.VAE(latent_dim=2, backbone="mlp", hidden=(8, 4))
    pixels = model.decoder.get_layer("pixels")
    pixels.enable_lora(2)
    model.compile(keras_ae.Adam(1e-2))
    model.fit(digits[0][:48], batch_size=16, verbose=0)
    assert np.abs(keras.ops.convert_to_numpy(pixels.lora_kernel_b)).max() > 0


@torch_only
def test_users_own_networks_take_the_plain_path(digits):
    model = keras_ae.VAE(backbone="mlp")
    model.encoder = keras.Model(model.encoder.inputs, model.encoder.output)
    assert not hasattr(model.encoder, "_route")
    model.compile(keras_ae.Adam(1e-3))
    history = model.fit(digits[0][:64], verbose=0)
    assert np.isfinite(history.history["loss"][0])


class Operations:
    """Counts torch's operations by name while it is entered, to see what would wait for a GPU."""

    def __enter__(self):
        from torch.utils._python_dispatch import TorchDispatchMode

        counts = self.counts = {}

        class Counter(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                counts[function._schema.name] = counts.get(function._schema.name, 0) + 1
                return function(*args, **(kwargs or {}))

        self._mode = Counter()
        self._mode.__enter__()
        return counts

    def __exit__(self, *error):
        self._mode.__exit__(*error)


# Reading a number back, sizes that depend on values, and a tensor from a Python number (a copy to the
# device): each has the host wait for the device.
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::lift_fresh"}


@torch_only
@pytest.mark.parametrize("backbone", ["mlp", "conv"])
def test_steps_read_nothing_back_from_the_device(backbone, digits):
    import torch

    model = keras_ae.CVAE(latent_dim=4, backbone=backbone, hidden=(8, 8, 16))
    model.compile(keras_ae.Adam(1e-3), steps_per_execution=3)
    batch = ((torch.tensor(digits[0][:8]), torch.tensor(digits[1][:8])),)
    model.make_train_function()
    model.train_function([batch])  # builds the optimizer, reads the seed
    model.execution.kl_weights = np.array([0.1, 0.2, 0.3], "float32")
    with Operations() as counts:
        model.train_function([batch] * 3)
    assert not WAITS & counts.keys()
    assert counts["aten::_fused_adam_"] == 3


@torch_only
def test_steps_on_cuda_do_not_wait(digits):
    """torch itself raises where the host would wait for the device. Needs a GPU."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model = keras_ae.CVAE(latent_dim=4)
    model.compile(keras_ae.Adam(1e-3), steps_per_execution=4)
    steps = list(train_step.batches(Feed(*digits, 64, seed=0)))
    assert steps[0][0][0].is_cuda
    model.make_train_function()
    model.train_function(steps[:4])
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.train_function(steps[4:8])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch_only
@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("resident", [False, True])
def test_batches_on_a_device_are_those_of_the_feed(resident, first, digits):
    from keras_ae.train_step.torch import Batches

    feed = Feed(digits[0][:50], digits[1][:50], 16, seed=1)
    batches = Batches(feed, "cpu", resident)
    for epoch in (0, 1):
        feed.set_epoch(epoch, first)
        assert len(batches) == len(feed) == len(list(batches)) == 4 - first
        for (pair,), (expected,) in zip(batches, feed, strict=True):
            for ours, theirs in zip(pair, expected, strict=True):
                np.testing.assert_array_equal(ours.numpy(), theirs)

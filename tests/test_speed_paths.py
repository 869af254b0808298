"""What makes a step fast changes nothing: the same losses as through Keras' own code."""

import shutil
import warnings

import keras
import numpy as np
import pytest

import keras_ae
from keras_ae import distributed, fast, gpu
from keras_ae.fast.networks import call_network
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
    return lambda: monkeypatch.setattr(fast, "ON", False)


def train(model_class, backbone, digits, optimizer):
    keras.utils.set_random_seed(0)
    images, labels = digits[0][: BATCH * STEPS - 5], digits[1][: BATCH * STEPS - 5]
    model = model_class(latent_dim=4, backbone=backbone, hidden=(8, 8, 16))
    model.compile(optimizer)
    if model_class is not keras_ae.AE:
        model.seed_generator.state.assign([3, 0])
    losses = Losses()
    x = (images, labels) if model.num_classes else images
    with gpu.in_float32():
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


@pytest.mark.long
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
    calls = []
    original = keras.layers.Layer.__call__
    monkeypatch.setattr(
        keras.layers.Layer,
        "__call__",
        lambda self, *a, **k: calls.append(self.name) or original(self, *a, **k),
    )
    import torch

    x = [torch.tensor(digits[0][:4]), torch.tensor(digits[1][:4])]
    for training in (True, False):
        model.forward(x, training=training, sample=training)
    assert calls == []
    monkeypatch.setattr(fast, "ON", False)
    model.forward(x, training=True, sample=True)
    assert calls


@torch_only
@pytest.mark.parametrize("state", [[0, 0], [7, 3], [-5, 2], [2**31 - 1, 2**31 - 2]])
def test_noise_of_an_execution_is_that_of_keras(state):
    model = keras_ae.VAE(backbone="mlp", hidden=(8,))
    model.seed_generator.state.assign(state)
    with model._looked_up():
        ours = [keras.ops.convert_to_numpy(model.noise((5, 3))) for _ in range(3)]
    after = model.seed_generator.state.numpy().tolist()
    model.seed_generator.state.assign(state)
    for noise in ours:
        theirs = keras.random.normal((5, 3), seed=model.seed_generator)
        np.testing.assert_array_equal(noise, keras.ops.convert_to_numpy(theirs))
    assert model.seed_generator.state.numpy().tolist() == after


@torch_only
def test_processes_share_the_noise_of_the_whole_batch(monkeypatch):
    whole = keras.ops.convert_to_numpy(
        keras.random.normal((7, 3), seed=keras.random.SeedGenerator(5))
    )
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(distributed, "total_over_processes", lambda n: 7)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        mine = distributed.normal((4 - rank, 3), keras.random.SeedGenerator(5))
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(mine), whole[rank::2])


@torch_only
@pytest.mark.parametrize("change", ["hook", "activation", "call", "adapter", "precision"])
def test_a_layer_that_is_changed_is_left_to_keras(change, digits):
    """Or its change is followed: what a network computes is what Keras computes of it."""
    model = keras_ae.VAE(latent_dim=2, backbone="mlp", hidden=(8, 4))
    dense, x = model.decoder.get_layer("dense_0"), keras.ops.ones((3, 2))

    def decoded():
        return keras.ops.convert_to_numpy(call_network(model.decoder, [x], training=True))

    before = decoded()
    if change == "hook":
        dense.register_forward_hook(lambda layer, inputs, output: output * 2.0)
    elif change == "activation":
        dense.activation = keras.activations.relu
    elif change == "call":
        dense.call = lambda inputs, training=None: keras.ops.ones((3, 4))
    elif change == "adapter":
        dense.enable_lora(2)
        dense.lora_kernel_b.assign(np.ones(dense.lora_kernel_b.shape))
    else:
        dense.dtype_policy = keras.DTypePolicy("mixed_bfloat16")
    changed = decoded()
    assert np.abs(changed - before).max() > 1e-6
    expected = keras.ops.convert_to_numpy(model.decoder(x, training=True))
    np.testing.assert_allclose(changed, expected, atol=1e-6)


@torch_only
def test_a_subclass_with_a_call_of_its_own_is_left_to_keras():
    class Doubled(keras.Model):
        def call(self, inputs, training=None):
            return 2 * super().call(inputs, training=training)

    x = keras.Input((3,))
    network = Doubled(x, keras.layers.Dense(2)(x))
    ones = keras.ops.ones((1, 3))
    np.testing.assert_allclose(
        *(keras.ops.convert_to_numpy(y) for y in (call_network(network, [ones]), network(ones)))
    )


LAYERS = {
    "conv": lambda: keras.layers.Conv2D(4, 3, padding="same", dilation_rate=2, activation="relu"),
    "groups": lambda: keras.layers.Conv2D(4, 3, strides=2, padding="same", groups=2),
    "valid": lambda: keras.layers.Conv2D(4, (2, 3), padding="valid", use_bias=False),
    "transposed": lambda: keras.layers.Conv2DTranspose(4, 4, strides=2, padding="same"),
    "odd transposed": lambda: keras.layers.Conv2DTranspose(4, 3, strides=2, padding="same"),
    "norm": lambda: keras.layers.BatchNormalization(),
    "norm over rows": lambda: keras.layers.BatchNormalization(axis=1),
    "norm without scale": lambda: keras.layers.BatchNormalization(scale=False),
    "dense of maps": lambda: keras.layers.Dense(3, use_bias=False),
    "cropping": lambda: keras.layers.Cropping2D(((1, 0), (2, 1))),
    "dropout": lambda: keras.layers.Dropout(0.5, seed=1),
    "rescaling": lambda: keras.layers.Rescaling(2.0, 0.5),
    "rescaling of channels": lambda: keras.layers.Rescaling([2.0, 3.0], [-0.5, 0.5]),
    "flatten": lambda: keras.layers.Flatten(),
    "flatten of channels first": lambda: keras.layers.Flatten(data_format="channels_first"),
    "norm of rows": lambda: (
        lambda x: keras.layers.BatchNormalization()(keras.layers.Reshape((9, 16))(x))
    ),
    "norm of square rows": lambda: (
        lambda x: keras.layers.BatchNormalization()(keras.layers.Reshape((12, 12))(x))
    ),
    "add of two ranks": lambda: (
        lambda x: keras.layers.Add()([x, keras.layers.Dense(2)(keras.layers.Flatten()(x))])
    ),
}


@torch_only
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("training", [False, True])
def test_every_layer_is_that_of_keras(name, training, images_of):
    keras.utils.set_random_seed(0)
    image = keras.Input((9, 8, 2))
    network = keras.Model(image, LAYERS[name]()(image))
    for weight in network.trainable_weights:
        weight.assign(np.random.default_rng(1).normal(size=weight.shape))
    x = keras.ops.convert_to_tensor(images_of((9, 8, 2), 6) / np.float32(255))
    other = keras.models.clone_model(network)
    other.set_weights(network.get_weights())
    ours, theirs = call_network(network, [x], training), other(x, training=training)
    ours, theirs = (keras.ops.convert_to_numpy(y) for y in (ours, theirs))
    if name == "dropout" and training:
        assert ((ours == 0) | (ours == 2 * keras.ops.convert_to_numpy(x))).all()
    else:
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    for a, b in zip(network.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@torch_only
def test_tracked_means_are_those_of_keras():
    from keras_ae.fast.executions_torch import RunningMeans

    ours, theirs = ([keras.metrics.Mean(name=name) for name in "ab"] for _ in range(2))
    means = RunningMeans(ours)
    for *values, n in ((1.5, 3.0, 128), (-2.0, 0.5, 128), (7.25, -1.0, 3)):
        values = list(map(keras.ops.convert_to_tensor, values))
        means.add(dict(zip(ours, values)), n)
        for mean, value in zip(theirs, values):
            mean.update_state(value, sample_weight=n)
            expected = float(mean.result())
            shown = means.results() or {mean.name: mean.result() for mean in ours}
            assert float(shown[mean.name]) == pytest.approx(expected, rel=1e-6)


class Extended(keras_ae.VAE):
    """A term of its own, a metric that is no mean, a mean of its own, and one of ours that is hidden."""

    terms = (*keras_ae.VAE.terms, "variation")

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = keras.metrics.Sum(name="seen")
        self.mine = keras.metrics.Mean(name="mean_loss")

    @property
    def metrics(self):
        return [m for m in super().metrics if m.name != "kl_weight"]

    def loss_terms(self, image, outputs):
        constant = 5.0 * keras.ops.ones(keras.ops.shape(image)[:1])
        return {**super().loss_terms(image, outputs), "variation": constant}

    def compute_loss(self, x=None, *args, **kwargs):
        self.seen.update_state(keras.ops.shape(x)[0])
        loss = super().compute_loss(x, *args, **kwargs) + 1000.0
        self.mine.update_state(loss)
        return loss


def test_metrics_of_the_users_own_are_left_to_them(digits):
    model = Extended(latent_dim=2, backbone="mlp", hidden=(8, 4))
    model.compile(keras_ae.Adam(1e-3))
    history = model.fit(digits[0][:48], batch_size=16, verbose=0).history
    names = {"loss", "reconstruction", "kl", "variation", "seen", "mean_loss"}
    assert history.keys() == names
    assert history["seen"] == [48.0] and history["variation"] == [5.0]
    assert history["mean_loss"][0] == pytest.approx(history["loss"][0], rel=1e-5)
    total = history["reconstruction"][0] + history["kl"][0] + 5.0 + 1000.0
    assert history["loss"][0] == pytest.approx(total, rel=1e-5)


def test_a_mean_of_the_users_own_may_have_a_name_of_ours(digits):
    class Named(keras_ae.VAE):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.mine = keras.metrics.Mean(name="loss")

        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs) + 1000.0
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
def test_a_network_of_one_tensor_is_called_without_a_warning(digits):
    image = keras.Input((28, 28, 1), name="image")
    rows = keras.layers.LayerNormalization()(
        keras.layers.Flatten()(image)
    )  # not known to `Program`
    heads = {name: keras.layers.Dense(2)(rows) for name in ("mean", "log_var")}
    model = keras_ae.VAE(latent_dim=2, encoder=keras.Model(image, heads), backbone="mlp")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(digits[0][:2])


@torch_only
def test_users_own_networks_take_the_plain_path(digits):
    model = keras_ae.VAE(backbone="mlp")
    model.encoder = keras.Model(model.encoder.inputs, model.encoder.output)
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


# What has the host wait for the device: sizes that depend on values, reading a number back, and a tensor from a
# Python number (a copy to the device). A step reads the seed of its noise, and makes tensors of the two bounds of
# the log-variance, and of the NaN of a label out of range.
WAITS = {
    "aten::nonzero": 0,
    "aten::masked_select": 0,
    "aten::_local_scalar_dense": 1,
    "aten::lift_fresh": 3,
}


@torch_only
@pytest.mark.parametrize("backbone", ["mlp", "conv"])
def test_steps_read_nothing_back_from_the_device_but_a_seed(backbone, digits):
    import torch

    model = keras_ae.CVAE(latent_dim=4, backbone=backbone, hidden=(8, 8, 16))
    model.compile(keras_ae.Adam(1e-3), steps_per_execution=3)
    batch = ((torch.tensor(digits[0][:8]), torch.tensor(digits[1][:8])),)
    model.make_train_function()
    model.train_function([batch])  # builds the optimizer, reads the seed
    model.inner_steps.kl_weights = np.array([0.1, 0.2, 0.3], "float32")
    with Operations() as counts:
        model.train_function([batch] * 3)
    for name, a_step in WAITS.items():
        assert counts.get(name, 0) <= 3 * a_step, name
    assert counts["aten::_fused_adam_"] == 3

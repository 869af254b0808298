"""The contract of every model, with every backbone, on images of every shape."""

import functools
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from scipy import special

from keras_ae import AE, CVAE, VAE, Adam, KLAnnealing, inference, train_step
from keras_ae.errors import UserError

MODELS = {"ae": AE, "vae": VAE, "cvae": CVAE}
SHAPES = [(28, 28, 1), (32, 32, 3), (20, 16, 1)]
CLASSES = 10


@pytest.fixture(params=MODELS)
def kind(request):
    return request.param


@pytest.fixture(params=["conv", "mlp"])
def backbone(request):
    return request.param


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def shape(request):
    return request.param


@pytest.fixture
def make(kind, backbone, shape):
    """The constructor of a small model of this contract."""
    keras.utils.set_random_seed(3)
    hidden = (4, 8, 16) if backbone == "conv" else (16, 8)
    extra = {"num_classes": CLASSES} if kind == "cvae" else {}
    return functools.partial(MODELS[kind], shape, 3, backbone, hidden, **extra)


@pytest.fixture
def data(kind, shape, images_of, digits):
    """A function: n inputs of the model, uint8 images or pairs of images and labels."""

    def inputs(n):
        images = images_of(shape, n)
        return (images, digits[1][:n]) if kind == "cvae" else images

    return inputs


def compiled(model, optimizer=None):
    model.compile(optimizer or keras.optimizers.SGD(1e-4))
    return model


def images(inputs):
    return inputs[0] if isinstance(inputs, tuple) else inputs


def as_floats(inputs):
    scaled = images(inputs).astype("float32") / 255
    return (scaled, inputs[1]) if isinstance(inputs, tuple) else scaled


def labels(inputs):
    return inputs[1] if isinstance(inputs, tuple) else None


def same_weights(a, b):
    """All weights, but not the states of random generators, which Keras saves with no model."""
    pairs = list(zip(a.weights, b.weights, strict=True))
    return all(np.array_equal(*map(keras.ops.convert_to_numpy, pair)) for pair in pairs)


def numpy_loss(model, inputs, kl_weight):
    """The loss of a batch by its formula, from the outputs of encoder and decoder alone.

    The noise of the posterior is switched off by a very small log-variance, see `certain`.
    """
    x = images(inputs).astype("float64") / 255
    condition = [] if labels(inputs) is None else [np.eye(CLASSES, dtype="float32")[inputs[1]]]
    heads = model.encoder.predict([x.astype("float32"), *condition], verbose=0)
    code = heads["code"] if "code" in heads else heads["mean"]
    rebuilt = model.decoder.predict([code, *condition], verbose=0).astype("float64")
    if model.reconstruction == "bce":
        error = -special.xlogy(x, rebuilt) - special.xlog1py(1 - x, -rebuilt)
    else:
        error = np.abs(x - rebuilt) if model.reconstruction == "l1" else (x - rebuilt) ** 2
    terms = {"reconstruction": error.reshape(len(x), -1).sum(1)}
    if "mean" in heads:
        mean, log_var = heads["mean"].astype("float64"), heads["log_var"].astype("float64")
        terms["kl"] = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).sum(1)
    terms["loss"] = terms["reconstruction"] + kl_weight * terms.get("kl", 0.0)
    return terms


def certain(model):
    """Make the posterior so narrow (standard deviation 5e-5) that its noise is not seen."""
    if isinstance(model, VAE):
        head = model.encoder.get_layer("log_var")
        head.kernel.assign(np.zeros(head.kernel.shape))
        head.bias.assign(np.full(head.bias.shape, -20.0))
    return model


class TestContract:
    def test_output_has_the_shape_of_the_input_and_is_in_0_1(self, make, data):
        inputs = data(5)
        output = make().predict(inputs, verbose=0)
        assert output.shape == images(inputs).shape and output.dtype == np.float32
        assert output.min() >= 0 and output.max() <= 1

    def test_uint8_and_float_input_agree(self, make, data):
        model, inputs = compiled(certain(make())), data(9)
        bytes_, floats = (f(inputs) for f in (lambda x: x, as_floats))
        np.testing.assert_allclose(
            model.predict(bytes_, verbose=0), model.predict(floats, verbose=0), atol=1e-6
        )
        np.testing.assert_allclose(model.encode(bytes_), model.encode(floats), atol=1e-6)
        losses = [model.evaluate(x, verbose=0, return_dict=True)["loss"] for x in (bytes_, floats)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)

    def test_reconstruct_is_predict_and_decode_of_encode(self, make, data):
        model, inputs = make(), data(9)
        rebuilt = model.reconstruct(inputs, batch_size=4)
        np.testing.assert_allclose(rebuilt, model.predict(inputs, verbose=0), atol=1e-6)
        decoded = model.decode(model.encode(inputs), labels(inputs))
        np.testing.assert_allclose(rebuilt, decoded, atol=1e-6)

    def test_every_batch_size_fits_every_length(self, make, data):
        model, steps = compiled(make()), 0
        for n, batch_size in ((130, 128), (23, 7), (5, 64), (1, 1)):
            inputs = data(n)
            history = model.fit(
                inputs, batch_size=batch_size, verbose=0, validation_data=(inputs,),
                validation_batch_size=batch_size,
            ).history  # fmt: skip
            steps += -(-n // batch_size)
            assert int(model.optimizer.iterations) == steps, "a batch was dropped"
            assert all(np.isfinite(values).all() for values in history.values())
            assert len(model.predict(inputs, batch_size=batch_size, verbose=0)) == n

    def test_loss_is_the_mean_over_images_of_the_formula(self, make, data):
        model, inputs = compiled(certain(make())), data(11)
        kl_weight = 0.3
        if hasattr(model, "kl_weight"):
            model.kl_weight.assign(kl_weight)
        # Batches of 4, 4 and 3: each image counts as much, whatever batch it is in.
        logs = model.evaluate(inputs, batch_size=4, verbose=0, return_dict=True)
        for name, values in numpy_loss(model, inputs, kl_weight).items():
            assert logs[name] == pytest.approx(values.mean(), rel=2e-4), name

    def test_a_step_minimises_the_loss_that_it_reports(self, make, data):
        """One step of SGD moves a weight by -rate * d loss / d weight, by finite differences."""
        model, inputs = compiled(certain(make()), keras.optimizers.SGD(1e-6)), data(6)
        bias = model.decoder.get_layer("pixels").bias
        start, h = keras.ops.convert_to_numpy(bias).copy(), 0.01
        values = []
        for step in (+h, -h):
            bias.assign(start + step)
            values.append(float(model.compute_loss(inputs, training=True)))
        slope = (values[0] - values[1]) / (2 * h)
        bias.assign(start)
        model.fit(inputs, batch_size=6, verbose=0)
        moved = keras.ops.convert_to_numpy(bias).astype("float64") - start
        assert moved.sum() / -1e-6 == pytest.approx(slope, rel=0.05)

    def test_sample_weight_weighs_images(self, make, data):
        model, inputs = compiled(certain(make())), data(6)
        weights = np.array([0, 0, 2, 0, 1, 0], "float32")
        kwargs = {"batch_size": 6, "verbose": 0}
        loss = numpy_loss(model, inputs, 1.0)["loss"]
        for given in (weights, weights[:, None]):
            logs = model.evaluate(inputs, sample_weight=given, return_dict=True, **kwargs)
            assert logs["loss"] == pytest.approx((loss * weights).mean(), rel=2e-4)
        assert np.isfinite(model.fit(inputs, sample_weight=weights, **kwargs).history["loss"]).all()

    def test_a_huge_input_gives_a_finite_loss(self, make, data):
        model = compiled(make())
        inputs = data(4)
        huge = images(inputs).astype("float32") * 1e6
        huge = huge if labels(inputs) is None else (huge, inputs[1])
        assert np.isfinite(float(model.compute_loss(huge, training=False)))
        with pytest.raises(ValueError, match="floats in .0, 1."):
            model.evaluate(huge, verbose=0)

    def test_a_saved_model_is_the_same_model_and_trains_on(self, make, data, tmp_path):
        model, inputs = compiled(make(), Adam(1e-3)), data(20)
        model.fit(inputs, batch_size=8, epochs=2, verbose=0)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        assert type(loaded) is type(model)
        # As JSON: in what is loaded, tuples are lists.
        assert json.dumps(loaded.get_config()) == json.dumps(model.get_config())
        assert same_weights(model, loaded)
        np.testing.assert_array_equal(
            model.predict(inputs, verbose=0), loaded.predict(inputs, verbose=0)
        )
        ours, theirs = model.optimizer.variables, loaded.optimizer.variables
        assert int(theirs[0]) == 6 and len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (a, b)))
        loaded.fit(inputs, batch_size=8, verbose=0)
        assert int(loaded.optimizer.iterations) == 9

    def test_config_round_trip(self, make):
        model = make(reconstruction="mse")
        copy = type(model).from_config(model.get_config())
        assert copy.get_config() == model.get_config()
        shapes = [[tuple(w.shape) for w in m.weights] for m in (model, copy)]
        assert shapes[0] == shapes[1]

    def test_every_layer_is_named_and_not_numbered(self, make):
        models = [make(name="model") for _ in range(2)]
        paths = [[w.path for w in model.weights] for model in models]
        assert paths[0] == paths[1]


@pytest.fixture(params=[("ae", "mlp"), ("vae", "mlp"), ("cvae", "mlp")], ids=lambda p: p[0])
def small(request, images_of, digits):
    """(compiled model, inputs) of one shape, for what does not depend on the networks."""
    keras.utils.set_random_seed(4)
    kind, backbone = request.param
    model = compiled(MODELS[kind]((28, 28, 1), 3, backbone, (16,)), Adam(1e-3))
    return model, (digits[0][:40], digits[1][:40]) if kind == "cvae" else digits[0][:40]


def test_train_step_is_overridden_on_the_training_backends():
    assert keras.backend.backend() in ("torch", "jax", "tensorflow")
    for step in ("train_step", "test_step"):
        assert getattr(AE, step).__module__ == f"keras_ae.train_step.{keras.backend.backend()}"
        assert getattr(CVAE, step) is getattr(train_step.StepMixin, step)


def test_plain_keras_callbacks(small, tmp_path):
    model, inputs = small
    callbacks = [
        keras.callbacks.EarlyStopping("val_reconstruction", mode="min", patience=1, min_delta=1e9),
        keras.callbacks.ModelCheckpoint(
            tmp_path / "best.keras", "val_reconstruction", mode="min", save_best_only=True
        ),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.ReduceLROnPlateau(
            "val_loss", mode="min", patience=1, factor=0.5, min_delta=1e9
        ),
    ]
    kwargs = {"epochs": 5, "batch_size": 16, "verbose": 0, "validation_data": (inputs,)}
    history = model.fit(inputs, callbacks=callbacks, **kwargs).history
    assert len(history["loss"]) == 2, "EarlyStopping did not stop"
    assert float(model.optimizer.learning_rate) == pytest.approx(5e-4), "ReduceLROnPlateau"
    header = (tmp_path / "log.csv").read_text().splitlines()[0].split(",")
    assert set(header) == {"epoch", *history} - {"learning_rate"} | {"learning_rate"} & set(header)
    best = keras.saving.load_model(tmp_path / "best.keras")
    logs = best.evaluate(inputs, verbose=0, return_dict=True)
    assert logs["reconstruction"] == pytest.approx(min(history["val_reconstruction"]), rel=0.05)


def test_logs_are_the_terms_and_their_validation_twins(small):
    model, inputs = small
    history = model.fit(inputs, verbose=0, validation_data=(inputs,)).history
    names = {"loss", "reconstruction"} | ({"kl", "kl_weight"} if isinstance(model, VAE) else set())
    assert set(history) == names | {f"val_{name}" for name in names}


def test_training_brings_the_loss_down(small):
    model, inputs = small
    loss = model.fit(inputs, batch_size=10, epochs=15, verbose=0).history["loss"]
    assert loss[-1] < 0.75 * loss[0]


def test_one_seed_trains_to_the_same_weights():
    def train():
        keras.utils.set_random_seed(5)
        model = compiled(VAE((8, 8, 1), 2, "mlp", (8,)), Adam(1e-2))
        model.fit(np.full((32, 8, 8, 1), 99, "uint8"), epochs=3, batch_size=8, verbose=0)
        return model

    assert same_weights(train(), train())


@pytest.mark.parametrize("model", [VAE, CVAE])
def test_mean_and_log_variance_have_a_head_each(model):
    vae = model((28, 28, 1), 3, "mlp", (8,))
    mean, log_var = vae.encoder.get_layer("mean"), vae.encoder.get_layer("log_var")
    assert {id(w) for w in mean.weights}.isdisjoint(id(w) for w in log_var.weights)


def test_training_and_evaluation_draw_codes_and_predict_does_not(digits):
    vae, x = VAE((28, 28, 1), 3, "mlp", (8,)), digits[0][:8]
    twice = [keras.ops.convert_to_numpy(vae(x, training=True)) for _ in range(2)]
    assert np.abs(twice[0] - twice[1]).max() > 1e-3
    np.testing.assert_array_equal(vae.predict(x, verbose=0), vae.predict(x, verbose=0))
    compiled(vae)
    assert vae.evaluate(x, verbose=0) != vae.evaluate(x, verbose=0)


def test_codes_have_the_mean_and_spread_of_the_posterior(digits):
    """With the identity as its decoder, a model shows its codes."""
    vae, x = VAE((1, 1, 2), 2, "mlp", (8,)), np.zeros((20_000, 1, 1, 2), "uint8")
    vae.encoder.get_layer("mean").bias.assign([1.0, -3.0])
    vae.encoder.get_layer("log_var").bias.assign([0.0, -2.0])
    latent = keras.Input((2,))
    vae.decoder = keras.Model([latent], keras.layers.Reshape((1, 1, 2))(latent))
    outputs = vae.forward(x, sample=True)
    z = keras.ops.convert_to_numpy(outputs["reconstruction"])[:, 0, 0]
    np.testing.assert_allclose(z.mean(0), [1.0, -3.0], atol=0.03)
    np.testing.assert_allclose(z.std(0), np.exp([0.0, -1.0]), rtol=0.03)


def test_kl_weight_is_saved_with_the_model_and_not_trained(digits, tmp_path):
    vae = compiled(VAE((28, 28, 1), 2, "mlp", (8,)))
    vae.fit(digits[0][:16], epochs=4, verbose=0, callbacks=[KLAnnealing(weight=0.37)])
    assert not any(w.path.endswith("kl_weight") for w in vae.trainable_weights)
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    assert float(loaded.kl_weight) == pytest.approx(0.37)


@pytest.mark.parametrize("model", [VAE, CVAE])
def test_sample(model):
    vae = model((20, 16, 1), 2, "mlp", (8,))
    y = np.arange(7) % 3 if model is CVAE else None
    a, b, other = (vae.sample(7, y, seed=s, batch_size=3) for s in (1, 1, 2))
    assert a.shape == (7, 20, 16, 1) and a.dtype == np.float32
    assert a.min() >= 0 and a.max() <= 1
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - other).max() > 1e-3


def test_sample_of_no_images_is_no_images():
    assert VAE((20, 16, 1), 2, "mlp", (8,)).sample(0).shape == (0, 20, 16, 1)
    assert CVAE((20, 16, 1), 2, "mlp", (8,)).sample(0, 3).shape == (0, 20, 16, 1)


def test_fewer_samples_than_none():
    with pytest.raises(ValueError, match="n must be a whole number, 0 or more"):
        VAE((8, 8, 1), 2, "mlp", (4,)).sample(-1)


@pytest.mark.parametrize("batch_size", [0, -1, None, 2.5])
@pytest.mark.parametrize("method", ["encode", "reconstruct", "posterior", "decode"])
def test_batches_of_no_count(method, batch_size):
    vae = VAE((8, 8, 1), 2, "mlp", (4,))
    inputs = np.zeros((3, 2)) if method == "decode" else np.zeros((3, 8, 8, 1))
    with pytest.raises(
        ValueError, match=f"batch_size must be a whole number, 1 or more; got {batch_size}"
    ):
        getattr(vae, method)(inputs, batch_size=batch_size)


def test_batches_without_end_are_refused(monkeypatch):
    tf = pytest.importorskip("tensorflow")
    vae, images = VAE((8, 8, 1), 2, "mlp", (4,)), np.zeros((3, 8, 8, 1), "float32")
    endless = tf.data.Dataset.from_tensor_slices(images).batch(2).repeat()
    for method in (vae.encode, vae.fit_prior):
        with pytest.raises(ValueError, match="repeat without end: leave repeat.. out, or take"):
            method(endless)
    assert len(vae.encode(endless.take(5))) == 2 + 1 + 2 + 1 + 2
    monkeypatch.setattr(inference, "LEAST", 10_000)
    monkeypatch.setenv("KAE_MEMORY", "0")
    with pytest.raises(UserError, match="The memory of .* outputs"):
        vae.encode((images,) for _ in iter(int, 1))


def test_sizes_may_be_numbers_of_numpy():
    vae = CVAE(np.array([8, 8, 1]), np.int64(2), "mlp", (4,), num_classes=np.int32(3))
    assert vae.get_config()["image_shape"] == (8, 8, 1) and type(vae.latent_dim) is int
    assert vae.sample(2, np.array([0, 2])).shape == (2, 8, 8, 1)
    with pytest.raises(ValueError, match="latent_dim must be a whole number, 1 or more; got 2.0"):
        VAE((8, 8, 1), 2.0, "mlp", (4,))


@pytest.mark.parametrize("model", [VAE, CVAE])
def test_more_samples_than_memory_holds(model):
    """They are refused before a code is drawn."""
    with pytest.raises(UserError, match="1,000,000,000,000 images would be about"):
        model((8, 8, 1), 2, "mlp", (4,)).sample(10**12, 3 if model is CVAE else None)


def test_sample_of_a_cvae_depends_on_the_label_alone_beside_the_seed():
    cvae = CVAE((20, 16, 1), 2, "mlp", (8,), num_classes=4)
    fives, threes = cvae.sample(6, 2, seed=1), cvae.sample(6, 3, seed=1)
    assert np.abs(fives - threes).max() > 1e-3
    np.testing.assert_allclose(cvae.sample(6, [2] * 6, seed=1), fives, atol=1e-7)


@pytest.mark.parametrize("model", [VAE, CVAE])
def test_a_fitted_prior_is_drawn_from_and_saved(model, digits, tmp_path):
    vae = model((28, 28, 1), 2, "mlp", (8,))
    inputs = (digits[0][:300], digits[1][:300]) if model is CVAE else digits[0][:300]
    y = np.arange(5) if model is CVAE else None
    before = vae.sample(5, y, seed=1)
    vae.encoder.get_layer("mean").bias.assign([5.0, -5.0])
    vae.fit_prior(inputs)
    fitted = vae.sample(5, y, seed=1)
    assert np.abs(fitted - before).max() > 1e-3
    np.testing.assert_allclose(vae.sample(5, y, seed=1, prior="normal"), before, atol=1e-6)
    codes = vae.prior.draw(500, np.arange(500) % 10 if model is CVAE else None, seed=0)
    np.testing.assert_allclose(codes.mean(0), vae.encode(inputs).mean(0), atol=0.3)
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    np.testing.assert_array_equal(loaded.sample(5, y, seed=1), fitted)


def test_fitting_the_prior_twice_leaves_one(digits):
    vae = VAE((28, 28, 1), 2, "mlp", (8,))
    vae.fit_prior(digits[0][:50])
    count = len(vae.weights)
    vae.fit_prior(digits[0][:50])
    assert len(vae.weights) == count


def test_posterior_is_clamped(digits):
    vae = VAE((28, 28, 1), 2, "mlp", (8,))
    vae.encoder.get_layer("log_var").bias.assign([-1e4, 1e4])
    mean, log_var = vae.posterior(digits[0][:3])
    assert mean.shape == (3, 2)
    np.testing.assert_array_equal(log_var, [[-30.0, 20.0]] * 3)


def test_class_names_travel_in_the_config():
    cvae = CVAE((28, 28, 1), 2, "mlp", (8,), num_classes=2, class_names=("cat", "dog"))
    copy = CVAE.from_config(cvae.get_config())
    assert copy.class_names == ("cat", "dog") and copy.num_classes == 2


LABEL_ERRORS = [
    (CVAE, None, "needs a label, 0 to 9"),
    (CVAE, 10, "0 to 9"),
    (CVAE, -1, "0 to 9"),
    (CVAE, [0, 1, 10, 2], "0 to 9"),
    (VAE, 3, "no classes"),
]


@pytest.mark.parametrize(("model", "label", "message"), LABEL_ERRORS)
def test_wrong_labels_of_sample(model, label, message):
    with pytest.raises(ValueError, match=message):
        model((8, 8, 1), 2, "mlp", (4,)).sample(4, label)


def test_a_cvae_without_labels_says_how_to_give_them(digits):
    with pytest.raises(ValueError, match=r"fit\(\(images, labels\)\)"):
        compiled(CVAE((28, 28, 1), 2, "mlp", (4,))).fit(digits[0][:4], verbose=0)


WRONG_ARGUMENTS = [
    (AE, {"image_shape": (28, 28)}, "height, width, channels"),
    (AE, {"image_shape": (0, 28, 1)}, "height, width, channels"),
    (AE, {"latent_dim": 0}, "latent_dim must be a whole number, 1 or more; got 0"),
    (AE, {"backbone": "resnet"}, "conv, mlp; got 'resnet'"),
    (AE, {"reconstruction": "l3"}, "l1, mse, bce; got 'l3'"),
    (CVAE, {"num_classes": 0}, "num_classes must be a whole number, 1 or more; got 0"),
    (CVAE, {"num_classes": 3, "class_names": ["a"]}, "1 class names were given for 3 classes"),
    (CVAE, {"num_classes": 2, "class_names": ["a", "a"]}, "2 classes have the name 'a'"),
    (CVAE, {"num_classes": 2, "class_names": ["a", "b" * 256]}, "class 1 .* at most 255 letters"),
    (CVAE, {"num_classes": 2, "class_names": [0, 1]}, "class 0 must be a text"),
]


@pytest.mark.parametrize(("model", "arguments", "message"), WRONG_ARGUMENTS)
def test_wrong_arguments(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model(**arguments)


def test_sample_refuses_an_unknown_prior():
    with pytest.raises(ValueError, match="'fitted' or 'normal'"):
        VAE((8, 8, 1), 2, "mlp", (4,)).sample(1, prior="uniform")


def own_networks(kind, shape, latent_dim=3):
    """An encoder and a decoder as a user writes them, with plain layers of Keras."""
    height, width, channels = shape
    image, code = keras.Input(shape, name="image"), keras.Input((latent_dim,), name="latent")
    label = [keras.Input((CLASSES,), name="label")] if kind == "cvae" else []
    x = keras.layers.Conv2D(3, 3, strides=2, padding="same", name="conv")(image)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Concatenate(name="join")([x, *label]) if label else x
    heads = MODELS[kind].heads
    outputs = {head: keras.layers.Dense(latent_dim, name=head)(x) for head in heads}
    encoder = keras.Model([image, *label], outputs)
    x = keras.layers.Concatenate(name="join")([code, *label]) if label else code
    x = keras.layers.Dense(height * width * channels, "sigmoid", name="pixels")(x)
    decoder = keras.Model([code, *label], keras.layers.Reshape(shape, name="reshape")(x))
    return {"encoder": encoder, "decoder": decoder}


class TestContractOfOwnNetworks(TestContract):
    @pytest.fixture
    def backbone(self):
        return "own"

    @pytest.fixture
    def shape(self):
        return (20, 16, 1)

    @pytest.fixture
    def make(self, kind, shape):
        def model(**kwargs):
            keras.utils.set_random_seed(3)
            extra = {"num_classes": CLASSES} if kind == "cvae" else {}
            return MODELS[kind](shape, 3, **own_networks(kind, shape), **extra, **kwargs)

        return model


@keras.saving.register_keras_serializable("tests")
class Heads(keras.Model):
    """A class of the user's, with two outputs in a list."""

    def __init__(self, latent_dim, **kwargs):
        super().__init__(**kwargs)
        self.latent_dim = latent_dim
        self.flatten = keras.layers.Flatten()
        self.mean = keras.layers.Dense(latent_dim)
        self.log_var = keras.layers.Dense(latent_dim, kernel_initializer="zeros")

    def call(self, image):
        x = self.flatten(image)
        return [self.mean(x), self.log_var(x)]

    def get_config(self):
        return {**super().get_config(), "latent_dim": self.latent_dim}


def test_layers_are_frozen_between_two_fits(digits):
    """What a step trains is looked up anew at each `fit`, as Keras does after `compile`."""
    vae = compiled(VAE(latent_dim=2, backbone="mlp", hidden=(8,)))
    vae.fit(digits[0][:64], batch_size=32, verbose=0)
    vae.encoder.trainable = False
    vae.compile(Adam(1e-2))
    encoder, decoder = ([w.copy() for w in n.get_weights()] for n in (vae.encoder, vae.decoder))
    vae.fit(digits[0][:64], batch_size=32, verbose=0)
    assert all(
        np.array_equal(a, b) for a, b in zip(encoder, vae.encoder.get_weights(), strict=True)
    )
    assert not any(np.array_equal(a, b) for a, b in zip(decoder, vae.decoder.get_weights()))


class TestOwnNetworks:
    def test_a_class_and_a_sequential(self, digits, tmp_path):
        from keras_ae import checkpoints

        layers = [keras.layers.Dense(784, "sigmoid"), keras.layers.Reshape((28, 28, 1))]
        vae = compiled(VAE((28, 28, 1), 2, encoder=Heads(2), decoder=keras.Sequential(layers)))
        before = [keras.ops.convert_to_numpy(w) for w in vae.trainable_weights]
        assert len(before) == 6  # two heads and one dense layer: kernels and biases
        vae.fit(digits[0][:64], batch_size=32, epochs=2, verbose=0)
        after = [keras.ops.convert_to_numpy(w) for w in vae.trainable_weights]
        assert all(not np.array_equal(a, b) for a, b in zip(before, after))
        vae.fit_prior(digits[0][:64])
        checkpoints.save_model(vae, tmp_path / "own.keras")
        again = keras.saving.load_model(tmp_path / "own.keras")
        assert again.custom_networks == ("encoder", "decoder")
        assert same_weights(vae, again)
        assert np.array_equal(vae.sample(4, seed=1), again.sample(4, seed=1))
        checkpoints.save_model(again, tmp_path / "twice.keras")
        twice = keras.saving.load_model(tmp_path / "twice.keras")
        assert twice.encoder.get_config() == again.encoder.get_config()  # no shell around the shell

    def test_files_that_anybody_may_have_made_are_ours_alone(self, tmp_path):
        from keras_ae import checkpoints

        VAE((28, 28, 1), 2, "mlp", (8,), encoder=Heads(2)).save(tmp_path / "own.keras")
        with pytest.raises(checkpoints.CheckpointError, match="keras.saving.load_model reads it"):
            checkpoints.load_model(tmp_path / "own.keras")

    def test_one_of_the_two(self, digits):
        vae = VAE((28, 28, 1), 2, "mlp", (8,), encoder=Heads(2))
        assert vae.custom_networks == ("encoder",) and vae.decoder.get_layer("dense_0").units == 8
        assert vae.reconstruct(digits[0][:3]).shape == (3, 28, 28, 1)

    def test_a_class_that_is_not_registered_is_not_loaded(self, tmp_path):
        from keras_ae import checkpoints

        class Secret(Heads):
            pass

        vae = VAE((28, 28, 1), 2, "mlp", (8,), encoder=Secret(2))
        with pytest.raises(checkpoints.CheckpointError, match="locate class 'Secret'") as error:
            checkpoints.save_model(vae, tmp_path / "own.keras")
        vae.save(tmp_path / "own.keras")
        with pytest.raises(TypeError, match="Could not locate class 'Secret'"):
            keras.saving.load_model(tmp_path / "own.keras")
        assert "\n" not in str(error.value)

    def test_code_in_the_file_is_not_run(self, tmp_path):
        from keras_ae import checkpoints

        image = keras.Input((28, 28, 1), name="image")
        x = keras.layers.Lambda(lambda x: x * 2.0, output_shape=(28, 28, 1))(image)
        x = keras.layers.Dense(2, name="code")(keras.layers.Flatten()(x))
        ae = AE((28, 28, 1), 2, "mlp", (8,), encoder=keras.Model(image, {"code": x}))
        with pytest.raises(checkpoints.CheckpointError, match="`Lambda`"):
            checkpoints.save_model(ae, tmp_path / "own.keras")
        ae.save(tmp_path / "own.keras")
        with pytest.raises(ValueError, match="`Lambda`"):
            keras.saving.load_model(tmp_path / "own.keras")

    @pytest.mark.parametrize(
        "cls, part, network, message",
        [
            (
                VAE,
                "encoder",
                lambda: Heads(3),
                r"must return mean \(None, 2\), log_var \(None, 2\)",
            ),
            (AE, "encoder", lambda: Heads(2), r"must return code \(None, 2\); it returns \["),
            (AE, "encoder", lambda: keras.layers.Dense(2), "must be a keras.Model; got Dense"),
            (CVAE, "encoder", lambda: Heads(2), r"must take image \(None, 28, 28, 1\), label"),
            (
                AE,
                "decoder",
                lambda: keras.Sequential([keras.Input((3,)), keras.layers.Dense(784)]),
                r"decoder must take latent \(None, 2\); it takes \(None, 3\)",
            ),
            (
                AE,
                "decoder",
                lambda: keras.Sequential([keras.layers.Dense(784)]),
                r"must return images \(None, 28, 28, 1\); it returns \(None, 784\)",
            ),
        ],
    )
    def test_other_shapes_are_refused_in_one_line(self, cls, part, network, message):
        with pytest.raises(ValueError, match=message) as error:
            cls((28, 28, 1), 2, **{part: network()})
        assert "\n" not in str(error.value)


def test_the_program_in_the_documentation_runs(mnist_env, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs" / "your-own-networks.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec(page.partition("```python\n")[2].partition("```")[0], {})
    assert capsys.readouterr().out.strip().endswith("(4, 28, 28, 1)")

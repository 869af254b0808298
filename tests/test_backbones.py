"""The networks that follow the image's shape: shapes, weights, and first steps that do not explode."""

import keras
import numpy as np
import pytest

import keras_ae
from keras_ae import AE, CVAE, VAE, checkpoints
from keras_ae.backbones import BACKBONES, count_weights
from keras_ae.resampling import Down, Up
from keras_ae.settings import SIZES

SHAPES = [(28, 28, 1), (5, 7, 2), (64, 64, 3), (65, 51, 3), (48, 64, 3), (1, 1, 1)]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_any_shape_comes_back_and_its_weights_are_counted(shape, size, backbone):
    model = CVAE(shape, 5, backbone, size=size, num_classes=3)
    assert model.decoder.output.shape[1:] == shape
    counted = count_weights(shape, 5, 2, backbone, num_classes=3, size=size)
    assert counted == model.encoder.count_params() + model.decoder.count_params()


@pytest.mark.parametrize(("side", "most"), [(128, 6_000_000), (256, 8_000_000)])
def test_weights_grow_little_with_the_side(side, most):
    assert count_weights((side, side, 3), 128, 2) <= most


def test_sizes_are_ordered():
    for shape in SHAPES[:3]:
        counts = [count_weights(shape, 16, 2, size=size) for size in SIZES]
        assert counts == sorted(counts)


def test_shortcuts_keep_what_they_can():
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 4)).astype("float32")
    numpy = keras.ops.convert_to_numpy
    up = numpy(Up(4)(x))
    np.testing.assert_array_equal(up, x.repeat(2, 1).repeat(2, 2))
    np.testing.assert_allclose(numpy(Down(4)(up)), x, rtol=1e-6)
    halves = numpy(Up(2)(x))
    np.testing.assert_array_equal(halves[:, :, ::2], x[..., :2].repeat(2, 1))
    np.testing.assert_array_equal(halves[:, :, 1::2], x[..., 2:].repeat(2, 1))
    np.testing.assert_allclose(numpy(Down(4)(halves)), x, rtol=1e-6)
    assert Down(8)(x).shape == (2, 3, 3, 8)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("shape", [(28, 28, 3), (64, 64, 3)], ids=["28", "64"])
def test_no_first_step_explodes(shape, backbone):
    # On bright images, at Adam's default rate: 65,000 times the first loss, before the inputs were scaled.
    rows, columns = np.mgrid[: shape[0], : shape[1]] / shape[0]
    waves = np.random.default_rng(0).normal(size=(64, 2))
    grey = [np.sin(6 * (a * rows + b * columns)) for a, b in waves]
    x = (220 + 30 * np.stack(grey)[..., None]).repeat(3, -1).astype("uint8")
    for seed in range(3):
        keras.utils.set_random_seed(seed)
        vae = VAE(shape, 16, backbone)
        vae.compile(keras.optimizers.Adam())
        losses = [vae.train_on_batch(x[i : i + 32]) for i in (0, 32) * 3]
        losses = [float(np.asarray(loss).ravel()[0]) for loss in losses]
        assert max(losses) < 2 * losses[0]


@pytest.mark.long
def test_an_ae_of_dense_layers_leaves_black_behind(digits):
    # The median digit is black, which costs 103. With Glorot's variance later epochs still did.
    keras.utils.set_random_seed(0)
    ae = AE(backbone="mlp")
    ae.compile(keras_ae.Adam(), steps_per_execution=8)
    history = ae.fit(digits[0], batch_size=128, epochs=2, verbose=0).history
    assert history["reconstruction"][-1] < 98


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_model_of_format_1_is_what_it_was(backbone, tmp_path):
    # 0.1.0 knew no size, and scaled no inputs.
    config = {**VAE((32, 32, 3), 4, backbone).get_config(), "format": 1}
    del config["size"]
    model = VAE.from_config(config)
    assert not any(isinstance(layer, keras.layers.Rescaling) for layer in model.encoder.layers)
    path = tmp_path / "model.keras"
    checkpoints.save_model(model, path)
    again = checkpoints.load_model(path)
    assert again.get_config()["format"] == 1
    x = np.random.default_rng(0).random((2, 32, 32, 3), "float32")
    np.testing.assert_allclose(again.reconstruct(x), model.reconstruct(x), atol=1e-6)

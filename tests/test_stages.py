"""The backbone that follows the side: shapes, weights, and a first step that stays on the ground."""

import keras
import numpy as np
import pytest

from keras_ae import VAE, stages

HEADS = ("mean", "log_var")


def networks(shape, latent_dim=16, size="base", classes=0):
    return (
        stages.build_encoder(shape, latent_dim, HEADS, size, classes),
        stages.build_decoder(shape, latent_dim, size, classes),
    )


@pytest.mark.parametrize("size", stages.SIZES)
@pytest.mark.parametrize(
    "shape", [(28, 28, 1), (5, 7, 2), (64, 64, 3), (65, 51, 3), (48, 64, 3), (1, 1, 1)]
)
def test_any_shape_comes_back_and_weights_are_counted(shape, size):
    encoder, decoder = networks(shape, size=size, classes=3)
    assert decoder.output.shape[1:] == shape
    counted = stages.count_weights(shape, 16, len(HEADS), size, 3)
    assert counted == encoder.count_params() + decoder.count_params()


@pytest.mark.parametrize(("side", "most"), [(128, 6_000_000), (256, 8_000_000)])
def test_weights_grow_little_with_the_side(side, most):
    assert stages.count_weights((side, side, 3), 128, 2) <= most


def test_shortcuts_keep_what_they_can():
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 4)).astype("float32")
    up = stages.Up(4)(x)
    np.testing.assert_array_equal(up, x.repeat(2, 1).repeat(2, 2))
    np.testing.assert_allclose(stages.Down(4)(up), x, rtol=1e-6)
    halves = stages.Up(2)(x)
    np.testing.assert_array_equal(halves[:, ::2, ::2], x[..., :2])
    np.testing.assert_array_equal(halves[:, 1::2, 1::2], x[..., 2:])
    np.testing.assert_allclose(stages.Down(4)(halves), x, rtol=1e-6)
    assert stages.Down(8)(x).shape == (2, 3, 3, 8)


@pytest.mark.parametrize("rate", [1e-3, 4e-3])
@pytest.mark.parametrize("shape", [(28, 28, 1), (28, 28, 3), (64, 64, 3)])
def test_no_step_explodes(shape, rate):
    x = np.random.default_rng(0).integers(0, 256, (64, *shape), dtype="uint8")
    for seed in range(3):
        keras.utils.set_random_seed(seed)
        encoder, decoder = networks(shape)
        vae = VAE(shape, 16, encoder=encoder, decoder=decoder)
        vae.compile(keras.optimizers.Adam(rate))
        losses = [
            vae.fit(x, batch_size=32, epochs=1, verbose=0).history["loss"][0] for _ in range(3)
        ]
        assert max(losses) < 2 * losses[0]

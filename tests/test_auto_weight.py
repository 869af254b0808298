"""`kl_weight="auto"`: the likelihood's own scale, a state of the model."""

import json

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from kae.main import cli

from keras_ae import CVAE, VAE, KLAnnealing, checkpoints
from keras_ae.losses import SCALE_MOMENTUM


def auto(**kwargs):
    keras.utils.set_random_seed(1)
    vae = VAE((28, 28, 1), 3, "mlp", (16, 8), kl_weight="auto", **kwargs)
    vae.compile(keras.optimizers.Adam(1e-3))
    return vae


@pytest.mark.parametrize("name", ["l1", "mse"])
def test_it_follows_the_mean_error_of_a_value(digits, name):
    vae = auto(reconstruction=name)
    x = digits[0][:64]
    vae.compile(keras.optimizers.SGD(0.0))  # the same error at every step, but for the noise
    history = vae.fit(x, batch_size=64, epochs=3, verbose=0).history
    error = np.array(history["reconstruction"]) / 784 * (1 if name == "l1" else 2)
    expected = error[0]
    for value in error[1:]:
        expected += (1 - SCALE_MOMENTUM) * (value - expected)
    assert vae.scale_of_likelihood() == pytest.approx(expected, rel=1e-5)
    weighed = np.array(history["reconstruction"]) + history["likelihood_scale"] * np.array(
        history["kl"]
    )
    np.testing.assert_allclose(history["loss"], weighed, rtol=1e-5)
    assert history["kl_weight"] == history["likelihood_scale"]


def test_evaluation_does_not_move_it(digits):
    vae = auto()
    vae.fit(digits[0][:32], epochs=1, verbose=0)
    before = vae.scale_of_likelihood()
    vae.evaluate(digits[0][32:], verbose=0)
    assert vae.scale_of_likelihood() == before > 0


def test_images_of_no_weight_do_not_count(digits):
    x, y = digits[0][:32], 255 - digits[0][:32]
    both, weights = np.concatenate([x, y]), np.repeat([1.0, 0.0], 32)
    scales = []
    for images, sample_weight in ((x, None), (both, weights)):
        vae = auto()
        vae.compile(keras.optimizers.SGD(0.0))
        vae.fit(images, batch_size=64, sample_weight=sample_weight, shuffle=False, verbose=0)
        scales.append(vae.scale_of_likelihood())
    assert scales[0] == pytest.approx(scales[1], rel=0.02)  # but for the noise


def test_it_is_annealed_saved_and_loaded(digits, tmp_path):
    vae = auto()
    annealing = KLAnnealing("linear", weight=0.5)
    history = vae.fit(digits[0], epochs=2, callbacks=[annealing], verbose=0).history
    assert all(np.array(history["kl_weight"]) < 0.5 * np.array(history["likelihood_scale"]))
    assert float(vae.kl_weight) == 0.5
    checkpoints.save_model(vae, tmp_path / "vae.keras")
    again = checkpoints.load_model(tmp_path / "vae.keras")
    assert again.get_config()["kl_weight"] == "auto"
    assert again.scale_of_likelihood() == vae.scale_of_likelihood()


def test_a_reconstruction_that_is_no_likelihood_is_refused():
    with pytest.raises(ValueError, match="stands for none: give a number"):
        VAE(reconstruction=lambda x, y: keras.ops.sum(x - y, (1, 2, 3)), kl_weight="auto")


def test_bce_has_no_scale_and_is_the_evidence_lower_bound(digits):
    cvae = CVAE((28, 28, 1), 3, "mlp", (16, 8), reconstruction="bce", kl_weight="auto")
    cvae.compile(keras.optimizers.Adam(1e-3))
    cvae.fit(digits[0][:32], digits[1][:32], verbose=0)
    assert cvae.scale_of_likelihood() == 1.0


def test_info_shows_the_weight_and_the_scale_in_it(tmp_path):
    model = VAE((8, 8, 1), 2, "mlp", (4,), kl_weight="auto")
    model.likelihood_scale.assign(0.25)
    checkpoints.save_model(model, tmp_path / "auto.keras")
    done = CliRunner().invoke(cli, ["info", str(tmp_path / "auto.keras"), "--json"])
    facts = json.loads(done.stdout)
    assert (facts["kl_weight"], facts["likelihood_scale"]) == (0.25, 0.25)

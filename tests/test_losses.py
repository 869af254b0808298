"""The terms of the loss against NumPy, SciPy and sampling."""

import keras
import numpy as np
import pytest
from scipy import stats

from keras_ae import AE, VAE, losses

SHAPE = (5, 6, 4, 3)


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    return rng.random(SHAPE, "float32"), rng.uniform(0.01, 0.99, SHAPE).astype("float32")


def of(loss, *arrays):
    return keras.ops.convert_to_numpy(loss(*map(keras.ops.convert_to_tensor, arrays)))


def test_l1_is_the_sum_over_pixels_of_each_image(pair):
    x, rebuilt = pair
    expected = np.abs(x - rebuilt).sum((1, 2, 3))
    np.testing.assert_allclose(of(losses.l1, x, rebuilt), expected, rtol=1e-5)


def test_mse_is_the_sum_over_pixels_of_each_image(pair):
    x, rebuilt = pair
    expected = np.square(x - rebuilt).sum((1, 2, 3))
    np.testing.assert_allclose(of(losses.mse, x, rebuilt), expected, rtol=1e-5)


def test_bce_of_binary_images_is_the_bernoulli_likelihood(pair):
    x, rebuilt = pair[0].round(), pair[1]
    expected = -stats.bernoulli.logpmf(x, rebuilt.astype("float64")).sum((1, 2, 3))
    np.testing.assert_allclose(of(losses.bce, x, rebuilt), expected, rtol=1e-5)


def test_bce_of_grey_images_is_the_cross_entropy(pair):
    x, p = (a.astype("float64") for a in pair)
    expected = -(x * np.log(p) + (1 - x) * np.log(1 - p)).sum((1, 2, 3))
    np.testing.assert_allclose(of(losses.bce, *pair), expected, rtol=1e-5)


def test_bce_of_what_is_no_number_is_none():
    """Keras' own raises on torch, where a run that diverges should say so in one line."""
    image = np.zeros((2, 8, 8, 1), "float32")
    broken = np.stack([image[0] + 0.5, image[1] + np.nan])
    assert np.isnan(of(losses.bce, image, broken)).tolist() == [False, True]


def test_bce_of_a_sure_and_wrong_pixel_is_bounded():
    black, white = np.zeros((1, 1, 1, 1), "float32"), np.ones((1, 1, 1, 1), "float32")
    assert of(losses.bce, black, white) == pytest.approx(-np.log(1e-7), rel=0.02)
    assert of(losses.bce, white, white) == pytest.approx(0.0, abs=1e-6)


def test_kl_is_the_closed_form():
    rng = np.random.default_rng(1)
    mean, log_var = rng.normal(size=(2, 50, 7)).astype("float32")
    s2 = np.exp(log_var.astype("float64"))
    expected = 0.5 * (mean**2.0 + s2 - 1 - np.log(s2)).sum(-1)
    np.testing.assert_allclose(of(losses.gaussian_kl, mean, log_var), expected, rtol=1e-5)


def test_kl_agrees_with_sampling():
    mean, log_var = np.array([[0.7, -1.2, 0.0]], "float32"), np.array([[-0.5, 0.3, 1.0]], "float32")
    scale = np.exp(0.5 * log_var)
    z = mean + scale * np.random.default_rng(2).normal(size=(400_000, 3))
    ratio = stats.norm.logpdf(z, mean, scale) - stats.norm.logpdf(z)
    estimate = ratio.sum(-1).mean()  # its standard error is 0.003
    assert of(losses.gaussian_kl, mean, log_var)[0] == pytest.approx(estimate, abs=0.02)


def test_kl_of_the_prior_itself_is_zero_and_else_positive():
    zero = np.zeros((1, 4), "float32")
    assert of(losses.gaussian_kl, zero, zero)[0] == 0.0
    assert of(losses.gaussian_kl, zero + 0.1, zero)[0] > 0.0
    assert of(losses.gaussian_kl, zero, zero - 0.1)[0] > 0.0


def test_kl_is_summed_over_latents_not_averaged():
    one, many = np.ones((1, 1), "float32"), np.ones((1, 10), "float32")
    assert of(losses.gaussian_kl, many, many) == pytest.approx(
        10 * of(losses.gaussian_kl, one, one), rel=1e-6
    )


@pytest.mark.parametrize("kl_weight", [0.5, 1.0, 3.0])
def test_nll_of_l1_is_a_laplace(pair, kl_weight):
    x, rebuilt = (a.astype("float64") for a in pair)
    nll, name = losses.nll_per_image(np.abs(x - rebuilt).sum((1, 2, 3)), "l1", 72, kl_weight)
    expected = -stats.laplace.logpdf(x, rebuilt, kl_weight).sum((1, 2, 3))
    np.testing.assert_allclose(nll, expected)
    assert name == f"laplace(scale={kl_weight:g})"


@pytest.mark.parametrize("kl_weight", [0.5, 1.0, 3.0])
def test_nll_of_mse_is_a_gaussian(pair, kl_weight):
    x, rebuilt = (a.astype("float64") for a in pair)
    nll, name = losses.nll_per_image(np.square(x - rebuilt).sum((1, 2, 3)), "mse", 72, kl_weight)
    expected = -stats.norm.logpdf(x, rebuilt, np.sqrt(kl_weight / 2)).sum((1, 2, 3))
    np.testing.assert_allclose(nll, expected)
    assert name == f"normal(variance={kl_weight / 2:g})"


def test_nll_of_bce_is_the_bce():
    assert losses.nll_per_image(123.0, "bce", 784, 0.5) == (123.0, "bernoulli")


@pytest.mark.parametrize("make", [AE, VAE])
def test_bce_of_an_untrained_model_is_ln_2_a_pixel_then_falls_far_below(make, digits):
    """An output squashed twice starts there too, and stays: a sigmoid of [0, 1] is above 0.5."""
    keras.utils.set_random_seed(0)
    model = make((28, 28, 1), 8, "mlp", (64,), reconstruction="bce")
    model.compile(keras.optimizers.Adam(3e-3))
    images = digits[0][:512]
    before = model.evaluate(images, verbose=0, return_dict=True)["reconstruction"]
    assert before == pytest.approx(784 * np.log(2), rel=0.05)
    model.fit(images, epochs=6, batch_size=64, verbose=0)
    after = model.evaluate(images, verbose=0, return_dict=True)["reconstruction"]
    assert after < 300


@pytest.mark.parametrize("name", ["l1", "mse"])
def test_the_likeliest_scale_is_that_of_a_fitted_distribution(name):
    errors = np.random.default_rng(0).laplace(scale=0.1, size=(50, 200))
    terms = np.abs(errors) if name == "l1" else np.square(errors)
    mean = keras.ops.convert_to_tensor(terms.sum(1).mean().astype("float32"))
    scale = float(losses.likeliest_scale(losses.RECONSTRUCTIONS[name], mean, 200))
    if name == "l1":
        fitted = stats.laplace.fit(errors.ravel(), floc=0)[1]
    else:
        fitted = 2 * stats.norm.fit(errors.ravel(), floc=0)[1] ** 2
    assert scale == pytest.approx(fitted, rel=1e-5)


def test_a_scale_has_a_floor_and_bce_has_none():
    zero = keras.ops.convert_to_tensor(0.0)
    least = float(losses.likeliest_scale(losses.RECONSTRUCTIONS["l1"], zero, 10))
    assert least == pytest.approx(losses.LEAST_SCALE)
    assert float(losses.likeliest_scale(losses.RECONSTRUCTIONS["bce"], zero, 10)) == 1.0


def test_the_first_batch_counts_whole():
    first, second = (keras.ops.convert_to_tensor(v) for v in (0.4, 0.2))
    scale = losses.running_scale(keras.ops.convert_to_tensor(0.0), first)
    assert float(scale) == pytest.approx(0.4)
    assert float(losses.running_scale(scale, second)) == pytest.approx(0.4 * 0.99 + 0.2 * 0.01)

"""Every estimator against one that shares no code with it: a closed form, SciPy or scikit-learn."""

import errno
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import zipfile

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from kae.main import cli
from scipy import integrate, linalg, ndimage, spatial, stats
from sklearn.neighbors import NearestNeighbors

import keras_ae
from keras_ae import classifier as classifiers
from keras_ae import evaluation, inputs
from keras_ae.checkpoints import save_model
from keras_ae.classifier import Classifier, build_classifier, classify, evaluation_classifier
from keras_ae.data import ImageData
from keras_ae.errors import UserError
from keras_ae.evaluation import evidence
from keras_ae.settings import released

RELEASED = released("classifier-mnist") / "model.keras"


class LinearGaussian:
    """x = offset + W z + noise of variance kl_weight / 2 with z ~ N(0, I), of which log p(x) is known.

    W has orthogonal columns, so that the exact posterior has a diagonal covariance. `error` is added to
    its means and `widening` multiplies its deviations.
    """

    image_shape, latent_dim, num_classes = (2, 3, 1), 3, 0
    reconstruction, kl_weight = "mse", 0.3
    prior_named = keras_ae.VAE.prior_named

    def __init__(self, error=0.0, widening=1.0, prior=None):
        rng = np.random.default_rng(5)
        self.scales = np.array([1.5, 0.8, 0.2])
        self.weights = linalg.orth(rng.normal(size=(6, 3))) * self.scales
        self.offset = rng.normal(size=6)
        self.variance = self.kl_weight / 2
        self.error, self.widening, self.prior = error, widening, prior

    def scale_of_likelihood(self):
        return self.kl_weight

    def draw(self, n, seed=0):
        rng = np.random.default_rng(seed)
        noise = np.sqrt(self.variance) * rng.normal(size=(n, 6))
        flat = self.offset + rng.normal(size=(n, 3)) @ self.weights.T + noise
        return flat.reshape(-1, *self.image_shape).astype("float32")

    def posterior(self, inputs, batch_size=256):
        flat = np.asarray(inputs, "float64").reshape(len(inputs), -1)
        variance = 1 / (1 + self.scales**2 / self.variance)
        mean = (flat - self.offset) @ self.weights / self.variance * variance + self.error
        log_var = np.broadcast_to(np.log(variance * self.widening**2), mean.shape)
        return mean.astype("float32"), log_var.astype("float32")

    def decode(self, codes, labels=None, batch_size=256):
        flat = self.offset + np.asarray(codes) @ self.weights.T
        return flat.reshape(-1, *self.image_shape).astype("float32")

    def reconstruct(self, inputs, batch_size=256):
        return self.decode(self.posterior(inputs)[0])

    def log_likelihood(self, images, mean=0.0, covariance=None):
        """log p(x) where z ~ N(mean, covariance)."""
        covariance = np.eye(3) if covariance is None else covariance
        center = self.offset + self.weights @ np.broadcast_to(mean, 3)
        spread = self.weights @ covariance @ self.weights.T + self.variance * np.eye(6)
        return stats.multivariate_normal(center, spread).logpdf(images.reshape(len(images), -1))


@pytest.fixture
def unbounded(monkeypatch):
    """Images of a `LinearGaussian` have any values."""
    monkeypatch.setattr(inputs, "TOLERANCE", np.inf)


# Evidence


@pytest.mark.usefixtures("unbounded")
@pytest.mark.parametrize("k", [1, 7])
def test_with_the_exact_posterior_every_importance_weight_is_the_likelihood(k):
    model = LinearGaussian()
    images = model.draw(40)
    estimate = evaluation.importance_weighted_log_likelihood(model, images, k)
    np.testing.assert_allclose(estimate, model.log_likelihood(images), atol=2e-4)


@pytest.mark.usefixtures("unbounded")
def test_importance_weighted_log_likelihood_reaches_the_likelihood():
    model = LinearGaussian(error=0.3, widening=1.4)
    images = model.draw(100)
    estimate = evaluation.importance_weighted_log_likelihood(model, images, 5_000)
    np.testing.assert_allclose(estimate, model.log_likelihood(images), atol=0.15)
    assert abs(estimate.mean() - model.log_likelihood(images).mean()) < 0.01


@pytest.mark.usefixtures("unbounded")
def test_bounds_rise_with_k_from_the_elbo_to_the_likelihood():
    model = LinearGaussian(error=0.3, widening=1.4)
    images = model.draw(1_000)
    bounds = [evaluation.elbo(model, images)[0]] + [
        evaluation.importance_weighted_log_likelihood(model, images, k) for k in (3, 20, 200)
    ]
    means = [bound.mean() for bound in (*bounds, model.log_likelihood(images))]
    assert means == sorted(means)
    assert means[1] - means[0] > 0.1


@pytest.mark.usefixtures("unbounded")
def test_importance_weights_of_a_fitted_prior():
    rng = np.random.default_rng(0)
    prior = keras_ae.ClassMixture(3)
    factor = np.tril(rng.normal(size=(3, 3)) * 0.3) + np.eye(3)
    prior.means[:] = [0.5, -0.5, 1.0]
    prior.cholesky[:] = factor
    model = LinearGaussian(widening=1.3, prior=prior)
    images = model.draw(50)
    estimate = evaluation.importance_weighted_log_likelihood(model, images, 5_000, prior="fitted")
    exact = model.log_likelihood(images, [0.5, -0.5, 1.0], factor @ factor.T)
    assert abs(estimate.mean() - exact.mean()) < 0.05
    assert abs(estimate.mean() - model.log_likelihood(images).mean()) > 0.2


@pytest.mark.usefixtures("unbounded")
def test_elbo_against_its_closed_form():
    model = LinearGaussian(error=0.3, widening=1.4)
    image = model.draw(1)
    values, likelihood = evaluation.elbo(model, np.repeat(image, 20_000, axis=0))
    mean, log_var = (a[0].astype("float64") for a in model.posterior(image))
    residual = image.reshape(6) - model.offset - model.weights @ mean
    spread = model.weights @ np.diag(np.exp(log_var)) @ model.weights.T
    expected_nll = 3 * np.log(2 * np.pi * model.variance) + (
        residual @ residual + np.trace(spread)
    ) / (2 * model.variance)
    kl = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).sum()
    assert likelihood == "normal(variance=0.15)"
    assert abs(values.mean() + expected_nll + kl) < 4 * values.std() / np.sqrt(len(values))


def test_elbo_of_a_bernoulli_that_ignores_its_code():
    class Constant(LinearGaussian):
        reconstruction = "bce"

        def posterior(self, inputs, batch_size=256):
            return np.zeros((len(inputs), 3), "float32"), np.zeros((len(inputs), 3), "float32")

        def decode(self, codes, labels=None, batch_size=256):
            return np.full((len(codes), 2, 3, 1), 0.3, "float32")

    images = np.random.default_rng(0).integers(0, 2, (20, 2, 3, 1)).astype("float32")
    expected = stats.bernoulli(0.3).logpmf(images).sum((1, 2, 3))
    values, likelihood = evaluation.elbo(Constant(), images)
    assert likelihood == "bernoulli"
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    values = evaluation.importance_weighted_log_likelihood(Constant(), images, 5)
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.usefixtures("unbounded")
def test_unlikely_images_do_not_underflow():
    model = LinearGaussian(error=0.3)
    images = model.draw(3) + 1_000
    estimate = evaluation.importance_weighted_log_likelihood(model, images, 50)
    exact = model.log_likelihood(images)
    assert exact.max() < -1e5  # exp of it is 0
    np.testing.assert_allclose(estimate, exact, rtol=1e-3)


@pytest.mark.usefixtures("unbounded")
def test_figures_do_not_depend_on_the_size_of_the_chunks(monkeypatch):
    model = LinearGaussian(error=0.3)
    images = model.draw(30)
    points = np.random.default_rng(0).normal(size=(2, 50, 4))

    def figures():
        yield evaluation.elbo(model, images)[0]
        yield evaluation.importance_weighted_log_likelihood(model, images, 11)
        yield evaluation.mutual_information(*model.posterior(images))
        yield list(evaluation.manifold_overlap(*points).values())
        yield evaluation.nearest_training_images(images[:5], images[5:])[1]
        yield list(evaluation.reconstruction_error(images, images[::-1]).values())

    whole = list(figures())
    monkeypatch.setattr(evaluation.arrays, "CHUNK_VALUES", 40)
    for one, other in zip(whole, figures(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_bits_per_dimension_are_those_of_the_grey_value_itself():
    """Against the probability of each step of 1/255, by the distribution function."""
    rng = np.random.default_rng(0)
    pixels, centre, scale = rng.integers(0, 256, (5, 40)) / 255, rng.random((5, 40)), 0.05
    laplace = stats.laplace(centre, scale)
    mass = laplace.cdf(pixels + 0.5 / 255) - laplace.cdf(pixels - 0.5 / 255)
    nats = laplace.logpdf(pixels).sum(1)
    bits = evaluation.bits_per_dimension(nats, 40)
    np.testing.assert_allclose(bits, -np.log2(mass).mean(1), rtol=1e-3)
    coins = evaluation.bits_per_dimension([40 * np.log(0.5)], 40, density=False)
    assert coins == pytest.approx(1)


# Codes


def test_kl_per_latent_against_an_integral():
    mean, log_var = np.array([[0.7, 0.0], [-1.2, 0.0]]), np.array([[-1.0, 0.0], [0.5, 0.0]])

    def divergence(m, v):
        q, p = stats.norm(m, np.exp(v / 2)), stats.norm()
        return integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), -12, 12)[0]

    expected = np.mean([divergence(0.7, -1.0), divergence(-1.2, 0.5)])
    np.testing.assert_allclose(evaluation.kl_per_latent(mean, log_var), [expected, 0], atol=1e-7)


@pytest.mark.parametrize("deviation", [0.5, 1.0, 3.0])
def test_mutual_information_of_gaussians(deviation):
    mean = np.random.default_rng(1).normal(size=(4_000, 2))
    estimate = evaluation.mutual_information(mean, np.full(mean.shape, 2 * np.log(deviation)))
    assert estimate == pytest.approx(np.log1p(deviation**-2), abs=0.05)


def test_mutual_information_has_its_limits():
    mean = np.random.default_rng(1).normal(size=(500, 4))
    apart = evaluation.mutual_information(mean, np.full(mean.shape, -30.0))
    assert apart == pytest.approx(np.log(500), abs=1e-6)
    alike = evaluation.mutual_information(np.zeros((500, 4)), np.zeros((500, 4)))
    assert alike == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("shapes", [[(0, 3), (0, 3)], [(4, 3), (4, 2)]])
def test_mutual_information_of_none(shapes):
    with pytest.raises(ValueError, match="must be .N, D., N >= 1; got"):
        evaluation.mutual_information(*map(np.zeros, shapes))


def test_active_units():
    mean = np.random.default_rng(0).normal(size=(2_000, 4)) * [1.0, 0.2, 0.05, 0.0] + 3
    assert evaluation.active_units(mean) == 2


# Images and features


def test_reconstruction_error_of_bytes_and_of_floats():
    rng = np.random.default_rng(0)
    images, rebuilt = rng.integers(0, 256, (7, 4, 5, 3), "uint8"), rng.random((7, 4, 5, 3))
    difference = images / 255 - rebuilt
    expected = pytest.approx([np.abs(difference).mean(), np.square(difference).mean()])
    assert list(evaluation.reconstruction_error(images, rebuilt).values()) == expected
    assert list(evaluation.reconstruction_error(images / 255, rebuilt).values()) == expected


@pytest.mark.parametrize("rows", [(3, 1), (2, 3), (0, 0)])
def test_reconstructions_of_other_images_are_refused(rows):
    images, rebuilt = (np.zeros((n, 4, 5, 3), np.uint8) for n in rows)
    with pytest.raises(ValueError, match=r"of one shape \(N, H, W, C\), N >= 1; got"):
        evaluation.reconstruction_error(images, rebuilt)


def test_psnr_of_a_known_error():
    pair = np.zeros((2, 4, 5, 3), np.uint8), np.zeros((2, 4, 5, 3), "float32")
    pair[1][1] = 0.1
    _, squared = evaluation.reconstructions.errors_per_image(*pair)
    np.testing.assert_allclose(evaluation.psnr(squared), [100, 20], rtol=1e-6)


def test_psnr_and_ssim_against_their_definitions(digits):
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is an extra")
    images, others = digits[0][:3], digits[0][3:6]
    squared = np.square(images / 255 - others / 255).mean((1, 2, 3))
    for psnr, pair in zip(evaluation.psnr(squared), zip(images, others)):
        assert psnr == pytest.approx(metrics.peak_signal_noise_ratio(*pair), rel=1e-6)

    def ssim(x, y):  # Wang et al. 2004, equation 13, away from the borders
        def mean(a):
            return ndimage.gaussian_filter(a, 1.5, truncate=3.5)

        mx, my = mean(x), mean(y)
        sx, sy, sxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
        above = (2 * mx * my + 0.01**2) * (2 * sxy + 0.03**2)
        return (above / ((mx**2 + my**2 + 0.01**2) * (sx + sy + 0.03**2)))[5:-5, 5:-5].mean()

    expected = [ssim(x[..., 0] / 255, y[..., 0] / 255) for x, y in zip(images, others)]
    np.testing.assert_allclose(evaluation.ssim(images, others), expected, atol=1e-5)
    np.testing.assert_allclose(evaluation.ssim(images, images / np.float32(255)), 1, atol=1e-6)


def test_interval_of_a_mean_covers_it():
    rng = np.random.default_rng(0)
    hit = []
    for _ in range(100):
        values = rng.exponential(size=60)
        mean, (low, high) = evaluation.mean_with_interval(values)
        assert mean == pytest.approx(values.mean())
        assert high - low == pytest.approx(2 * 1.96 * values.std() / 60**0.5, rel=0.15)
        hit.append(low < 1 < high)
    assert 0.85 < np.mean(hit) < 1
    assert evaluation.mean_with_interval([3.0]) == (3.0, None)


def test_kernel_distance_against_a_double_sum():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(7, 3)), rng.normal(1, 2, size=(9, 3))

    def kernel(a, b):
        return (sum(a[i] * b[i] for i in range(3)) / 3 + 1) ** 3

    within = [
        np.mean([kernel(a[i], a[j]) for i in range(len(a)) for j in range(len(a)) if i != j])
        for a in (x, y)
    ]
    across = np.mean([kernel(a, b) for a in x for b in y])
    assert evaluation.kernel_distance(x, y) == pytest.approx(sum(within) - 2 * across)


def test_kernel_distance_has_no_bias():
    rng = np.random.default_rng(2)
    drawn = [evaluation.kernel_distance(*rng.normal(size=(2, 10, 2))) for _ in range(2_000)]
    assert abs(np.mean(drawn)) < 4 * np.std(drawn) / 2_000**0.5


@pytest.mark.parametrize("distance", ["frechet_distance", "kernel_distance"])
@pytest.mark.parametrize(
    ("features", "says"),
    [
        (np.ones((1, 3)), "N >= 2; got .1, 3."),
        (np.ones(3), "must be .N, F., N >= 2; got .3,."),
        (np.full((5, 3), np.nan), "no finite numbers"),
    ],
    ids=["one row", "no rows", "NaN"],
)
def test_features_that_have_no_distance(distance, features, says):
    others = np.random.default_rng(0).normal(size=(9, 3))
    for pair in ((features, others), (others, features)):
        with pytest.raises(ValueError, match=says):
            getattr(evaluation, distance)(*pair)


def test_sliced_wasserstein_against_scipy():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(50, 4)), rng.normal(1, 2, size=(50, 4))
    directions = evaluation.distances.unit_vectors(16, 4, seed=5)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=0), 1)
    expected = [stats.wasserstein_distance(x @ d, y @ d) for d in directions.T]
    found = evaluation.sliced_wasserstein(x, y, 16, seed=5)
    assert found == pytest.approx(np.mean(expected))
    # A shift by s moves each projection by |s . d|, of which the mean over the circle is 2 |s| / pi.
    plane = rng.normal(size=(100, 2))
    found = evaluation.sliced_wasserstein(plane, plane + [3, 4], 2_000)
    assert found == pytest.approx(5 * 2 / np.pi, rel=0.03)


@pytest.mark.parametrize("patches", [1, 3])
def test_intervals_of_distances_tell_how_far_they_spread(patches):
    """The width against the spread of the distance over sets drawn anew; patches of an image are alike."""
    rng = np.random.default_rng(4)
    reference = rng.normal(size=(1_000, patches, 3))

    def draw():
        own = rng.normal(size=(400, 1, 3))
        return 1.5 * (0.9 * own + (1 - 0.9**2) ** 0.5 * rng.normal(size=(400, patches, 3))) + 0.5

    found = [evaluation.Reference(reference, seed=i).distances(draw()) for i in range(30)]
    flat = draw().reshape(-1, 3)
    again = evaluation.Reference(reference.reshape(-1, 3)).distances(flat)
    assert again["fid"] == pytest.approx(
        evaluation.frechet_distance(flat, reference.reshape(-1, 3)), rel=1e-6
    )
    for name in ("fid", "kid", "swd"):
        spread = np.std([x[name] for x in found], ddof=1)
        widths = [np.diff(x[f"{name}_interval"])[0] for x in found]
        assert np.mean(widths) == pytest.approx(2 * 1.96 * spread, rel=0.5), name


@pytest.mark.parametrize("shape", [(28, 28, 1), (33, 58, 3)])
def test_a_pyramid_adds_up_to_its_image(shape):
    images = np.random.default_rng(6).random((2, *shape), "float32")
    levels = evaluation.laplacian_pyramid(images)
    assert [level.shape[1:3] for level in levels][-1] == (-(-shape[0] // 2), -(-shape[1] // 2))
    image = levels[-1]
    for level in levels[-2::-1]:
        image = level + evaluation.features.enlarged(image, level.shape)
    np.testing.assert_allclose(image, images, atol=1e-6)
    # A flat image has nothing but its coarsest level.
    flat = evaluation.laplacian_pyramid(np.full((1, *shape), 0.3, "float32"))
    assert np.abs(flat[0][:, 3:-3, 3:-3]).max() < 1e-6 and flat[-1] == pytest.approx(0.3)


def test_patches_are_cut_from_their_level(digits):
    images = digits[0][:3]
    fine, coarse = evaluation.laplacian_patches(images, patches=5, seed=1)
    assert fine.shape == coarse.shape == (3, 5, 49)
    levels = evaluation.laplacian_pyramid(images)
    for patches, level in zip((fine, coarse), levels):
        for image, cut in zip(level[..., 0], patches):
            windows = np.lib.stride_tricks.sliding_window_view(image, (7, 7)).reshape(-1, 49)
            assert all((windows == patch).all(1).any() for patch in cut)
    ours = evaluation.features.normalised([2 * fine + 1], [fine], channels=1)[0]
    assert ours.std() == pytest.approx(2, rel=1e-3)
    assert ours.mean() == pytest.approx(1 / fine.std() + fine.mean() / fine.std(), rel=1e-3)


def test_patches_of_images_on_another_scale_are_refused(digits):
    with pytest.raises(ValueError, match=r"floats in \[0, 1\]; these go from 0 to 255"):
        evaluation.laplacian_patches(digits[0][:3].astype("float32"))


def test_patches_see_a_blur_that_gets_the_coarse_scale_right(digits):
    """What makes a VAE's images soft is missing from the finest scale first."""
    images = digits[0][:600]
    blurred = ndimage.gaussian_filter(images / np.float32(255), (0, 1, 1, 0))
    sets = {"": blurred, "_reconstructions": None, "_test_images": images[300:]}
    figures = evaluation.figures._by_patches(sets, images[:300], 0, {})
    fine, coarse = figures["patch_swd_per_scale"]
    assert fine > 2 * coarse
    for name in ("fid", "kid", "swd"):
        assert figures[f"patch_{name}"] > 3 * abs(figures[f"patch_{name}_test_images"])


def test_frechet_distance_against_scipy():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(500, 8)) @ rng.normal(size=(8, 8))
    other = rng.normal(size=(300, 8)) @ rng.normal(size=(8, 8)) + rng.normal(size=8)
    c1, c2 = np.cov(one.T), np.cov(other.T)
    root = linalg.sqrtm(c1 @ c2).real
    expected = np.square(one.mean(0) - other.mean(0)).sum() + np.trace(c1 + c2 - 2 * root)
    assert evaluation.frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)
    assert evaluation.frechet_distance(one, one) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_with_features_that_never_fire():
    rng = np.random.default_rng(0)
    deviations, others = np.array([1.0, 2.0, 0.0]), np.array([3.0, 0.0, 0.0])
    sample = rng.normal(size=(200_000, 3))
    expected = np.square(deviations - others).sum() + 4  # diagonal covariances; means 2 apart
    estimate = evaluation.frechet_distance(sample * deviations, sample * others + [0, 0, 2])
    assert estimate == pytest.approx(expected, rel=0.01)


def test_manifold_overlap_against_brute_force():
    rng = np.random.default_rng(0)
    real, samples = rng.normal(size=(120, 3)), rng.normal(size=(80, 3)) * 0.8 + 0.5
    k = 4

    def radius(points):  # k + 1: here a point is its own nearest neighbour
        return NearestNeighbors(n_neighbors=k + 1).fit(points).kneighbors(points)[0][:, k]

    distance = spatial.distance.cdist(real, samples)
    in_real, in_sample = distance <= radius(real)[:, None], distance <= radius(samples)
    assert evaluation.manifold_overlap(real, samples, k) == pytest.approx(
        {
            "precision": in_real.any(0).mean(),
            "recall": in_sample.any(1).mean(),
            "density": in_real.sum() / (k * len(samples)),
            "coverage": in_real.any(1).mean(),
        }
    )
    assert 0.2 < in_real.any(0).mean() < 1  # the case says something


def test_manifold_overlap_of_strangers_is_nothing():
    points = np.random.default_rng(0).normal(size=(50, 3))
    assert set(evaluation.manifold_overlap(points, points + 100).values()) == {0.0}


def test_nearest_training_images_against_brute_force():
    rng = np.random.default_rng(0)
    images = rng.random((30, 4, 4, 2), dtype="float32")
    train = rng.integers(0, 256, (200, 4, 4, 2), "uint8")
    distance, index = evaluation.nearest_training_images(images, train)
    expected = spatial.distance.cdist(images.reshape(30, -1), train.reshape(200, -1) / 255)
    np.testing.assert_array_equal(index, expected.argmin(1))
    np.testing.assert_allclose(distance, expected.min(1), rtol=1e-5)


def test_closest_pairs_begin_with_a_copy():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (50, 4, 4, 1), "uint8")
    images = rng.random((20, 4, 4, 1))
    images[7] = train[13] / 255
    ours, theirs, distance = evaluation.closest_pairs(images, train, n=5)
    assert len(ours) == len(theirs) == 5
    np.testing.assert_array_equal(ours[0], images[7])
    np.testing.assert_array_equal(theirs[0], train[13])
    assert distance[0] == pytest.approx(0, abs=1e-3) and (np.diff(distance) >= 0).all()
    np.testing.assert_allclose(
        distance[1:], np.sqrt(np.square(ours - theirs / 255.0).sum((1, 2, 3)))[1:], rtol=1e-5
    )


def test_conditional_accuracy():
    probabilities = np.eye(3)[[0, 1, 1, 2]]
    accuracy, per_class = evaluation.conditional_accuracy(probabilities, np.array([0, 0, 1, 1]))
    assert accuracy == 0.5 and per_class == [0.5, 0.5, None]


# The classifier


@pytest.fixture
def toy(digits):
    """A small dataset: 300 digits to train on, 100 to test on."""
    images, labels = digits[0][:400], digits[1][:400].astype("int32")
    names = tuple("0123456789")
    return (
        ImageData("toy", "1.0.0", "train", images[:300], labels[:300], names),
        ImageData("toy", "1.0.0", "test", images[300:], labels[300:], names),
    )


def without_labels(data):
    return ImageData(data.name, data.version, data.split, data.images, None, None)


@pytest.mark.parametrize("shape", [(28, 28, 1), (5, 9, 2), (70, 64, 3)])
def test_a_classifier_takes_any_shape(shape):
    features, probabilities = classify(build_classifier(shape, 4), np.zeros((3, *shape), "uint8"))
    assert features.shape == (3, 64) and probabilities.shape == (3, 4)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)


def test_the_released_classifier(digits):
    network = keras.saving.load_model(RELEASED, compile=False)
    _, probabilities = classify(network, digits[0])
    assert (probabilities.argmax(1) == digits[1]).mean() >= 0.993
    assert RELEASED.stat().st_size <= 1_500_000
    with zipfile.ZipFile(RELEASED) as archive:
        assert not json.loads(archive.read("config.json"))["compile_config"]


@pytest.mark.long
@pytest.mark.parametrize("backend", ["numpy", "jax", "tensorflow"])
def test_the_released_classifier_on_another_backend(backend, digits, tmp_path):
    if not importlib.util.find_spec("jax" if backend == "numpy" else backend):
        pytest.skip(f"{backend} is not installed")
    np.save(tmp_path / "images.npy", digits[0][:50])
    script = (
        "import sys, keras, numpy as np; from keras_ae.classifier import classify;"
        "network = keras.saving.load_model(sys.argv[1], compile=False);"
        "features, _ = classify(network, np.load(sys.argv[2] + '/images.npy'));"
        "np.save(sys.argv[2] + '/features.npy', features)"
    )
    environment = {**os.environ, "KERAS_BACKEND": backend}
    subprocess.run([sys.executable, "-c", script, RELEASED, tmp_path], env=environment, check=True)
    here, _ = classify(keras.saving.load_model(RELEASED, compile=False), digits[0][:50])
    np.testing.assert_allclose(np.load(tmp_path / "features.npy"), here, atol=1e-3)


def test_a_classifier_learns(digits):
    images, labels = digits[0], digits[1].astype("int32")
    train = ImageData("toy", "1.0.0", "train", images[:4000], labels[:4000], tuple("0123456789"))
    test = ImageData(
        "toy", "1.0.0", "test", images[4000:5000], labels[4000:5000], train.class_names
    )
    network = classifiers.train_classifier(train, steps=31)
    assert classifiers.accuracy(network, test) > 0.8
    assert not network.compiled


def test_shifted_batches_hold_every_image_shifted(digits):
    images = digits[0][:256]
    batches = classifiers._ShiftedBatches(images, np.arange(256), seed=0)
    shifted, which = (np.concatenate(parts) for parts in zip(batches[0], batches[1]))
    assert sorted(which) == list(range(256))
    # Away from the border, each is its original, moved by up to two pixels.
    for image, i in zip(shifted[:20], which):
        inner = (image[2:-2, 2:-2, 0] * 255).round()
        assert any(
            (inner == images[i, 2 + y : 26 + y, 2 + x : 26 + x, 0]).all()
            for y in range(-2, 3)
            for x in range(-2, 3)
        )


def test_a_classifier_learns_from_floats_what_it_learns_from_bytes(digits):
    images = digits[0][:256]
    batches = [
        classifiers._ShiftedBatches(x, np.arange(256), seed=0)[0]
        for x in (images, (images / 255.0).astype("float32"))
    ]
    np.testing.assert_allclose(batches[0][0], batches[1][0], atol=1e-6)


def test_a_classifier_is_of_full_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = build_classifier((28, 28, 1), 10)
    finally:
        keras.config.set_dtype_policy(before)
    assert {layer.compute_dtype for layer in network.layers} == {"float32"}


def test_a_single_training_image_has_no_distances(toy, judge):
    train, test = toy
    figures = keras_ae.evaluate(
        small(keras_ae.VAE), train.first(1), test.first(30), samples=30, classifier=judge
    )
    assert figures["fid"] is None and "fewer than" in figures["reasons"]["fid"]


@pytest.mark.parametrize("kind", ["uint8", "int64", "float32", "bool"])
def test_binary_images_of_every_kind(kind):
    images = np.random.default_rng(0).integers(0, 2, (9, 4, 4, 1))
    white = 255 if kind in ("uint8", "int64") else 1
    assert evidence.binary((images * white).astype(kind))
    if white == 255:
        assert not evidence.binary(images.astype(kind))


@pytest.fixture
def trainings(monkeypatch, tmp_path):
    """An empty cache, and the datasets that a classifier was trained for."""
    calls = []

    def train_classifier(train, seed, steps, progress=None, minutes=None):
        calls.append(train)
        return build_classifier(train.images.shape[1:], train.num_classes, seed=len(calls))

    monkeypatch.setenv("KAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(classifiers, "train_classifier", train_classifier)
    return calls


def test_a_classifier_is_trained_once(toy, trainings):
    train, test = toy
    first, second = evaluation_classifier(train, test), evaluation_classifier(train, test)
    assert len(trainings) == 1
    assert (first.origin, second.origin) == ("trained now", "trained earlier")
    np.testing.assert_array_equal(first(test.images)[0], second(test.images)[0])
    labels = np.where(test.labels < 5, first(test.images)[1].argmax(1), 99)
    half = ImageData("toy", "1.0.0", "test", test.images, labels, test.class_names)
    assert evaluation_classifier(train, half).accuracy == (test.labels < 5).mean()


def test_another_seed_is_another_classifier(toy, trainings):
    first, second = (evaluation_classifier(*toy, seed=seed) for seed in (0, 1))
    assert len(trainings) == 2
    assert not np.array_equal(first(toy[1].images)[0], second(toy[1].images)[0])
    assert evaluation_classifier(*toy, seed=1).origin == "trained earlier"


def test_the_work_of_a_classifier_is_bounded(toy):
    def of(shape, n):
        images = np.broadcast_to(np.uint8(0), (n, *shape))
        return classifiers.steps_of(ImageData("d", "1", "train", images, None, None))

    assert of((28, 28, 1), 60_000) == classifiers.STEPS
    assert of((64, 64, 3), 60_000) == pytest.approx(classifiers.STEPS * 28**2 / 64**2, abs=1)
    assert of((28, 28, 1), 100) == classifiers.LEAST_STEPS == of((256, 256, 3), 10**6)
    lines = []
    with pytest.raises(UserError, match="minutes to train, more than the 1e-06 of --classifier"):
        classifiers.train_classifier(toy[0], steps=30, minutes=1e-6, progress=lines.append)
    classifiers.train_classifier(toy[0], steps=30, minutes=60, progress=lines.append)
    assert any(line.split()[-1] in ("seconds", "minutes") for line in lines)


def test_other_data_of_the_same_name_get_another_classifier(toy, trainings):
    train, test = toy
    evaluation_classifier(train, test)
    images = train.images.copy()
    images[0, 0, 0] += 1
    changed = ImageData("toy", "1.0.0", "train", images, train.labels, train.class_names)
    evaluation_classifier(changed, test)
    assert len(trainings) == 2


def test_a_damaged_classifier_is_made_anew(toy, trainings, tmp_path):
    evaluation_classifier(*toy)
    (file,) = (tmp_path / "cache" / "classifiers").iterdir()
    file.write_bytes(file.read_bytes()[:5_000])
    evaluation_classifier(*toy)
    assert len(trainings) == 2
    assert keras.saving.load_model(file, compile=False)


def test_a_cache_that_cannot_be_written_is_done_without(toy, trainings, tmp_path):
    (tmp_path / "cache").write_text("a file")
    lines = []
    assert evaluation_classifier(*toy, progress=lines.append).origin == "trained now"
    assert "KAE_CACHE" in lines[-1]


def test_a_classifier_that_cannot_be_read_is_not_made_anew(toy, trainings, monkeypatch):
    evaluation_classifier(*toy)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    with pytest.raises(UserError, match="cannot be read: No space left"):
        evaluation_classifier(*toy)
    assert len(trainings) == 1


def test_what_cannot_have_a_classifier(toy, trainings, monkeypatch):
    train, test = toy
    with pytest.raises(UserError, match="no labels"):
        evaluation_classifier(without_labels(train), test)
    one = ImageData("toy", "1.0.0", "train", train.images, train.labels * 0, ("digit",))
    with pytest.raises(UserError, match="one class"):
        evaluation_classifier(one, test)
    monkeypatch.setattr(keras.backend, "backend", lambda: "numpy")
    with pytest.raises(UserError, match="KERAS_BACKEND=torch"):
        evaluation_classifier(train, test)
    assert not trainings


def test_mnist_has_its_classifier_released(digits, trainings):
    names = tuple("0123456789")
    images, labels = digits[0][:500], digits[1][:500].astype("int32")
    mnist = ImageData("mnist", "3.0.1", "train", images, labels, names)
    classifier = evaluation_classifier(mnist, mnist)
    assert classifier.origin == "released with keras-ae" and classifier.accuracy > 0.98
    another = ImageData("mnist", "1.0.0", "train", images, labels, names)
    assert evaluation_classifier(another, another).origin == "trained now"


# All of it

PROMISED = (
    *("dataset", "split", "n", "reconstruction_l1", "reconstruction_mse", "kl", "elbo"),
    *("likelihood", "active_units", "fid", "conditional_accuracy"),
)


def small(cls, **kwargs):
    return cls((28, 28, 1), latent_dim=3, backbone="mlp", hidden=(16,), **kwargs)


@pytest.fixture
def judge():
    return Classifier(build_classifier((28, 28, 1), 10), 0.5, "trained earlier")


def test_evaluate_a_cvae(toy, judge):
    train, test = toy
    model = small(keras_ae.CVAE)
    model.fit_prior((train.images, train.labels))
    figures = evaluation.evaluate(
        model, train, test, samples=60, importance_samples=4, classifier=judge
    )
    assert figures == evaluation.evaluate(
        model, train, test, samples=60, importance_samples=4, classifier=judge
    ) | {"seconds": figures["seconds"]}
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["reasons"] == {}
    assert [name for name in PROMISED if figures[name] is None] == []
    assert (figures["n"], figures["split"], figures["dataset"]) == (100, "test", "toy")
    assert figures["kl"] == pytest.approx(sum(figures["kl_per_latent"]))
    assert figures["log_likelihood"] > figures["elbo"]
    assert figures["likelihood"] == "laplace(scale=1)"
    assert "10 classes" in figures["prior"]

    inputs = (test.images, test.labels)
    rebuilt = model.predict(inputs, verbose=0)
    assert figures["reconstruction_l1"] == pytest.approx(
        np.abs(test.images / 255 - rebuilt).mean(), rel=1e-5
    )
    # Samples are what `sample` draws; labels are as frequent as in the training set.
    labels = np.random.default_rng(0).choice(train.labels, 60)
    features, probabilities = judge(model.sample(60, labels, seed=0))
    assert figures["conditional_accuracy"] == (probabilities.argmax(1) == labels).mean()
    assert figures["fid"] == pytest.approx(
        evaluation.frechet_distance(features, judge(train.images)[0]), rel=1e-4
    )


def test_evaluate_a_vae_on_images_without_labels(toy):
    train, test = (without_labels(data) for data in toy)
    figures = evaluation.evaluate(small(keras_ae.VAE), train, test, samples=20)
    assert figures["fid"] is None and "no labels" in figures["reasons"]["classifier"]
    assert figures["elbo"] < 0 < figures["kl"]
    assert figures["prior"] == "N(0, I)"
    assert figures["nearest_training_image"]["samples"]["n"] == 20


def test_evaluate_an_ae(toy, judge):
    figures = evaluation.evaluate(small(keras_ae.AE), *toy, classifier=judge)
    missing = {name for name in PROMISED if figures[name] is None}
    assert missing == set(PROMISED) - {
        "dataset", "split", "n", "reconstruction_l1", "reconstruction_mse"
    }  # fmt: skip
    assert figures["fid_reconstructions"] > 0 and figures["fid_test_images"] > 0
    assert {"kl", "elbo", "samples"} <= set(figures["reasons"])


def test_evaluate_few_images(toy, judge):
    figures = evaluation.evaluate(small(keras_ae.VAE), *toy, samples=3, limit=2, classifier=judge)
    assert figures["n"] == 2 and figures["fid"] is None and "fid" in figures["reasons"]
    assert json.dumps(figures, allow_nan=False)


def test_evaluate_without_samples_and_without_a_likelihood(toy, judge):
    model = small(keras_ae.VAE, kl_weight=0.0)
    figures = evaluation.evaluate(model, *toy, samples=0, classifier=judge)
    assert figures["fid"] is None and figures["elbo"] is None and figures["kl"] > 0
    assert {"samples", "elbo"} <= set(figures["reasons"])


def test_evaluate_draws_pixels_for_a_model_of_binary_images(toy, judge):
    seen = []

    class Spy(keras_ae.VAE):
        def posterior(self, inputs, batch_size=256):
            seen.append(inputs)
            return super().posterior(inputs, batch_size)

    train, test = toy
    model = small(Spy, reconstruction="bce")
    figures = evaluation.evaluate(model, train, test, samples=20, binarize=True, classifier=judge)
    assert figures["binarized"] and figures["likelihood"] == "bernoulli"
    assert seen[0].dtype == "uint8" and set(np.unique(seen[0])) == {0, 255}
    assert (seen[0][test.images == 0] == 0).all() and (seen[0][test.images == 255] == 255).all()
    assert seen[0].mean() / 255 == pytest.approx(test.images.mean() / 255, abs=0.005)


def test_evaluate_refuses_what_does_not_fit(toy):
    train, test = toy
    no_counts = [
        ("limit", 0),
        ("limit", -1),
        ("samples", -1),
        ("samples", None),
        ("importance_samples", 0.5),
    ]
    for name, number in no_counts:
        with pytest.raises(ValueError, match=f"{name} must be a whole number.*got {number}"):
            evaluation.evaluate(small(keras_ae.VAE), train, test, **{name: number})
    with pytest.raises(UserError, match="28, 28"):
        evaluation.evaluate(keras_ae.VAE((8, 8, 1), 2, "mlp", (4,)), train, test)
    with pytest.raises(UserError, match="labels"):
        evaluation.evaluate(small(keras_ae.CVAE), without_labels(train), without_labels(test))
    with pytest.raises(UserError, match="classes"):
        evaluation.evaluate(small(keras_ae.CVAE, num_classes=3), train, test)


def test_what_has_no_likelihood(digits):
    images, likelihood = digits[0][:3], evaluation.importance_weighted_log_likelihood
    for measure in (evaluation.elbo, likelihood):
        with pytest.raises(ValueError, match="AE has no posterior"):
            measure(small(keras_ae.AE), images)
    with pytest.raises(ValueError, match="k must be a whole number, 1 or more"):
        likelihood(small(keras_ae.VAE), images, k=0)


@pytest.mark.parametrize(
    "scale",
    [lambda x: x.astype("float32"), lambda x: x / 127.5 - 1, lambda x: x.astype("int64") * 2],
    ids=["0 to 255", "-1 to 1", "0 to 510"],
)
def test_images_on_another_scale_are_refused(scale, digits):
    images, wrong, model = digits[0][:20], scale(digits[0][:20]), small(keras_ae.VAE)
    for measure in (
        lambda: keras_ae.evaluate(model, wrong, images, samples=0, classifier=False),
        lambda: keras_ae.evaluate(model, images, wrong, samples=0, classifier=False),
        lambda: keras_ae.score(model, wrong),
        lambda: keras_ae.score(model, images, wrong),
        lambda: evaluation.elbo(model, wrong),
        lambda: evaluation.importance_weighted_log_likelihood(model, wrong, 2),
        lambda: evaluation.reconstruction_error(wrong, images),
        lambda: evaluation.nearest_training_images(images, wrong),
    ):
        with pytest.raises(
            ValueError, match=r"must be (floats in \[0, 1\]|whole numbers in 0..255)"
        ):
            measure()


# Anomaly scores


def test_a_figure_of_many_latents_is_printed_as_its_range():
    from kae.evaluate import number

    assert number([0.5, None, 0.25]) == "0.500 - 0.250"
    assert number([i / 10 for i in range(64)]) == "0.000 to 6.300, median 3.200"
    assert number([None] * 64).count("-") == 64


@pytest.mark.usefixtures("unbounded")
def test_scores_of_a_model_whose_density_is_known():
    model = LinearGaussian(prior=keras_ae.StandardNormal(3))
    usual, odd = model.draw(200), model.draw(50, seed=1) + 0.8
    scores = keras_ae.score(model, odd, usual)
    mean, log_var = model.posterior(odd)
    # With the exact posterior log p(x|z) p(z) / q(z|x) is log p(x) at every z; the ELBO puts the mean of
    # log p(z) - log q(z|x) in place of those of the draws, within what few draws differ by.
    np.testing.assert_allclose(scores["negative_elbo"], -model.log_likelihood(odd), atol=6)
    np.testing.assert_allclose(
        scores["negative_log_prior"], -stats.norm.logpdf(mean).sum(1), rtol=1e-5
    )
    rebuilt = model.decode(mean)
    expected = np.square(odd - rebuilt).mean((1, 2, 3))
    np.testing.assert_allclose(scores["reconstruction_error"], expected, rtol=1e-5)
    alone = keras_ae.score(model, odd[7:8])  # an image's score is its own
    assert alone["negative_elbo"] == pytest.approx(scores["negative_elbo"][7], rel=1e-6)
    of_usual = keras_ae.score(model, usual)
    for name, values in of_usual.items():
        share = [100 * (values < x).mean() for x in scores[name]]
        np.testing.assert_allclose(scores[f"{name}_percentile"], share)
    assert evaluation.auroc(scores["negative_elbo"], of_usual["negative_elbo"]) > 0.8


def test_auroc_against_counting_pairs():
    rng = np.random.default_rng(0)
    odd, usual = rng.integers(0, 9, 30), rng.integers(0, 6, 40)  # with ties
    pairs = [(a > b) + 0.5 * (a == b) for a in odd for b in usual]
    assert evaluation.auroc(odd, usual) == pytest.approx(np.mean(pairs))


def test_scores_without_a_class_are_those_of_the_best_class(toy):
    _, test = toy
    model = small(keras_ae.CVAE)
    each = [keras_ae.score(model, (test.images[:5], np.full(5, y))) for y in range(10)]
    found = keras_ae.score(model, test.images[:5])
    for name, values in found.items():
        np.testing.assert_allclose(values, np.min([of[name] for of in each], axis=0), rtol=1e-5)
    assert set(keras_ae.score(small(keras_ae.AE), test.images[:5])) == {"reconstruction_error"}
    with pytest.raises(UserError, match="no classes"):
        keras_ae.score(small(keras_ae.VAE), (test.images[:5], test.labels[:5]))


# The command


@pytest.fixture
def cvae_file(toy, judge, monkeypatch, tmp_path):
    """A CVAE on disk, and a dataset and a classifier for `kae evaluate` to find."""
    monkeypatch.setattr("keras_ae.data.load_splits", lambda name, **kwargs: toy)
    monkeypatch.setattr(evaluation.figures, "evaluation_classifier", lambda *args: judge)
    save_model(small(keras_ae.CVAE), tmp_path / "model.keras")
    return str(tmp_path / "model.keras")


def test_command_prints_one_json_object(cvae_file):
    result = CliRunner().invoke(
        cli, ["evaluate", cvae_file, "--json", "--samples", "40", "--iw", "3", "--limit", "50"]
    )
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert [name for name in PROMISED if figures[name] is None] == []
    assert figures["n"] == 50 and figures["importance_samples"] == 3
    assert "drawing 40 samples" in result.stderr


def test_command_prints_a_table(cvae_file):
    result = CliRunner().invoke(cli, ["evaluate", cvae_file, "--samples", "40"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "CVAE on 100 images of toy test; 40 samples from N(0, I)" in lines[0]
    assert any("ELBO" in line and "nats per image, likelihood laplace" in line for line in lines)
    assert any("no log likelihood: no importance samples" in line for line in lines)


def test_what_needs_no_classifier_is_told_before_it_is_made(toy, judge, monkeypatch):
    order = []
    monkeypatch.setattr(
        evaluation.figures, "evaluation_classifier", lambda *a: order.append("classifier") or judge
    )
    figures = evaluation.evaluate(
        small(keras_ae.CVAE), *toy, samples=60, found=lambda new: order.extend(new)
    )
    before = order[: order.index("classifier")]
    assert {"psnr", "bits_per_dimension", "patch_swd", "nearest_training_image"} <= set(before)
    assert not set(before) & set(figures["by_classifier"])
    assert {"fid", "kid", "swd", "coverage"} <= set(figures["by_classifier"])
    order.clear()
    figures = evaluation.evaluate(small(keras_ae.CVAE), *toy, samples=60, classifier=False)
    assert order == [] and figures["fid"] is None and figures["patch_swd"] > 0


def test_a_decoder_of_ones_own_may_leave_the_range_of_images(toy):
    code = keras.Input((3,))
    pixels = keras.layers.Dense(28 * 28)(code)
    decoder = keras.Model(code, keras.layers.Reshape((28, 28, 1))(pixels))
    model = keras_ae.VAE((28, 28, 1), 3, "mlp", (8,), decoder=decoder, reconstruction="mse")
    assert model.sample(60, prior="normal").min() < -0.01
    figures = evaluation.evaluate(model, *toy, samples=60, classifier=False)
    assert figures["patch_swd"] > 0


def test_a_second_classifier_tells_the_spread(toy, judge, monkeypatch):
    def classifier(train, test, progress, seed, minutes):
        return Classifier(build_classifier((28, 28, 1), 10, seed), 0.5, "trained now")

    monkeypatch.setattr(evaluation.figures, "evaluation_classifier", classifier)
    figures = evaluation.evaluate(small(keras_ae.CVAE), *toy, samples=60, second_classifier=True)
    second = figures["second_classifier"]
    assert set(figures["by_classifier"]) < set(second)
    assert second["fid"] > 0 and second["fid"] != figures["fid"]


def test_command_and_library_give_the_same_figures(cvae_file, toy, judge):
    arguments = ["--json", "--samples", "60", "--no-classifier"]
    of_command = json.loads(CliRunner().invoke(cli, ["evaluate", cvae_file, *arguments]).stdout)
    model = keras_ae.load_model(cvae_file)
    ours = keras_ae.evaluate(model, *toy, samples=60, classifier=False)
    del of_command["path"], of_command["seconds"], ours["seconds"]
    assert of_command == ours


def test_command_says_what_is_wrong(cvae_file, tmp_path):
    assert CliRunner().invoke(cli, ["evaluate", cvae_file, "--samples", "-1"]).exit_code == 2
    missing = CliRunner().invoke(cli, ["evaluate", str(tmp_path / "none.keras")])
    assert missing.exit_code == 1 and missing.stdout == ""
    assert missing.stderr.count("\n") == 1 and missing.stderr.startswith("Error: ")

"""Priors against SciPy and scikit-learn, and the choice of components on data of known make."""

import tracemalloc

import keras
import numpy as np
import pytest
from scipy import stats
from sklearn.mixture import GaussianMixture

import keras_ae
from keras_ae import ClassMixture, StandardNormal, checkpoints


def clusters(n, count, dimensions=2, seed=0):
    """n codes in `count` separate round clusters on a circle of radius 10."""
    rng = np.random.default_rng(seed)
    angle = 2 * np.pi * rng.integers(count, size=n) / count
    codes = rng.normal(size=(n, dimensions))
    codes[:, 0] += 10 * np.cos(angle)
    codes[:, 1] += 10 * np.sin(angle)
    return codes


def test_standard_normal_log_prob():
    z = np.random.default_rng(0).normal(size=(20, 3)) * 3
    expected = stats.multivariate_normal(np.zeros(3)).logpdf(z)
    np.testing.assert_allclose(StandardNormal(3).log_prob(z), expected)


def test_standard_normal_draws():
    z = StandardNormal(3).draw(20_000, seed=1)
    assert z.shape == (20_000, 3) and z.dtype == np.float32
    np.testing.assert_allclose(z.mean(0), 0, atol=0.03)
    np.testing.assert_allclose(np.cov(z.T), np.eye(3), atol=0.05)


def test_an_unfitted_mixture_is_the_standard_normal():
    z = np.random.default_rng(0).normal(size=(20, 3))
    mixture = ClassMixture(3, num_classes=2, components=4)
    np.testing.assert_allclose(
        mixture.log_prob(z, np.arange(20) % 2), StandardNormal(3).log_prob(z)
    )
    np.testing.assert_array_equal(
        mixture.draw(5, [0, 1, 0, 1, 0], seed=3), StandardNormal(3).draw(5, seed=3)
    )


@pytest.mark.parametrize("components", [1, 3])
def test_log_prob_is_that_of_scikit_learn(components):
    codes = clusters(600, 3)
    theirs = GaussianMixture(
        components, reg_covar=1e-2, max_iter=100, tol=5e-3, random_state=0
    ).fit(codes)
    ours = ClassMixture.fit(codes, components=(components,), shrinkage=(0.0,))
    z = clusters(50, 3, seed=1)
    np.testing.assert_allclose(ours.log_prob(z), theirs.score_samples(z), rtol=1e-4)


def test_log_prob_of_each_class_is_its_own_gaussian():
    codes = clusters(400, 2)
    labels = (codes[:, 0] > 0).astype(int)
    prior = ClassMixture.fit(codes, labels, num_classes=2, components=(1,), shrinkage=(0.0,))
    z = np.random.default_rng(1).normal(size=(10, 2))
    for y in (0, 1):
        mine = codes[labels == y]
        covariance = np.cov(mine.T, bias=True) + 1e-2 * np.eye(2)
        expected = stats.multivariate_normal(mine.mean(0), covariance).logpdf(z)
        np.testing.assert_allclose(prior.log_prob(z, np.full(10, y)), expected, rtol=1e-4)


def test_shrinkage_serves_components_of_fewer_codes_than_latents():
    rng = np.random.default_rng(0)
    shape = rng.normal(size=(30, 30)) / 5  # of all clusters
    centres = rng.normal(size=(20, 30)) * 3

    def drawn(n):
        return centres[rng.integers(20, size=n)] + rng.normal(size=(n, 30)) @ shape

    codes, others = drawn(500), drawn(500)  # 25 codes a cluster
    scores = [
        ClassMixture.fit(codes, components=c, shrinkage=nu).log_prob(others).mean()
        for c, nu in [((20,), (1.0,)), ((20,), (0.0,)), ((1,), (1.0,))]
    ]
    assert scores[0] > max(scores[1:]) + 1


def test_a_class_of_few_codes_borrows_the_shape_of_the_others():
    rng = np.random.default_rng(0)
    shape = rng.normal(size=(10, 10))
    codes = rng.normal(size=(1005, 10)) @ shape
    labels = (np.arange(1005) >= 1000).astype(int)
    prior = ClassMixture.fit(codes, labels, num_classes=2, components=(1,), shrinkage=(1.0,))
    z = rng.normal(size=(500, 10)) @ shape
    few, many = (prior.log_prob(z, np.full(500, y)).mean() for y in (1, 0))
    assert few > many - 10  # alone, five codes leave five directions to the regularisation


def test_draws_have_the_moments_of_the_codes():
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(2000, 3)) @ rng.normal(size=(3, 3)) + [1, 2, 3]
    z = ClassMixture.fit(codes, components=(1,)).draw(40_000, seed=4)
    np.testing.assert_allclose(z.mean(0), codes.mean(0), atol=0.08)
    np.testing.assert_allclose(np.cov(z.T), np.cov(codes.T), rtol=0.08, atol=0.08)


def test_draws_take_components_by_their_weight():
    codes = np.concatenate([clusters(900, 1), clusters(100, 1) - [20, 0]])
    z = ClassMixture.fit(codes, components=(2,)).draw(20_000, seed=5)
    assert (z[:, 0] > 0).mean() == pytest.approx(0.9, abs=0.01)


def test_logits_are_set_whole_and_the_next_draw_is_of_them():
    prior = ClassMixture(1, components=2)
    prior.means[:, 1] = 100.0
    for component in (1, 0):
        prior.logits = [[-np.inf, 0.0] if component else [0.0, -np.inf]]
        assert ((prior.draw(50, seed=0) > 50) == bool(component)).all()
    with pytest.raises(ValueError, match="read-only"):
        prior.logits[0] = 0.0


@pytest.mark.parametrize("classes", [1, 3])
def test_draws_and_densities_by_their_formulas(classes):
    rng = np.random.default_rng(0)
    prior, shape = ClassMixture(2, classes, 4), (classes, 4)
    prior.logits, prior.means = rng.normal(size=shape), rng.normal(size=(*shape, 2)).astype("f4")
    prior.cholesky = (np.tril(rng.normal(size=(*shape, 2, 2))) * 0.1 + np.eye(2)).astype("f4")
    labels = rng.integers(classes, size=200)
    drawn = np.random.default_rng(9)
    noise, share = drawn.standard_normal((200, 2), dtype="f4"), drawn.random(200).astype("f4")
    for y, z, x, u in zip(labels, prior.draw(200, labels, 9), noise, share):
        weights = np.exp(prior.logits[y] - prior.logits[y].max()).cumsum()
        m = (weights < u * weights[-1]).sum()
        np.testing.assert_allclose(z, prior.means[y, m] + prior.cholesky[y, m] @ x, rtol=1e-5)
    terms = [
        np.log(np.exp(prior.logits[y, m]) / np.exp(prior.logits[y]).sum())
        + stats.multivariate_normal(prior.means[y, m], factor @ factor.T).logpdf(noise)
        for y in range(classes)
        for m, factor in enumerate(prior.cholesky[y].astype("f8"))
    ]
    expected = np.log(np.exp(terms).reshape(classes, 4, 200).sum(1))[labels, np.arange(200)]
    np.testing.assert_allclose(prior.log_prob(noise, labels), expected, rtol=1e-5)


def test_many_components_take_little_memory():
    """A small file may have many: no table of all codes and components is made."""
    prior = ClassMixture(1, components=20_000)
    tracemalloc.start()
    try:
        codes = prior.draw(10_000)
        prior.log_prob(codes[:2_000])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200e6


def test_draws_of_a_class_are_in_its_cluster():
    codes = clusters(1000, 4)
    labels = np.round(np.arctan2(codes[:, 1], codes[:, 0]) / (np.pi / 2)).astype(int) % 4
    prior = ClassMixture.fit(codes, labels, num_classes=4, components=(1,))
    asked = np.arange(200) % 4
    z = prior.draw(200, asked, seed=6)
    assert z.dtype == np.float32
    found = np.round(np.arctan2(z[:, 1], z[:, 0]) / (np.pi / 2)).astype(int) % 4
    np.testing.assert_array_equal(found, asked)


def test_one_seed_draws_the_same_and_another_draws_other():
    prior = ClassMixture.fit(clusters(300, 3), components=(3,))
    np.testing.assert_array_equal(prior.draw(10, seed=7), prior.draw(10, seed=7))
    assert np.abs(prior.draw(10, seed=7) - prior.draw(10, seed=8)).max() > 0.1


@pytest.mark.parametrize(
    ("count", "candidates"), [(1, (1, 30)), (3, (1, 3, 12)), (6, (1, 3, 6, 30))]
)
def test_the_number_of_components_is_found_by_held_out_likelihood(count, candidates):
    assert ClassMixture.fit(clusters(3000, count), components=candidates).components == count


def test_the_same_seed_fits_the_same_mixture():
    fits = [ClassMixture.fit(clusters(300, 3), components=(3,), seed=5) for _ in range(2)]
    unfitted = ClassMixture(2, components=3)
    for name in ClassMixture.arrays:
        np.testing.assert_array_equal(*(getattr(fit, name) for fit in fits))
        assert np.abs(getattr(fits[0], name) - getattr(unfitted, name)).max() > 0


def test_a_class_without_codes_keeps_the_standard_normal():
    codes = clusters(200, 2)
    prior = ClassMixture.fit(codes, np.zeros(200, int), num_classes=3, components=(2,))
    z = np.random.default_rng(0).normal(size=(10, 2))
    np.testing.assert_allclose(prior.log_prob(z, np.full(10, 2)), StandardNormal(2).log_prob(z))
    assert np.abs(prior.draw(500, np.full(500, 1), seed=0)).max() < 6


@pytest.mark.parametrize("n", [1, 2, 3, 9, 40])
def test_few_codes_give_a_finite_prior(n):
    codes = np.random.default_rng(0).normal(size=(n, 5))
    prior = ClassMixture.fit(codes)
    assert np.isfinite(prior.draw(50, seed=0)).all()
    assert np.isfinite(prior.log_prob(codes)).all()


def test_one_class_with_few_codes_beside_one_with_many():
    codes = np.concatenate([clusters(600, 3), [[0.0, 0.0], [0.1, 0.1]]])
    labels = np.array([0] * 600 + [1] * 2)
    prior = ClassMixture.fit(codes, labels, num_classes=2, components=(3,))
    z = prior.draw(200, np.ones(200, int), seed=0)
    np.testing.assert_allclose(z.mean(0), [0.05, 0.05], atol=0.05)  # never an empty component
    assert np.isfinite(prior.log_prob(codes, labels)).all()


def test_codes_on_a_line_or_all_alike_give_positive_definite_covariances():
    line = np.outer(np.linspace(-1, 1, 100), np.ones(4))
    for codes in (line, np.zeros((100, 4))):
        factors = ClassMixture.fit(codes, components=(1,)).cholesky
        assert (np.linalg.eigvalsh(factors[0, 0] @ factors[0, 0].T) > 0).all()


def test_a_prior_survives_its_config_and_weights():
    prior = ClassMixture.fit(clusters(300, 3), components=(3,), name="prior")
    copy = ClassMixture.from_config(prior.get_config())
    store = {}
    prior.save_own_variables(store)
    copy.load_own_variables(store)
    np.testing.assert_array_equal(copy.draw(20, seed=2), prior.draw(20, seed=2))
    assert copy.name == "prior" and not copy.weights
    with pytest.raises(ValueError, match=r"means of the prior must be \(1, 2, 2\)"):
        ClassMixture(2, components=2).load_own_variables({**store, "0": np.zeros((1, 2))})
    with pytest.raises(ValueError, match="The prior has 3 arrays; got 0"):
        copy.load_own_variables({})


def test_a_merged_mixture_is_the_sum_over_the_classes():
    codes = clusters(400, 2)
    labels = (codes[:, 0] > 0).astype(int)
    prior = ClassMixture.fit(codes, labels, num_classes=3, components=(2,))
    z = np.random.default_rng(1).normal(size=(10, 2))
    p = [np.exp(prior.log_prob(z, np.full(10, y))) for y in (0, 1)]
    # The third class has no codes and no weight.
    np.testing.assert_allclose(
        prior.merged([30, 10, 0]).log_prob(z), np.log(0.75 * p[0] + 0.25 * p[1]), rtol=1e-5
    )
    drawn = prior.merged([0, 1, 0]).draw(500)
    assert (drawn[:, 0] > -0.5).mean() > 0.9


@keras.saving.register_keras_serializable("test_priors")
class WideNormal(StandardNormal):
    """A prior of one's own, which has no arrays."""

    def draw(self, n, labels=None, seed=0):
        return 2.0 * super().draw(n, labels, seed)


def test_a_prior_without_arrays_is_kept_by_a_file(tmp_path):
    """Also where the weights alone are loaded, which hold nothing of it."""
    model = keras_ae.VAE(latent_dim=2, backbone="mlp", hidden=(4,))
    model.set_prior(WideNormal(2))
    checkpoints.save_model(model, tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    model.load_weights(tmp_path / "model.weights.h5")
    for found in (model, checkpoints.load_model(tmp_path / "model.keras")):
        assert type(found.prior) is WideNormal

"""Paths, planes and directions of latent spaces, against formulas and scikit-learn."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.decomposition import PCA

from keras_ae import AE, CVAE, VAE, latents
from keras_ae.errors import NotFinite, UserError


@pytest.fixture(scope="module")
def vae():
    return VAE((28, 28, 1), latent_dim=3, backbone="mlp", hidden=(8,))


@pytest.fixture(scope="module")
def cvae():
    return CVAE((28, 28, 1), latent_dim=3, backbone="mlp", hidden=(8,), num_classes=4)


class TestPath:
    def test_a_line_has_equal_steps(self):
        codes = latents.path([0.0, 4.0], [2.0, 0.0], 5)
        np.testing.assert_allclose(codes, [[0, 4], [0.5, 3], [1, 2], [1.5, 1], [2, 0]])

    def test_an_arc_keeps_the_norm_and_turns_evenly(self):
        codes = latents.path([3.0, 0.0], [0.0, 3.0], 4, spherical=True)
        np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 3, rtol=1e-6)
        angles = np.degrees(np.arctan2(codes[:, 1], codes[:, 0]))
        np.testing.assert_allclose(angles, [0, 30, 60, 90], atol=1e-4)

    @pytest.mark.parametrize("end", [[2.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    def test_an_arc_without_a_plane_is_a_line(self, end):
        codes = latents.path([1.0, 0.0], end, 3, spherical=True)
        np.testing.assert_allclose(codes, latents.path([1.0, 0.0], end, 3))

    @pytest.mark.parametrize("steps", [-1, 0, 1])
    def test_fewer_steps_than_ends(self, steps):
        with pytest.raises(ValueError, match=f"steps must be 2 or more.*got {steps}"):
            latents.path([0.0], [1.0], steps)


class TestInterpolate:
    def test_the_ends_are_the_decoded_codes(self, vae):
        ends = np.random.default_rng(0).normal(size=(2, 3)).astype("float32")
        images = latents.interpolate(vae, *ends, steps=4)
        np.testing.assert_allclose(images[[0, -1]], vae.decode(ends), atol=1e-6)

    def test_the_ends_of_a_cvae_have_their_classes(self, cvae):
        ends = np.random.default_rng(0).normal(size=(2, 3)).astype("float32")
        images = latents.interpolate(cvae, *ends, steps=3, labels=(1, 3))
        np.testing.assert_allclose(images[[0, -1]], cvae.decode(ends, [1, 3]), atol=1e-6)
        half = cvae.decode(latents.path(*ends, 3, True)[1:2], [[0, 0.5, 0, 0.5]])
        np.testing.assert_allclose(images[1:2], half, atol=1e-6)

    def test_shares_of_another_number_of_classes(self, cvae):
        with pytest.raises(ValueError, match="Shares of 4 classes"):
            cvae.decode(np.zeros((2, 3)), np.zeros((2, 5)))


class TestPlane:
    def test_principal_directions_are_those_of_scikit_learn(self):
        random = np.random.default_rng(0)
        codes = random.normal(size=(500, 5)) @ random.normal(size=(5, 5))
        mine, theirs = latents.principal_directions(codes), PCA().fit(codes).components_
        np.testing.assert_allclose(np.abs(mine @ theirs.T), np.eye(5), atol=1e-8)
        assert (np.take_along_axis(mine, np.abs(mine).argmax(1)[:, None], 1) > 0).all()

    def test_two_latents_are_the_axes_in_quantiles_of_the_prior(self):
        codes = np.random.default_rng(0).normal(size=(200_000, 2))
        grid = latents.plane(codes, 3, 4).reshape(3, 4, 2)
        across, up = norm.ppf([1 / 8, 3 / 8, 5 / 8, 7 / 8]), norm.ppf([5 / 6, 1 / 2, 1 / 6])
        np.testing.assert_allclose(grid[..., 0], np.tile(across, (3, 1)), atol=0.02)
        np.testing.assert_allclose(grid[..., 1], np.tile(up[:, None], (1, 4)), atol=0.02)

    def test_more_latents_lie_in_the_plane_of_the_widest_two(self):
        scales = [1, 9, 2, 5]
        codes = np.random.default_rng(0).normal(size=(50_000, 4)) * scales + [7, 0, 0, 0]
        grid = latents.plane(codes, 5, 5)
        np.testing.assert_allclose(grid[:, [0, 2]], np.tile([7, 0], (25, 1)), atol=0.6)
        assert grid[4, 1] > grid[0, 1] + 15 and grid[0, 3] > grid[-5, 3] + 8

    def test_one_latent_is_a_line(self):
        codes = np.random.default_rng(0).normal(size=(1000, 1))
        grid = latents.plane(codes, 2, 3)
        assert grid.shape == (6, 1) and (np.diff(grid[:, 0]) > 0).all()

    def test_a_model_without_a_prior_is_given_codes(self, digits):
        ae = AE((28, 28, 1), latent_dim=2, backbone="mlp", hidden=(8,))
        images = latents.manifold(ae, 2, 3, codes=ae.encode(digits[0][:50]))
        assert images.shape == (6, 28, 28, 1)

    @pytest.mark.parametrize("size", [(-1, 2), (2, 0)])
    def test_a_grid_without_rows_or_columns(self, size, vae):
        with pytest.raises(ValueError, match="(rows|columns) must be a whole number, 1 or more"):
            latents.manifold(vae, *size)


class TestTraversals:
    def test_latents_in_order_of_their_kl(self, vae, digits):
        order, kl = latents.latent_order(vae, digits[0][:100])
        mean, log_var = vae.posterior(digits[0][:100])
        expected = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).mean(0)
        assert sorted(order) == [0, 1, 2] and (np.diff(kl) <= 0).all()
        np.testing.assert_allclose(kl, expected[order], rtol=1e-4)

    def test_one_latent_moves_in_a_row(self, vae):
        codes = np.random.default_rng(0).normal(size=(1000, 3)).astype("float32")
        images = latents.traversals(vae, codes[0], [2, 0], codes, steps=3)
        low, high = np.quantile(codes, latents.REACH, axis=0)
        end = codes[0].copy()
        end[0] = high[0]
        assert images.shape == (6, 28, 28, 1)
        np.testing.assert_allclose(images[-1:], vae.decode(end[None]), atol=1e-6)

    @pytest.mark.parametrize("latent", [-1, 3, 99])
    def test_a_latent_that_is_not_there(self, latent, vae):
        with pytest.raises(ValueError, match=f"0 to 2; got {latent}"):
            latents.traversals(vae, np.zeros(3), [0, latent], np.eye(3))


class TestEmbed:
    def test_pca_is_that_of_scikit_learn(self):
        codes = np.random.default_rng(0).normal(size=(300, 4)) * [1, 4, 2, 3]
        points, axes = latents.embed(codes)
        expected = PCA(2).fit_transform(codes)
        np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-8)
        assert axes[0].startswith("principal direction 1 (") and "% of variance" in axes[0]

    def test_tsne_keeps_clusters_apart_and_draws_by_its_seed(self):
        random = np.random.default_rng(0)
        codes = np.concatenate([random.normal(size=(30, 5)), random.normal(size=(30, 5)) + 20])
        points, _ = latents.embed(codes, "tsne", seed=1)
        again, _ = latents.embed(codes, "tsne", seed=1)
        np.testing.assert_array_equal(points, again)
        middles = points[:30].mean(0), points[30:].mean(0)
        assert np.linalg.norm(points[:30] - middles[0], axis=1).max() < np.linalg.norm(
            np.subtract(*middles)
        )

    @pytest.mark.parametrize("method", ["pca", "tsne"])
    @pytest.mark.parametrize(
        "shape, scale",
        [((30, 3), 0.0), ((5, 1), 1.0), ((3, 1), 1.0), ((30, 3), 1e-30), ((30, 3), 1e25)],
    )
    def test_codes_without_spread_of_one_latent_or_of_any_scale(self, method, shape, scale):
        codes = 7 * scale + scale * np.random.default_rng(0).standard_normal(shape)
        points, axes = latents.embed(codes, method)
        assert (
            points.shape == (shape[0], 2) and np.isfinite(points).all() and "nan" not in str(axes)
        )
        assert scale == 0 or len(np.unique(points, axis=0)) == shape[0]

    @pytest.mark.parametrize("n", [3, 5, 15, 16])
    def test_umap_of_few_codes(self, n):
        pytest.importorskip("umap")
        points, _ = latents.embed(np.random.default_rng(0).standard_normal((n, 4)), "umap")
        assert points.shape == (n, 2) and np.isfinite(points).all()

    def test_what_cannot_be(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "umap", None)
        with pytest.raises(UserError, match="pip install umap-learn"):
            latents.embed(np.eye(5), "umap")
        with pytest.raises(UserError, match="too few"):
            latents.embed(np.eye(2))
        with pytest.raises(ValueError, match="pca, tsne, umap"):
            latents.embed(np.eye(5), "isomap")


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_codes_that_are_no_numbers_have_no_place(dimensions):
    codes = np.full((5, dimensions), np.nan)
    for method in ("pca", "tsne"):
        with pytest.raises(NotFinite):
            latents.embed(codes, method)


def test_codes_that_are_no_numbers_vary_in_no_direction():
    with pytest.raises(NotFinite):
        latents.principal_directions(np.full((5, 3), np.inf))


def test_no_codes_cover_nothing(vae):
    none = np.zeros((0, 3))
    for explore in (
        lambda: latents.manifold(vae, codes=none),
        lambda: latents.traversals(vae, np.zeros(3), [0], none),
        lambda: latents.principal_directions(none),
    ):
        with pytest.raises(ValueError, match="Codes must be .N, D., N >= 1; got .0, 3."):
            explore()

"""Explores the latent space: codes along paths, planes and directions, to be decoded.

Codes are NumPy arrays (N, D), computed by NumPy: one seed gives the same picture on every backend. `inputs`
are the model's inputs: images (N, H, W, C), or for a CVAE the pair (images, labels).
"""

import os

import numpy as np

from keras_ae.errors import UserError, need
from keras_ae.evaluation import kl_per_latent
from keras_ae.inference import check_count, check_finite, check_memory
from keras_ae.priors import draw_codes
from keras_ae.tensors import to_numpy

DRAWN = 10_000  # codes drawn from the prior to compute quantiles
REACH = (0.02, 0.98)  # a traversal goes from one of these quantiles to the other
EMBEDDINGS = ("pca", "tsne", "umap")
FEWEST = 3  # codes that can be plotted


def path(start, end, steps, spherical=False):
    """Codes on the path from one code to another, including both: (D,) and (D,) -> (steps, D).

    Args:
        start, end: codes.
        steps: number of codes, >= 2.
        spherical: follow an arc instead of a line: codes from a Gaussian lie near a sphere, and the middle
            of a line is closer to 0 than these codes are.

    Raises:
        ValueError: there are fewer than 2 steps.
        UserError: so many codes would take too much memory.

    References:
        White 2016, Sampling Generative Networks, arXiv:1609.04468, section 2.1 (slerp).
    """
    if steps < 2:
        raise ValueError(f"steps must be 2 or more, for both ends; got {steps}.")
    start, end = (to_numpy(c, "float64") for c in (start, end))
    check_memory(4 * 8 * steps * start.size, f"a path of {steps:,} codes")
    share = np.linspace(0.0, 1.0, steps)[:, None]
    norms = np.linalg.norm(start) * np.linalg.norm(end)
    angle = np.arccos(np.clip(start @ end / norms, -1.0, 1.0)) if norms else 0.0
    if not spherical or np.sin(angle) < 1e-6:  # same or opposite directions have no unique arc
        return ((1 - share) * start + share * end).astype("float32")
    arc = np.sin((1 - share) * angle) * start + np.sin(share * angle) * end
    return (arc / np.sin(angle)).astype("float32")


def interpolate(model, start, end, steps=10, labels=None, spherical=None):
    """Decode the path between two codes to images: (steps, H, W, C) float32 in [0, 1].

    Args:
        model: AE, VAE or CVAE.
        start, end: codes (D,).
        steps: number of images, including both ends, >= 2.
        labels: for a CVAE, the classes of the two ends, or one for both; in between, the decoder gets shares of both.
        spherical: see `path`. By default True for a VAE and a CVAE, whose codes the KL term pulls towards
            a Gaussian, and False for an AE.

    Raises:
        ValueError: codes or labels do not fit the model.
    """
    if spherical is None:
        spherical = hasattr(model, "prior")
    codes = path(start, end, steps, spherical)
    ends = model.class_labels(labels, 2, shares=True)
    return model.decode(codes, None if ends is None else path(*ends[:], steps))


def principal_directions(codes):
    """Orthonormal directions by how much codes vary along them, largest first: (N, D) -> (D, D), one per row.

    The sign of a direction makes its largest entry positive, so that it does not depend on the machine.

    Raises:
        UserError: the covariance would take too much memory.
        NotFinite: some codes are NaN or infinite.
        ValueError: there are no codes.
    """
    _check_some(codes)
    check_finite([codes], "Some codes of the model")
    latents = np.shape(codes)[1]
    check_memory(4 * 8 * latents**2, f"the covariance of {latents:,} latents")
    _, vectors = np.linalg.eigh(np.cov(to_numpy(codes, "float64"), rowvar=False, ddof=0))
    rows = vectors.T[::-1]
    largest = np.take_along_axis(rows, np.abs(rows).argmax(1, keepdims=True), 1)
    return rows * np.sign(largest)


def _check_some(codes):
    if len(np.shape(codes)) != 2 or not len(codes):
        raise ValueError(f"Codes must be (N, D), N >= 1; got {np.shape(codes)}.")


def plane(codes, rows, columns):
    """A grid of codes on the plane in which the given codes vary most.

    Args:
        codes: (N, D), the codes that the grid should cover, such as draws from a prior.
        rows, columns: size of the grid. With one latent, all of it lies on a line.

    Returns:
        (rows * columns, D) float32, row by row. The steps are quantiles of the codes along the plane's two
        directions. These are the latents themselves if there are two, else the first two principal
        directions, through the mean. The first grows from left to right, the second from bottom to top.

    Raises:
        ValueError: there are no rows or columns, or no codes.
        UserError: so many would take too much memory.
    """
    check_count("rows", rows, 1)
    check_count("columns", columns, 1)
    _check_some(codes)
    codes = to_numpy(codes, "float64")
    dimensions = codes.shape[1]
    check_memory(4 * 8 * rows * columns * dimensions, f"a grid of {rows:,} x {columns:,} codes")
    if dimensions == 1:
        n = rows * columns
        return np.quantile(codes, (np.arange(n) + 0.5) / n, axis=0).astype("float32")
    directions = np.eye(2) if dimensions == 2 else principal_directions(codes)[:2]
    mean = codes.mean(0)
    along = (codes - mean) @ directions.T
    across = np.quantile(along[:, 0], (np.arange(columns) + 0.5) / columns)
    up = np.quantile(along[:, 1], (np.arange(rows) + 0.5) / rows)[::-1]
    grid = np.stack(np.meshgrid(across, up), -1).reshape(-1, 2)
    return (mean + grid @ directions).astype("float32")


def manifold(model, rows=15, columns=15, label=None, codes=None, seed=0):
    """Decode a grid across the latent space to images: (rows * columns, H, W, C), see `plane`.

    Args:
        model: AE, VAE or CVAE.
        rows, columns: size of the grid.
        label: for a CVAE, the class.
        codes: (N, D) to cover; by default draws from the model's prior. An AE has no prior and needs them.
        seed: of the draws.

    Raises:
        ValueError: an AE was given no codes, the label does not fit the model, or there are no codes, rows or columns.
    """
    labels = model.class_labels(label, DRAWN)
    if codes is None:
        if not hasattr(model, "prior"):
            raise ValueError("An AE has no prior: give codes to cover.")
        codes = draw_codes(model.prior, DRAWN, labels, seed)
    return model.decode(plane(codes, rows, columns), label)


def latent_order(model, inputs):
    """Latents sorted by how much information they carry, largest first.

    Returns:
        Their indices (D,), and how much each carries, in the same order: for a VAE or CVAE its KL from
        N(0, I) in nats, averaged over images; for an AE its variance over the codes.
    """
    if hasattr(model, "posterior"):
        carried = kl_per_latent(*model.posterior(inputs))
    else:
        carried = model.encode(inputs).var(0, dtype="float64")
    order = np.argsort(-carried, kind="stable")
    return order, carried[order]


def traversals(model, code, latents, codes, steps=10, label=None):
    """Decode a code while one latent at a time moves: (len(latents) * steps, H, W, C), one row per latent.

    Args:
        model: AE, VAE or CVAE.
        code: (D,), the code to start from; the other latents keep its values.
        latents: indices of latents, such as the first of `latent_order`.
        codes: (N, D) codes of images: each latent moves in even steps from one of their outer quantiles
            (`REACH`) to the other.
        steps: images per latent.
        label: for a CVAE, the class.

    Raises:
        ValueError: the model has no such latent, or there are no codes.

    References:
        Higgins et al. 2017, beta-VAE, figures 1 to 3.
    """
    for latent in latents:
        if not 0 <= latent < model.latent_dim:
            raise ValueError(
                f"Latents of this model are 0 to {model.latent_dim - 1}; got {latent}."
            )
    _check_some(codes)
    low, high = np.quantile(codes, REACH, axis=0)
    moved = np.repeat(to_numpy(code, "float32")[None], len(latents) * steps, axis=0)
    for row, latent in enumerate(latents):
        moved[row * steps : (row + 1) * steps, latent] = np.linspace(
            low[latent], high[latent], steps
        )
    return model.decode(moved, label)


def need_method(method):
    """Check that the package for a method of `embed` is installed.

    Raises:
        UserError: it is not; the message has the command that installs it. Or numba, which umap compiles with, would
            be steered by a file in the working folder.
    """
    packages = {"tsne": ("sklearn",), "umap": ("umap",)}.get(method, ())
    need(f"The method {method}", *packages)
    if method == "umap" and os.path.lexists(".numba_config.yaml"):
        # It can name a cache, whose files numba unpickles.
        raise UserError(
            "umap would follow the .numba_config.yaml in this folder, which may run code: rename it, or work in another "
            "folder."
        )


def embed(codes, method="pca", seed=0):
    """Map codes (N, D) to points in the plane (N, 2).

    Args:
        method: "pca" for the first two principal directions; or "tsne" (van der Maaten & Hinton 2008) or
            "umap" (McInnes, Healy & Melville 2018, arXiv:1802.03426), which keep neighbours together, but
            whose distances and axes have no meaning.
        seed: of the random numbers of "tsne" and "umap".

    Returns:
        The points, and the names of the two axes.

    Raises:
        UserError: the package of the method is not installed, or there are fewer than 3 codes.
        NotFinite: some codes are NaN or infinite.
        ValueError: the method is unknown.
    """
    codes = to_numpy(codes, "float64")
    if method not in EMBEDDINGS:
        raise ValueError(f"method must be one of {', '.join(EMBEDDINGS)}; got {method!r}.")
    if len(codes) < FEWEST:
        raise UserError(f"{len(codes)} codes are too few to plot: {FEWEST} or more are needed.")
    check_finite([codes], "Some codes of the model")
    if not (spread := codes.std(0).max()):  # all codes are one point, which no method can scale
        return np.zeros((len(codes), 2)), ("all codes are equal", "")
    if method == "pca":
        if codes.shape[1] == 1:
            return np.hstack([codes, np.zeros_like(codes)]), ("latent 0", "")
        if codes.shape[1] == 2:
            return codes, ("latent 0", "latent 1")
        centred = codes - codes.mean(0)
        along = centred @ principal_directions(codes).T
        share = along.var(0) / along.var(0).sum()
        axes = tuple(f"principal direction {i + 1} ({share[i]:.0%} of variance)" for i in (0, 1))
        return along[:, :2], axes
    need_method(method)
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(codes) - 1) / 3)
        codes = (codes - codes.mean(0)) / spread  # the map is the same at every scale
        if codes.shape[1] == 1:  # its first guess needs two axes
            codes = np.hstack([codes, np.zeros_like(codes)])
        return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(codes), (
            "t-SNE",
            "",
        )
    import umap

    neighbours = min(15, len(codes) - 1)
    # Its first guess, of eigenvectors, needs more codes than it has neighbours.
    init = "spectral" if neighbours == 15 else "random"
    made = umap.UMAP(n_neighbors=neighbours, init=init, random_state=seed, n_jobs=1)
    return made.fit_transform(codes), ("UMAP", "")

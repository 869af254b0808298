"""What the latent space holds: paths, planes and directions through it, as codes to decode.

Codes are NumPy arrays (N, D), chosen on the host: one seed gives one picture on every backend. `inputs`
is what the model takes: images (N, H, W, C), for a CVAE the pair (images, labels).
"""

import numpy as np

from keras_ae.errors import UserError, need
from keras_ae.evaluation import kl_per_latent

DRAWN = 10_000  # codes of the prior whose quantiles are taken
REACH = (0.02, 0.98)  # quantiles between which a traversal goes
EMBEDDINGS = ("pca", "tsne", "umap")
NEIGHBOURHOODS = 3_000  # codes that t-SNE and UMAP are given at most: they take seconds for so many


def path(start, end, steps, spherical=False):
    """Codes from one to another, both among them: (D,) twice -> (steps, D).

    Args:
        start, end: codes.
        steps: number of codes, >= 2.
        spherical: along an arc instead of a line, as codes of a Gaussian lie near a sphere and the
            middle of a line is nearer to 0 than any of them.

    References:
        White 2016, Sampling Generative Networks, arXiv:1609.04468, section 2.1 (slerp).
    """
    start, end = (np.asarray(c, "float64") for c in (start, end))
    share = np.linspace(0.0, 1.0, steps)[:, None]
    norms = np.linalg.norm(start) * np.linalg.norm(end)
    angle = np.arccos(np.clip(start @ end / norms, -1.0, 1.0)) if norms else 0.0
    if not spherical or np.sin(angle) < 1e-6:  # one direction, or two opposite: no arc is shortest
        return ((1 - share) * start + share * end).astype("float32")
    arc = np.sin((1 - share) * angle) * start + np.sin(share * angle) * end
    return (arc / np.sin(angle)).astype("float32")


def interpolate(model, start, end, steps=10, labels=None, spherical=None):
    """Images decoded along the path between two codes: (steps, H, W, C) float32 in [0, 1].

    Args:
        model: AE, VAE or CVAE.
        start, end: codes (D,).
        steps: images, both ends among them, >= 2.
        labels: for a CVAE, the classes of the two ends: in between, it is given shares of both.
        spherical: see `path`; by default for a VAE and a CVAE, whose codes the KL term draws to a
            Gaussian, and not for an AE.
    """
    if spherical is None:
        spherical = hasattr(model, "prior")
    codes = path(start, end, steps, spherical)
    if not model.num_classes:
        return model.decode(codes)
    ends = np.eye(model.num_classes, dtype="float32")[np.asarray(labels)]
    return model.decode(codes, path(*ends, steps))


def principal_directions(codes):
    """Orthonormal directions in which codes vary most, the most first: (N, D) -> (D, D), a row each.

    The largest entry of a direction is positive, so that it does not depend on the machine.
    """
    _, vectors = np.linalg.eigh(np.cov(np.asarray(codes, "float64"), rowvar=False, ddof=0))
    rows = vectors.T[::-1]
    largest = np.take_along_axis(rows, np.abs(rows).argmax(1, keepdims=True), 1)
    return rows * np.sign(largest)


def plane(codes, rows, columns):
    """A grid of codes across the plane in which some codes vary most.

    Args:
        codes: (N, D), what is to be covered, such as draws of a prior.
        rows, columns: size of the grid. With one latent all of it lies on a line.

    Returns:
        (rows * columns, D) float32, row by row. Steps are quantiles of the codes along the plane's two
        directions: the latents themselves where there are two, else the principal directions, through
        the mean. From left to right the first grows, from bottom to top the second.
    """
    codes = np.asarray(codes, "float64")
    dimensions = codes.shape[1]
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
    """Images decoded across the latent space: (rows * columns, H, W, C), see `plane`.

    Args:
        model: AE, VAE or CVAE.
        rows, columns: size of the grid.
        label: for a CVAE, the class.
        codes: (N, D) to cover; by default draws of the model's prior, which an AE has none of.
        seed: of the draws.
    """
    if codes is None:
        labels = None if label is None else np.full(DRAWN, label)
        codes = model.prior.draw(DRAWN, labels, seed)
    return model.decode(plane(codes, rows, columns), label)


def latent_order(model, inputs):
    """Latents in order of what they carry, the most first.

    Returns:
        Their indices (D,), and how much each carries, in the same order: for a VAE or CVAE its KL from
        N(0, I) in nats, averaged over images, for an AE the variance of its codes.
    """
    if hasattr(model, "posterior"):
        carried = kl_per_latent(*model.posterior(inputs))
    else:
        carried = model.encode(inputs).var(0, dtype="float64")
    order = np.argsort(-carried, kind="stable")
    return order, carried[order]


def traversals(model, code, latents, codes, steps=10, label=None):
    """One latent at a time moved, the others kept: (len(latents) * steps, H, W, C), a row a latent.

    Args:
        model: AE, VAE or CVAE.
        code: (D,) where to start from.
        latents: indices of latents, such as the first of `latent_order`.
        codes: (N, D) codes of images: each latent goes evenly from one of their outer quantiles
            (`REACH`) to the other.
        steps: images a latent.
        label: for a CVAE, the class.

    References:
        Higgins et al. 2017, beta-VAE, figures 1 to 3.
    """
    low, high = np.quantile(codes, REACH, axis=0)
    moved = np.repeat(np.asarray(code, "float32")[None], len(latents) * steps, axis=0)
    for row, latent in enumerate(latents):
        moved[row * steps : (row + 1) * steps, latent] = np.linspace(
            low[latent], high[latent], steps
        )
    return model.decode(moved, label)


def need_method(method):
    """Refuse a method of `embed` whose package is not installed.

    Raises:
        UserError: with the command that installs it.
    """
    packages = {"tsne": ("sklearn",), "umap": ("umap",)}.get(method, ())
    need(f"The method {method}", *packages)


def embed(codes, method="pca", seed=0):
    """Codes (N, D) as points of the plane (N, 2).

    Args:
        method: "pca", the two principal directions; "tsne" (van der Maaten & Hinton 2008) or "umap"
            (McInnes, Healy & Melville 2018, arXiv:1802.03426), which keep neighbours together and for
            which distances and axes mean nothing.
        seed: of what they draw.

    Returns:
        The points, and what the axes are called.

    Raises:
        UserError: UMAP is not installed, or there are fewer than 3 codes.
        ValueError: for another method.
    """
    codes = np.asarray(codes, "float64")
    if method not in EMBEDDINGS:
        raise ValueError(f"method must be one of {', '.join(EMBEDDINGS)}; got {method!r}.")
    if len(codes) < 3:
        raise UserError(f"{len(codes)} codes are too few to plot: 3 or more are needed.")
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
        return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(codes), (
            "t-SNE",
            "",
        )
    import umap

    return umap.UMAP(random_state=seed, n_jobs=1).fit_transform(codes), ("UMAP", "")

"""Distances between two sets of images, computed from their features or their pixels.

Features are (N, F), one row per image, or (N, P, F), P patches of each of N images. Instead of
Inception's features, this package uses those of its own evaluation classifier, patches of images, or
the features of a network that the user provides: see `evaluation.features`.
"""

import functools

import numpy as np

from keras_ae.errors import NotFinite
from keras_ae.evaluation.arrays import chunks
from keras_ae.evaluation.intervals import NORMAL, REDRAWN, around
from keras_ae.inputs import check_range
from keras_ae.pictures import to_float
from keras_ae.tensors import to_numpy

NEIGHBOURS = 5  # k of the k-th neighbour that gives a ball's radius, as Naeem et al. recommend
COMPARED = 10_000  # most images of each set in the kernel distance, which compares all pairs
KERNELS = 4  # most patches of an image in the kernel distance
PARTS = 50  # parts of a set that are resampled for the interval of a Fréchet distance
FEW = PARTS  # fewest images for which there is an interval
DIRECTIONS = 64  # directions that features are projected on
NARROW = 512  # most features for which resamples of a Fréchet distance are computed


class Reference:
    """A set of features that other sets are compared with, such as those of the training images.

    Args:
        features: (M, F) or (M, P, F).
        seed: seed of the directions of projections, and of the resamples for intervals.
    """

    def __init__(self, features, seed=0):
        self.features = _patches_of(features)
        self.seed = seed
        self._sorted = {}  # number of images: sorted projections

    def distances(self, features):
        """The three distances between a set of features and this one, each with a 95 % interval.

        For the interval, the images of the other set vary and the reference stays the same. See
        `intervals.around`.

        Args:
            features: (N, F) or (N, P, F).

        Returns:
            A dict of "fid", "kid", "swd", and each with "_interval": floats and [low, high]. With fewer
            than 50 images, the intervals are None.
        """
        features = _patches_of(features)
        fid, fid_interval = _frechet_with_interval(features, self)
        kid, kid_interval = _kernel_with_interval(features, self)
        swd, swd_interval = _sliced_with_interval(features, self)
        return {
            "fid": fid,
            "fid_interval": fid_interval,
            "kid": kid,
            "kid_interval": kid_interval,
            "swd": swd,
            "swd_interval": swd_interval,
        }

    @functools.cached_property
    def gaussian(self):
        """Mean (F,), trace of the covariance matrix, and square root (F, F) of the covariance matrix."""
        mean, covariance = _moments(
            self.features.reshape(-1, self.features.shape[-1]).astype("float64")
        )
        return mean, np.trace(covariance), _root(covariance)

    @functools.cached_property
    def compared(self):
        """For each patch that the kernel distance compares: its features (M, F), and the mean kernel of
        two images."""

        def among(y):
            return (_kernel_sums(y, y) - _kernel(y, y)).mean() / (len(y) - 1)

        patches = range(min(KERNELS, self.features.shape[1]))
        chosen = [self.features[:COMPARED, k].astype("float64") for k in patches]
        return [(y, among(y)) for y in chosen]

    def sorted_along(self, directions, n):
        """Projections of the first n images on directions (F, K): a list of K sorted arrays (n * P,)."""
        if n not in self._sorted:
            rows = self.features[:n].reshape(-1, self.features.shape[-1])
            self._sorted[n] = [np.sort(rows @ vector) for vector in directions.T.astype(rows.dtype)]
        return self._sorted[n]


def frechet_distance(features, others):
    """Squared Fréchet distance of two Gaussians with the means and covariances of two sets of features.

    |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)); shapes (N, F), (M, F) -> float. The FID of this package
    is this distance with the features of an evaluation classifier instead of Inception's. Only compare
    figures of the same classifier and the same number of images: with fewer images, they are larger.

    Raises:
        ValueError: features have another shape, N or M is below 2, or some are NaN or infinite.

    References:
        Heusel et al. 2017, GANs Trained by a Two Time-Scale Update Rule, arXiv:1706.08500.
    """
    sets = (_patches_of(f, 2) for f in (features, others))
    (m1, c1), (m2, c2) = (_moments(x.reshape(-1, x.shape[-1]).astype("float64")) for x in sets)
    return _frechet(m1, c1, m2, np.trace(c2), _root(c2))


def _moments(features):
    return features.mean(0), np.atleast_2d(np.cov(features, rowvar=False))


def _root(covariance):
    """The symmetric square root of a covariance matrix, which may be singular."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def _frechet(mean, covariance, other_mean, other_trace, other_root):
    # The trace of (C1 C2)^(1/2), computed with symmetric matrices only.
    crossed = np.linalg.eigvalsh(other_root @ covariance @ other_root)
    trace = np.trace(covariance) + other_trace - 2 * np.sqrt(crossed.clip(0)).sum()
    return float(np.square(mean - other_mean).sum() + trace)


def _frechet_with_interval(features, reference):
    """The Fréchet distance of (N, P, F) from a `Reference`, and its interval over images."""
    n, _, width = features.shape
    other_mean, *_ = other = reference.gaussian
    # With the sums of each part of the images, the moments of every resample of parts are known.
    parts = np.array_split(features, 1 if width > NARROW else min(n, PARTS))
    counts, sums, products = [], [], []
    for part in parts:
        rows = part.reshape(-1, width).astype("float64") - other_mean
        counts.append(len(rows))
        sums.append(rows.sum(0))
        products.append(rows.T @ rows)

    def of(times):
        count = times @ np.array(counts)
        mean = times @ np.array(sums) / count
        second = np.tensordot(times, np.array(products), 1)
        covariance = (second - count * np.outer(mean, mean)) / (count - 1)
        return _frechet(mean + other_mean, covariance, *other)

    estimate = of(np.ones(len(parts)))
    if width > NARROW or len(parts) < PARTS:
        return estimate, None
    random = np.random.default_rng(reference.seed)
    shares = np.full(len(parts), 1 / len(parts))
    return estimate, around(
        estimate, [of(random.multinomial(len(parts), shares)) for _ in range(REDRAWN)]
    )


def kernel_distance(features, others):
    """Unbiased estimate of the squared maximum mean discrepancy, kernel (x . y / F + 1)^3; may be negative.

    Shapes (N, F), (M, F), N and M 2 or more -> float. With an evaluation classifier's features this is
    the KID of this package. Unlike that of FID, its expectation does not depend on the number of images.

    References:
        Bińkowski et al. 2018, Demystifying MMD GANs, arXiv:1801.01401, section 4.
    """
    return _kernel_with_interval(_patches_of(features, 2), Reference(_patches_of(others, 2)))[0]


def _kernel_with_interval(features, reference):
    """The kernel distance of (N, P, F) from a `Reference`, and its interval over images.

    If an image has several patches, the first patches of all images are compared, then the second
    patches, and so on. Two patches of one image are never compared.
    """
    features = features[:COMPARED]
    n, estimates, terms = len(features), [], []
    for k, (y, among) in enumerate(reference.compared):
        x = features[:, k].astype("float64")
        own = (_kernel_sums(x, x) - _kernel(x, x)) / (n - 1)
        across = _kernel_sums(x, y) / len(y)
        estimates.append(own.mean() + among - 2 * across.mean())
        terms.append(2 * (own - across))  # the influence of each image on the estimate
    estimate = float(np.mean(estimates))
    if n < FEW:
        return estimate, None
    reach = NORMAL * float(np.mean(terms, axis=0).std(ddof=1)) / n**0.5
    return estimate, [estimate - reach, estimate + reach]


def _kernel(x, y):
    """The kernel of each row of x and the same row of y: (N,)."""
    return (np.einsum("nf,nf->n", x, y) / x.shape[1] + 1) ** 3


def _kernel_sums(x, y):
    """For each row of x, the sum of its kernels with all rows of y: (N,)."""
    sums = [((x[rows] @ y.T / x.shape[1] + 1) ** 3).sum(1) for rows in chunks(len(x), len(y))]
    return np.concatenate(sums)


def sliced_wasserstein(features, others, directions=DIRECTIONS, seed=0):
    """Wasserstein distance of two sets projected on a direction, averaged over random directions.

    Shapes (N, F), (M, F) -> float. Of the larger set, only as many rows are used as the smaller set has.
    The distance grows if either set lacks something that the other has. It is never 0 for two different
    samples of one distribution, so compare it with the distance of the test images.

    Args:
        directions: number of directions, which are random unit vectors.
        seed: seed of the directions.

    References:
        Rabin et al. 2011, Wasserstein Barycenter and its Application to Texture Mixing.
        Karras et al. 2018, Progressive Growing of GANs, arXiv:1710.10196, section 5.
    """
    reference = Reference(others, seed)
    return _sliced_with_interval(_patches_of(features), reference, directions, redrawn=0)[0]


def unit_vectors(n, width, seed):
    """Random unit vectors, the columns of an array (F, n)."""
    vectors = np.random.default_rng(seed).standard_normal((width, n))
    return vectors / np.linalg.norm(vectors, axis=0)


def _sliced_with_interval(features, reference, directions=DIRECTIONS, redrawn=REDRAWN):
    """The sliced Wasserstein distance of (N, P, F) from a `Reference`, and its interval over images."""
    n = min(len(features), len(reference.features))
    patches, width = features.shape[1:]
    onto = unit_vectors(directions, width, reference.seed)
    targets = reference.sorted_along(onto, n)
    random = np.random.default_rng(reference.seed)
    draws = [np.bincount(random.integers(0, n, n), minlength=n) for _ in range(redrawn)]
    rows = features[:n].reshape(-1, width)  # one row per patch; P rows in turn are one image
    distances, resampled = np.empty(directions), np.empty((redrawn, directions))
    for k, (vector, target) in enumerate(zip(onto.T.astype(rows.dtype), targets)):
        values = rows @ vector
        order = np.argsort(values)
        values = values[order]
        distances[k] = np.abs(values - target).mean(dtype="float64")
        image = order // patches
        for i, times in enumerate(draws):
            resampled[i, k] = np.abs(np.repeat(values, times[image]) - target).mean(dtype="float64")
    estimate = float(distances.mean())
    return estimate, around(estimate, resampled.mean(1)) if n >= FEW else None


def _patches_of(features, fewest=1):
    """Features as (N, P, F), checked."""
    features = to_numpy(features)
    if features.ndim not in (2, 3) or len(features) < fewest:
        raise ValueError(f"Features must be (N, F), N >= {fewest}; got {features.shape}.")
    if not np.isfinite(features).all():
        raise NotFinite("Some features are no finite numbers")
    return features if features.ndim == 3 else features[:, None]


def manifold_overlap(real, samples, k=NEIGHBOURS):
    """Measures how much samples and real images overlap, with balls around their features.

    The radius of a point's ball is the distance to its k-th nearest neighbour in its own set.

    Args:
        real: (N, F) features of real images, N > k.
        samples: (M, F) features of samples, M > k.
        k: which nearest neighbour gives the radius.

    Returns:
        A dict: "precision", share of samples in the ball of a real image; "recall", share of real images
        in the ball of a sample; "density", mean number of balls of real images that a sample lies in,
        divided by k (about 1 for real images, more for samples that crowd together); "coverage", share
        of real images whose ball holds a sample.

    References:
        Kynkäänniemi et al. 2019, Improved Precision and Recall Metric, arXiv:1904.06991.
        Naeem et al. 2020, Reliable Fidelity and Diversity Metrics, arXiv:2002.09797.
    """
    from sklearn.metrics import pairwise_distances
    from sklearn.neighbors import NearestNeighbors

    real, samples = (to_numpy(f, "float64") for f in (real, samples))
    real_radius, sample_radius = (
        NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points).kneighbors()[0][:, -1]
        for points in (real, samples)
    )
    balls = np.empty(len(samples), "int64")  # number of real images' balls that a sample is in
    recalled = np.zeros(len(real), bool)
    covered = np.zeros(len(real), bool)
    for rows in chunks(len(samples), len(real)):
        distance = pairwise_distances(samples[rows], real)
        inside = distance <= real_radius
        balls[rows] = inside.sum(1)
        covered |= inside.any(0)
        recalled |= (distance <= sample_radius[rows, None]).any(0)
    return {
        "precision": float((balls > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(balls.mean() / k),
        "coverage": float(covered.mean()),
    }


def nearest_training_images(images, train_images):
    """Finds each image's nearest training image by the Euclidean distance of pixels in [0, 1].

    Shapes (N, H, W, C), (M, H, W, C), uint8 or float in [0, 1] -> distances (N,), indices (N,).

    Raises:
        ValueError: the training images are on another scale.
    """
    check_range(train_images, "Training images")
    from sklearn.metrics import pairwise_distances_argmin_min

    flat = to_float(images).reshape(len(images), -1)
    nearest, which = np.full(len(images), np.inf), np.zeros(len(images), "int64")
    for rows in chunks(len(train_images), flat.shape[1]):
        part = to_float(train_images[rows]).reshape(-1, flat.shape[1])
        index, distance = pairwise_distances_argmin_min(flat, part)
        closer = distance < nearest
        nearest[closer], which[closer] = distance[closer], index[closer] + rows.start
    return nearest, which


def closest_pairs(images, train_images, n=10):
    """Finds the n images that are closest to a training image, closest first, to show them as pairs.

    Returns:
        images (n, H, W, C), their nearest training images (n, H, W, C), distances (n,).
    """
    distance, index = nearest_training_images(images, train_images)
    closest = np.argsort(distance, kind="stable")[:n]
    return images[closest], train_images[index[closest]], distance[closest]


def conditional_accuracy(probabilities, labels):
    """Share of samples that a classifier assigns to the class that was requested.

    Args:
        probabilities: (N, K), the classifier's probabilities of the classes.
        labels: (N,) requested classes.

    Returns:
        A float in [0, 1] for all samples, and a list of K floats, one per class. It holds None for a
        class that was not requested.
    """
    right = probabilities.argmax(-1) == labels
    of_class = [labels == y for y in range(probabilities.shape[1])]
    return float(right.mean()), [float(right[a].mean()) if a.any() else None for a in of_class]

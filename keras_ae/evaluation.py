"""What a model is worth: reconstruction, evidence, codes and samples, as figures.

    figures = evaluate(model, train, test)      # every figure, in one dict that json can write

`inputs` is here what the model takes: images (N, H, W, C), uint8 or float in [0, 1], and for a CVAE the
pair (images, labels). Log-likelihoods and divergences are in nats per image. Networks are used through
`model.posterior`, `model.decode` and `model.sample` alone; all else is NumPy, SciPy and scikit-learn, the
same on every backend.
"""

import dataclasses
import time

import keras
import numpy as np
from scipy.special import logsumexp

from keras_ae.classifier import evaluation_classifier
from keras_ae.data.stored import StoredImages, memory_bound, select
from keras_ae.errors import UserError
from keras_ae.feed import binarized
from keras_ae.losses import find_reconstruction, nll_per_image
from keras_ae.pictures import to_float
from keras_ae.priors import StandardNormal

BATCH = 1024  # images that a network sees at a time
CHUNK_VALUES = 8_000_000  # pixels or densities held at a time: 64 MB
ACTIVE = 0.01  # variance of a latent's posterior mean above which it is in use
CONFIDENT = 0.9  # probability of its class above which a sample counts as recognisable
PAIRS = 1_000  # images whose nearest training image is looked for
NEIGHBOURS = 5  # k of the balls; what Naeem et al. recommend
REFERENCE = 200_000  # training images that the Fréchet distance is from
MANIFOLD = 10_000  # images whose features or posteriors are compared, all with all


def evaluate(
    model,
    train,
    test,
    samples=10_000,
    importance_samples=0,
    seed=0,
    limit=None,
    binarize=False,
    classifier=None,
    progress=None,
):
    """All figures of a model on a dataset.

    Reconstruction, evidence and codes are those of the test images. Samples are drawn from the model's
    own prior, for a CVAE with labels that are as frequent as in the training set; they are compared with
    all training images (FID: the first 200,000; nearest neighbours) and with the test images (precision
    and the like). Test images that do not fit into memory are measured as far as they do.

    Args:
        model: AE, VAE or CVAE.
        train, test: `keras_ae.data.ImageData`, whole.
        samples: number of images to draw.
        importance_samples: k of the importance-weighted log-likelihood; 0 leaves it out.
        seed: of all draws.
        limit: use the first so many test images only.
        binarize: draw each pixel of the test images as a coin of its grey value before they are
            reconstructed, for a model that was trained like that.
        classifier: a `Classifier` to judge by; None for the dataset's own.
        progress: called with one line when there is something to tell.

    Returns:
        A dict of numbers, strings, lists and dicts. A figure that does not exist for this model or
        dataset is None, and `reasons` says why.

    Raises:
        UserError: the model does not fit the dataset.
    """
    progress = progress or (lambda line: None)
    started = time.perf_counter()
    for images in (train, test):
        model.check_data(images)
    if isinstance(test.images, StoredImages):
        # Reconstructions and what is made of them are floats, 16 bytes a pixel in all.
        most = max(1, memory_bound() // (16 * (test.images.size // len(test.images))))
        if most < min(len(test.images), limit or len(test.images)):
            progress(f"measuring the first {most:,} test images, for which there is memory")
            limit = most
    images = test.images[:limit]
    labels = None if test.labels is None else test.labels[:limit]
    reasons = {}
    figures = {
        "model": type(model).__name__,
        "dataset": train.name,
        "version": train.version,
        "split": test.split,
        "n": len(images),
        "binarized": bool(binarize),
        "latent_dim": model.latent_dim,
        "seed": seed,
    }

    progress(f"reconstructing {len(images):,} images of {train.name} {test.split} …")
    measured = binarized(images, seed) if binarize else images
    inputs = model.inputs_of(dataclasses.replace(test, images=measured, labels=labels))
    reconstructions = model.reconstruct(inputs, batch_size=BATCH)
    figures |= reconstruction_error(_images_and_labels(model, inputs)[0], reconstructions)
    figures |= _evidence(model, inputs, importance_samples, seed, reasons, progress)

    drawn = drawn_labels = None
    if not hasattr(model, "sample"):
        reasons["samples"] = f"{type(model).__name__} has no prior to draw samples from"
    elif samples:
        progress(f"drawing {samples:,} samples …")
        if model.num_classes:
            drawn_labels = np.random.default_rng(seed).choice(train.labels, samples)
        drawn = model.sample(samples, drawn_labels, seed=seed, batch_size=BATCH)
    else:
        reasons["samples"] = "no samples were asked for"
    figures["samples"] = 0 if drawn is None else samples
    figures["prior"] = None if drawn is None else model.prior.describe()

    try:
        classifier = classifier or evaluation_classifier(train, test, progress)
    except UserError as error:
        reasons["classifier"] = str(error)
    if classifier is not None:
        progress("comparing images by the classifier's features …")
    figures |= _judged(
        classifier, train.images, images, reconstructions, drawn, drawn_labels, reasons
    )
    figures["nearest_training_image"] = None
    if drawn is not None:
        progress("looking for the nearest training images …")
        figures["nearest_training_image"] = {
            "samples": _distances(drawn[:PAIRS], train.images),
            "test_images": _distances(images[:PAIRS], train.images),
        }
    figures["seconds"] = round(time.perf_counter() - started, 1)
    figures["reasons"] = reasons
    return figures


# Reconstruction and evidence


def reconstruction_error(images, reconstructions):
    """Mean absolute and mean squared error of a pixel in [0, 1].

    Args:
        images: (N, H, W, C), uint8 or float in [0, 1].
        reconstructions: (N, H, W, C), likewise: of the posterior means, from `model.reconstruct`.

    Returns:
        {"reconstruction_l1", "reconstruction_mse"}.
    """
    absolute, squared = [], []
    for rows in _chunks(len(images), images[0].size):
        difference = to_float(images[rows]) - to_float(reconstructions[rows])
        absolute.append(np.abs(difference).sum(dtype="float64"))
        squared.append(np.square(difference).sum(dtype="float64"))
    pixels = images.size
    return {
        "reconstruction_l1": float(sum(absolute) / pixels),
        "reconstruction_mse": float(sum(squared) / pixels),
    }


def kl_per_latent(mean, log_var):
    """KL(q(z|x) || N(0, I)) of each latent, averaged over images, in nats: (N, D) twice -> (D,).

    Its sum is the KL term in nats per image. Kingma & Welling 2014, appendix B.
    """
    mean, log_var = (np.asarray(a, "float64") for a in (mean, log_var))
    return 0.5 * (np.square(mean) + np.exp(log_var) - 1 - log_var).mean(0)


def elbo(model, inputs, seed=0):
    """The evidence lower bound: log p(x|z) - KL(q(z|x) || N(0, I)), z drawn once from q(z|x).

    Returns:
        (N,) float64 in nats per image, and the name of the likelihood, see `losses.nll_per_image`.

    References:
        Kingma & Welling 2014, Auto-Encoding Variational Bayes, equation 3.
    """
    images, labels = _images_and_labels(model, inputs)
    mean, log_var = model.posterior(inputs, batch_size=BATCH)
    noise = np.random.default_rng(seed).standard_normal(mean.shape, dtype="float32")
    codes = mean + np.exp(0.5 * log_var) * noise
    result = np.empty(len(images))
    for rows in _chunks(len(images), images[0].size):
        nll, likelihood = _nll(model, images[rows], codes[rows], _rows(labels, rows))
        kl = 0.5 * (np.square(mean[rows]) + np.exp(log_var[rows]) - 1 - log_var[rows])
        result[rows] = -nll - kl.sum(-1, dtype="float64")
    return result, likelihood


def importance_weighted_log_likelihood(
    model, inputs, k=100, seed=0, prior="normal", progress=lambda line: None
):
    """log of 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x), z_i drawn from q(z|x).

    A lower bound of log p(x) in expectation, which rises with k and is reached in the limit; k = 1 is the
    evidence lower bound.

    Args:
        model: VAE or CVAE (log p(x|y) then).
        inputs: images, or (images, labels).
        k: number of importance samples, >= 1.
        seed: of the samples.
        prior: p(z): "normal" for N(0, I), "fitted" for the model's own.
        progress: called with one line each tenth of the way.

    Returns:
        (N,) float64 in nats per image, under the likelihood that `elbo` names.

    References:
        Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders, equation 8.
    """
    images, labels = _images_and_labels(model, inputs)
    density = model.prior if prior == "fitted" else StandardNormal(model.latent_dim)
    mean, log_var = (a.astype("float64") for a in model.posterior(inputs, batch_size=BATCH))
    random = np.random.default_rng(seed)
    result = np.empty(len(images))
    for rows in _chunks(len(images), k * images[0].size):
        noise = random.standard_normal((len(mean[rows]), k, mean.shape[1]))
        spread = log_var[rows, None]
        codes = mean[rows, None] + np.exp(0.5 * spread) * noise
        log_q = -0.5 * (np.square(noise) + spread + np.log(2 * np.pi)).sum(-1)
        codes = codes.reshape(-1, mean.shape[1])
        repeated = None if labels is None else np.repeat(labels[rows], k)
        nll, _ = _nll(model, np.repeat(images[rows], k, axis=0), codes, repeated)
        log_joint = density.log_prob(codes, repeated) - nll
        result[rows] = logsumexp(log_joint.reshape(-1, k) - log_q, axis=1) - np.log(k)
        if 10 * rows.start // len(images) < 10 * rows.stop // len(images):
            progress(f"log-likelihoods: {rows.stop:,} of {len(images):,} images")
    return result


# Codes


def active_units(mean):
    """Number of latents in use: those whose posterior mean varies over images, Var_x E[z|x] > 0.01.

    Shapes (N, D) -> int. Burda, Grosse & Salakhutdinov 2016, section 5.
    """
    return int((np.var(mean, axis=0, dtype="float64") > ACTIVE).sum())


def mutual_information(mean, log_var, seed=0):
    """Estimate of I(x; z) in nats: the mean of log q(z|x) - log q(z), one z drawn from each q(z|x).

    q(z) is the mixture of the N posteriors that are given, so that this is the information between a
    code and the index of its image. It cannot exceed log N, and near it says no more than that codes tell
    the images apart.

    Args:
        mean, log_var: (N, D) of q(z|x).
        seed: of the codes.

    References:
        Hoffman & Johnson 2016, ELBO surgery: yet another way to carve up the variational evidence lower
        bound, section 2.
    """
    mean, log_var = (np.asarray(a, "float64") for a in (mean, log_var))
    n = len(mean)
    precision = np.exp(-log_var)
    codes = mean + np.exp(0.5 * log_var) * np.random.default_rng(seed).standard_normal(mean.shape)
    # log q(z_i|x_j) = -0.5 sum_d (z_i - mean_j)^2 / var_j + log var_j (+ log 2 pi, which cancels),
    # multiplied out into two matrix products.
    constant = -0.5 * (np.square(mean) * precision + log_var).sum(-1)
    total = 0.0
    for rows in _chunks(n, n):
        z = codes[rows]
        log_q = z @ (mean * precision).T - 0.5 * np.square(z) @ precision.T + constant
        of_itself = log_q[np.arange(len(z)), np.arange(n)[rows]]
        total += (of_itself - logsumexp(log_q, axis=1) + np.log(n)).sum()
    return float(total / n)


# Samples


def frechet_distance(features, others):
    """Squared Fréchet distance of the Gaussians that have the moments of two sets of features.

    |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)); shapes (N, F), (M, F) -> float. With the features of an
    evaluation classifier in place of Inception's this is the FID of this package. Figures compare
    under one classifier, and for equal numbers of images: the fewer, the larger it comes out.

    References:
        Heusel et al. 2017, GANs Trained by a Two Time-Scale Update Rule, arXiv:1706.08500.
    """
    features, others = (np.asarray(f, "float64") for f in (features, others))
    m1, m2 = features.mean(0), others.mean(0)
    c1, c2 = np.cov(features, rowvar=False), np.cov(others, rowvar=False)
    # The trace of (C1 C2)^(1/2) by symmetric matrices alone, which hold where C1 or C2 is singular.
    values, vectors = np.linalg.eigh(c1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    crossed = np.linalg.eigvalsh(root @ c2 @ root)
    trace = np.trace(c1) + np.trace(c2) - 2 * np.sqrt(crossed.clip(0)).sum()
    return float(np.square(m1 - m2).sum() + trace)


def conditional_accuracy(probabilities, labels):
    """Share of samples that a classifier takes for what was asked.

    Args:
        probabilities: (N, K) of the classes, from the classifier.
        labels: (N,) classes that were asked for.

    Returns:
        float in [0, 1], and a list of K of them by class, None for a class that was not asked for.
    """
    right = probabilities.argmax(-1) == labels
    of_class = [labels == y for y in range(probabilities.shape[1])]
    return float(right.mean()), [float(right[a].mean()) if a.any() else None for a in of_class]


def manifold_overlap(real, samples, k=NEIGHBOURS):
    """How far samples lie where real images lie, and the other way round, by balls around features.

    The ball of a point reaches to its k-th nearest neighbour of its own set.

    Args:
        real: (N, F) features of real images, N > k.
        samples: (M, F) features of samples, M > k.
        k: neighbours.

    Returns:
        A dict: "precision", share of samples in the ball of a real image; "recall", share of real images
        in the ball of a sample; "density", number of balls of real images that a sample lies in, over k,
        on average (about 1 for real images, and above it for samples that crowd); "coverage", share of
        real images whose ball holds a sample.

    References:
        Kynkäänniemi et al. 2019, Improved Precision and Recall Metric, arXiv:1904.06991.
        Naeem et al. 2020, Reliable Fidelity and Diversity Metrics, arXiv:2002.09797.
    """
    from sklearn.metrics import pairwise_distances
    from sklearn.neighbors import NearestNeighbors

    real, samples = (np.asarray(f, "float64") for f in (real, samples))
    real_radius, sample_radius = (
        NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points).kneighbors()[0][:, -1]
        for points in (real, samples)
    )
    balls = np.empty(len(samples), "int64")  # of real images that a sample is in
    recalled = np.zeros(len(real), bool)
    covered = np.zeros(len(real), bool)
    for rows in _chunks(len(samples), len(real)):
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
    """The nearest training image of each image, by the Euclidean distance of pixels in [0, 1].

    Shapes (N, H, W, C), (M, H, W, C), uint8 or float in [0, 1] -> distances (N,), indices (N,).
    """
    from sklearn.metrics import pairwise_distances_argmin_min

    flat = to_float(images).reshape(len(images), -1)
    nearest, which = np.full(len(images), np.inf), np.zeros(len(images), "int64")
    for rows in _chunks(len(train_images), flat.shape[1]):
        part = to_float(train_images[rows]).reshape(-1, flat.shape[1])
        index, distance = pairwise_distances_argmin_min(flat, part)
        closer = distance < nearest
        nearest[closer], which[closer] = distance[closer], index[closer] + rows.start
    return nearest, which


def closest_pairs(images, train_images, n=10):
    """The n images that come closest to a training image, closest first, for a picture of the pairs.

    Returns:
        images (n, H, W, C), their nearest training images (n, H, W, C), distances (n,).
    """
    distance, index = nearest_training_images(images, train_images)
    closest = np.argsort(distance, kind="stable")[:n]
    return images[closest], train_images[index[closest]], distance[closest]


# The parts of `evaluate`


def _evidence(model, inputs, importance_samples, seed, reasons, progress):
    """The figures that need a posterior, None for a model without one."""
    names = (
        "likelihood kl_weight elbo kl kl_per_latent log_likelihood"
        " importance_samples active_units mutual_information mutual_information_limit"
    )
    figures = dict.fromkeys(names.split())
    if not hasattr(model, "posterior"):
        reasons["kl"] = reasons["elbo"] = f"{type(model).__name__} has no posterior"
        return figures
    mean, log_var = model.posterior(inputs, batch_size=BATCH)
    kl = kl_per_latent(mean, log_var)
    figures["kl_weight"] = _kl_weight(model)
    figures["kl"], figures["kl_per_latent"] = float(kl.sum()), kl.tolist()
    figures["active_units"] = active_units(mean)
    figures["mutual_information"] = mutual_information(mean[:MANIFOLD], log_var[:MANIFOLD], seed)
    figures["mutual_information_limit"] = float(np.log(len(mean[:MANIFOLD])))
    reconstruction = find_reconstruction(model.reconstruction)
    if reconstruction.likelihood is None:
        reasons["elbo"] = "this reconstruction term stands for no likelihood"
        return figures
    if not figures["kl_weight"] and reconstruction.scaled:
        reasons["elbo"] = f"{model.reconstruction} at a kl_weight of 0 stands for no likelihood"
        return figures
    values, figures["likelihood"] = elbo(model, inputs, seed)
    figures["elbo"] = float(values.mean())
    if not importance_samples:
        reasons["log_likelihood"] = "no importance samples were asked for"
        return figures
    progress(f"estimating log-likelihoods from {importance_samples:,} samples an image …")
    figures["importance_samples"] = importance_samples
    values = importance_weighted_log_likelihood(
        model, inputs, importance_samples, seed, progress=progress
    )
    figures["log_likelihood"] = float(values.mean())
    return figures


def _judged(classifier, train_images, images, reconstructions, drawn, labels, reasons):
    """The figures that need a classifier, None without one or for what is not there."""
    names = (
        "classifier classifier_accuracy fid fid_reconstructions fid_test_images"
        " conditional_accuracy conditional_accuracy_per_class confident"
        " precision recall density coverage"
    )
    figures = dict.fromkeys(names.split())
    if classifier is None:
        return figures
    figures["classifier"] = classifier.origin
    figures["classifier_accuracy"] = classifier.accuracy
    if drawn is not None:
        features, probabilities = classifier(drawn)
        figures["confident"] = float((probabilities.max(-1) >= CONFIDENT).mean())
        if labels is not None:
            accuracy, per_class = conditional_accuracy(probabilities, labels)
            figures["conditional_accuracy"] = accuracy
            figures["conditional_accuracy_per_class"] = per_class
    if min(len(images), len(images if drawn is None else drawn)) <= NEIGHBOURS:
        reasons["fid"] = reasons["precision"] = f"fewer than {NEIGHBOURS + 1} images or samples"
        return figures
    reference, _ = classifier(select(train_images, slice(REFERENCE)))
    real, _ = classifier(images)
    figures["fid_test_images"] = frechet_distance(real, reference)
    figures["fid_reconstructions"] = frechet_distance(classifier(reconstructions)[0], reference)
    if drawn is not None:
        figures["fid"] = frechet_distance(features, reference)
        figures |= manifold_overlap(real[:MANIFOLD], features[:MANIFOLD])
    return figures


def _distances(images, train_images):
    distance, _ = nearest_training_images(images, train_images)
    return {
        "n": len(images),
        "closest": float(distance.min()),
        "percentile_1": float(np.percentile(distance, 1)),
        "median": float(np.median(distance)),
    }


# Small helpers


def _images_and_labels(model, inputs):
    """Inputs -> images, labels or None."""
    return inputs if model.num_classes else (inputs, None)


def _nll(model, images, codes, labels):
    """-log p(x|z) of pairs of an image and a code: (M,) float64 in nats, and the likelihood's name."""
    rebuilt = model.decode(codes, labels, batch_size=BATCH)
    term = find_reconstruction(model.reconstruction)(to_float(images), rebuilt)
    term = keras.ops.convert_to_numpy(term).astype("float64")
    return nll_per_image(term, model.reconstruction, images[0].size, _kl_weight(model))


def _kl_weight(model):
    """The weight of the KL term that the model ended its training with."""
    return float(keras.ops.convert_to_numpy(model.kl_weight))


def _chunks(n, size):
    """Slices of range(n), of so many rows that rows of a given size make up CHUNK_VALUES at most."""
    rows = max(1, CHUNK_VALUES // size)
    return [slice(i, min(i + rows, n)) for i in range(0, n, rows)]


def _rows(labels, rows):
    return None if labels is None else labels[rows]

"""Priors over the latent codes, as Keras layers: `sample` decodes codes that are drawn from one.

The KL term pulls the codes of the images towards N(0, I), but they never fill it. So some codes from
N(0, I) are unlike the code of any image. A Gaussian mixture that is fitted to the codes after training
closes this gap (Ghosh et al. 2020, arXiv:1903.12436, section 4).

NumPy draws the codes on the CPU, so one seed gives the same picture on every backend.
"""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_ae.files import open_zip
from keras_ae.tensors import to_numpy

REGULARISATION = 1e-2  # variance added to each latent of a component (codes are of order 1)
FACTORS = 1 << 24  # numbers in the Cholesky factors, or weights, that `draw` gathers at a time
CANDIDATES = (1, 3, 10, 20, 40, 100, 200)  # numbers of components of a class to try
SHRINKAGES = (1.0, 0.1, 4.0)  # values of nu to try, in multiples of the number of latents
FARTHEST = 1e9  # largest entry of a code; float32 cannot hold the covariances of larger ones
CODES_A_COMPONENT = 8  # k-means starts with at least this many codes for each component
GUESSED = 200  # k-means sees this many codes for each component
ITERATIONS, TOLERANCE = 10, 2e-2  # of a fit; it stops when an iteration gains fewer nats per code
MOST_NUMBERS = 4_000_000  # in covariances: a larger prior is not tried; 16 MB in the model's file


class Prior(keras.layers.Layer):
    """A density over codes, p(z) or p(z | y), that codes can be drawn from.

    For a prior of your own, write a subclass, register it for saving, and let `get_config` hold all
    arguments of the constructor: numbers, text, and lists of them. Its `arrays` are NumPy arrays, saved by
    `save_own_variables`; a loaded prior has arrays of the shapes that its constructor makes. If a model is
    given such a prior, `VAE(prior=…)`, then `fit_prior` and the end of a run fit it by its `fit`.
    """

    arrays: tuple[str, ...] = ()  # attributes that `save_own_variables` stores, in this order
    sizes: tuple[str, ...] = ("latent_dim",)  # arguments of the constructor that are integers

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.built = True

    @classmethod
    def fit(cls, codes, labels=None, num_classes=1, seed=0, **kwargs):
        """Return a prior fitted to codes (N, D) float32; of a CVAE also with labels (N,) in [0, num_classes).

        Args:
            seed: of all that is random in the fit.
            **kwargs: for the constructor: `name`.

        Raises:
            NotImplementedError: this class cannot be fitted.
        """
        raise NotImplementedError(f"{cls.__name__} has no `fit`: it stays what it was made as.")

    def draw(self, n, labels=None, seed=0):
        """Draw codes: (n, latent_dim) float32. With classes, row i is of class labels[i]."""
        raise NotImplementedError

    def log_prob(self, codes, labels=None):
        """log p(z) or log p(z | y) in nats: codes (N, D), labels (N,) -> (N,)."""
        raise NotImplementedError

    def describe(self):
        """The prior in a few words."""
        return type(self).__name__

    def check(self):
        """Check that all arrays are finite.

        Raises:
            ValueError: an array has a NaN or an infinity.
        """
        for name in self.arrays:
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"{name} of the prior has what is no finite number")

    uses_uniform = False  # whether `graph` needs uniform random numbers beside the noise

    def graph(self, noise, uniform=None, label=None):
        """The same as `draw`, written with Keras operations, for an exported sampler.

        Args:
            noise: (N, D) float32, standard normal.
            uniform: (N,) float32 in [0, 1), if `uses_uniform`.
            label: (N,) int64, for a model with classes.

        Raises:
            NotImplementedError: the prior cannot be exported.
        """
        raise NotImplementedError

    @classmethod
    def count(cls, config):
        """How many numbers the arrays of a prior with this config hold, without making them."""
        return 0

    def save_own_variables(self, store):
        for i, name in enumerate(self.arrays):
            store[str(i)] = getattr(self, name)

    def load_own_variables(self, store):
        if len(store.keys()) != len(self.arrays):
            raise ValueError(f"The prior has {len(self.arrays)} arrays; got {len(store.keys())}.")
        arrays = {name: np.array(store[str(i)], "float32") for i, name in enumerate(self.arrays)}
        for name, array in arrays.items():
            if array.shape != (shape := getattr(self, name).shape):
                raise ValueError(f"{name} of the prior must be {shape}; got {array.shape}.")
        for name, array in arrays.items():
            setattr(self, name, array)


@keras.saving.register_keras_serializable("keras_ae")
class StandardNormal(Prior):
    """N(0, I) over `latent_dim` latents: the prior that the KL term assumes."""

    def __init__(self, latent_dim, **kwargs):
        super().__init__(**kwargs)
        self.latent_dim = latent_dim

    def draw(self, n, labels=None, seed=0):
        """Draw codes: (n, latent_dim) float32. The labels are ignored."""
        return np.random.default_rng(seed).standard_normal((n, self.latent_dim), dtype="float32")

    def log_prob(self, codes, labels=None):
        """log p(z) in nats: codes (N, D) -> (N,)."""
        codes = to_numpy(codes, "float64")
        return -0.5 * (np.square(codes).sum(-1) + self.latent_dim * np.log(2 * np.pi))

    def describe(self):
        return "N(0, I)"

    def graph(self, noise, uniform=None, label=None):
        return noise

    def get_config(self):
        return {**super().get_config(), "latent_dim": self.latent_dim}


@keras.saving.register_keras_serializable("keras_ae")
class ClassMixture(Prior):
    """A mixture of Gaussians for each class, p(z | y); with one class, a mixture p(z).

    `logits` (K, M), `means` (K, M, D) and `cholesky` (K, M, D, D), lower triangular, are NumPy arrays, for
    K classes, M components and D latents. They are saved and loaded with the model, but they are not among
    its `weights`. `cumulative` (K, M) holds the cumulative sums of the components' weights, for each class
    up to a factor. Before the prior is fitted, every component is N(0, I).

    Args:
        latent_dim: number of latents D.
        num_classes: number of classes K.
        components: components M of each class.
    """

    arrays = ("logits", "means", "cholesky")
    sizes = ("latent_dim", "num_classes", "components")
    uses_uniform = True

    def __init__(self, latent_dim, num_classes=1, components=1, **kwargs):
        super().__init__(**kwargs)
        self.latent_dim, self.num_classes, self.components = latent_dim, num_classes, components
        shape = (num_classes, components)
        self.logits = np.zeros(shape)
        self.means = np.zeros((*shape, latent_dim), "float32")
        self.cholesky = np.tile(np.eye(latent_dim, dtype="float32"), (*shape, 1, 1))

    @property
    def logits(self):
        """(K, M) float32 logits of the components of each class. The array is read-only: assign a new one."""
        return self._logits

    @logits.setter
    def logits(self, logits):
        self._logits = np.array(logits, "float32")
        self._logits.flags.writeable = False
        # Computed once here; in every draw it would take a tenth of the time.
        self.cumulative = np.exp(self._logits - self._logits.max(-1, keepdims=True)).cumsum(-1)

    def draw(self, n, labels=None, seed=0):
        """Draw codes (n, latent_dim) float32, row i from the mixture of labels[i] (N,), 0 <= label < K."""
        rng = np.random.default_rng(seed)
        labels = np.zeros(n, "int64") if labels is None else to_numpy(labels)
        means, cholesky, cumulative = self.means, self.cholesky, self.cumulative
        # Draw the noise first, the component second: then a fitted and an unfitted prior draw the same
        # noise from one seed.
        noise = rng.standard_normal((n, self.latent_dim), dtype="float32")
        # In float32 like an exported sampler, so that both choose exactly the same components.
        threshold = rng.random(n).astype("float32") * cumulative[labels, -1]
        codes = np.empty((n, self.latent_dim), "float32")
        step = max(1, FACTORS // max(self.latent_dim**2, cumulative.shape[1]))
        # All codes at once would need the weights and Cholesky factors of n mixtures in memory.
        for start in range(0, n, step):
            rows = slice(start, start + step)
            component = (cumulative[labels[rows]] < threshold[rows, None]).sum(-1)
            chosen = labels[rows], component
            codes[rows] = means[chosen] + np.einsum("nij,nj->ni", cholesky[chosen], noise[rows])
        return codes

    def log_prob(self, codes, labels=None):
        """log p(z | y) in nats: codes (N, D), labels (N,) -> (N,) float64."""
        from scipy.linalg import solve_triangular
        from scipy.special import log_softmax

        codes = to_numpy(codes, "float64")
        labels = np.zeros(len(codes), "int64") if labels is None else to_numpy(labels)
        logits, means, cholesky = (getattr(self, name).astype("float64") for name in self.arrays)
        log_weights = log_softmax(logits, axis=-1)
        result = np.empty(len(codes))
        for y in np.unique(labels):
            mine = labels == y
            total = np.full(mine.sum(), -np.inf)
            for m, factor in enumerate(cholesky[y]):
                white = solve_triangular(factor, (codes[mine] - means[y, m]).T, lower=True)
                volume = np.log(np.diag(factor)).sum()
                term = log_weights[y, m] - 0.5 * np.square(white).sum(0) - volume
                np.logaddexp(total, term, out=total)
            result[mine] = total - 0.5 * self.latent_dim * np.log(2 * np.pi)
        return result

    def check(self):
        logits = self.logits  # an unused component has minus infinity
        if np.isnan(logits).any() or not np.isfinite(logits.max(-1)).all():
            raise ValueError("logits of the prior has what is no finite number")
        for array in (self.means, self.cholesky):
            if not np.isfinite(array).all():
                raise ValueError("means or cholesky of the prior has what is no finite number")
        if not (np.diagonal(self.cholesky, axis1=-2, axis2=-1) > 0).all():
            raise ValueError("cholesky of the prior has a diagonal that is not above 0")

    def describe(self):
        of = f" for each of {self.num_classes} classes" if self.num_classes > 1 else ""
        return f"mixture of {self.components} Gaussians{of}"

    def graph(self, noise, uniform=None, label=None):
        classes, components, size = self.means.shape
        if label is None:
            label = ops.cast(ops.zeros_like(uniform), "int64")
        row = ops.take(self.cumulative, label, axis=0)
        threshold = ops.expand_dims(uniform * row[:, -1], -1)
        component = ops.sum(ops.cast(row < threshold, "int64"), axis=-1)
        # Use two-axis tables only: with more axes, `ops.take` on torch exports for a single batch size.
        # A plain number would become an int32 in an ONNX file, which refuses to multiply it with an int64.
        index = label * ops.full_like(label, components) + component
        mean = ops.take(self.means.reshape(classes * components, size), index, axis=0)
        factors = self.cholesky.reshape(classes * components, size * size)
        factor = ops.reshape(ops.take(factors, index, axis=0), (-1, size, size))
        return mean + ops.sum(factor * ops.expand_dims(noise, 1), axis=-1)

    @classmethod
    def count(cls, config):
        latents = config["latent_dim"]
        mixtures = config.get("num_classes", 1) * config.get("components", 1)
        return mixtures * (1 + latents + latents**2)

    @classmethod
    def fit(
        cls,
        codes,
        labels=None,
        num_classes=1,
        components=CANDIDATES,
        shrinkage=SHRINKAGES,
        seed=0,
        **kwargs,
    ):
        """Fit a mixture to each class by expectation maximisation, with shrunk covariances.

        The covariance of a component with n codes is (n S + nu T) / (n + nu). S is the covariance of its
        codes. T is the mean covariance within the components of its class, which is itself shrunk towards
        the mean over all classes. So a component may have fewer codes than latents, and a class with few
        codes borrows its shape from the other classes.

        A tenth of the codes is held out. The number of components (the same for all classes) and nu are
        chosen to make those codes most likely; then the mixtures are fitted to all codes.

        Args:
            codes: (N, D) latent codes.
            labels: (N,) classes in [0, num_classes), or None for one mixture over all codes.
            num_classes: number of classes K. A class without codes keeps N(0, I).
            components: numbers of components to try, ascending. The search stops at the first one that
                does worse, or whose covariances have more than MOST_NUMBERS numbers.
            shrinkage: values of nu to try, in multiples of D. The first one is used to choose `components`.
            seed: of the split and of the first guess.

        Returns:
            A `ClassMixture`.

        Raises:
            ValueError: there are no codes; a code is not a number, or beyond FARTHEST.
        """
        codes = to_numpy(codes, "float32")
        if not len(codes):
            raise ValueError("A prior cannot be fitted to no codes")
        if not np.abs(codes).max(initial=0.0) <= FARTHEST:  # written so that NaN is refused too
            raise ValueError(
                f"A prior cannot be fitted to codes that are no numbers, or beyond {FARTHEST:g}"
            )
        labels = np.zeros(len(codes), "int64") if labels is None else to_numpy(labels)
        order = np.random.default_rng(seed).permutation(len(codes))
        choices = len(components) * len(shrinkage)
        tenth = len(codes) // 10 if choices > 1 else 0  # nothing held out for a single choice
        held_out, kept = np.sort(order[:tenth]), np.sort(order[tenth:])
        by_class = {y: codes[kept][labels[kept] == y] for y in np.unique(labels[kept])}

        def score(m, nu):
            mixtures = fit_mixtures(by_class, m, nu * codes.shape[1], seed)
            return sum(
                mixtures[y].log_prob(codes[held_out][labels[held_out] == y]).sum()
                for y in np.intersect1d(labels[held_out], list(mixtures))
            )

        chosen, nu = components[0], shrinkage[0]
        if tenth:
            best = score(chosen, nu)
            for m in components[1:]:
                if num_classes * m * codes.shape[1] ** 2 > MOST_NUMBERS:
                    break
                if (found := score(m, nu)) <= best:
                    break
                chosen, best = m, found
            for other in shrinkage[1:]:
                if (found := score(chosen, other)) > best:
                    nu, best = other, found
            by_class = {y: codes[labels == y] for y in np.unique(labels)}
        best = fit_mixtures(by_class, chosen, nu * codes.shape[1], seed)

        size = max(len(mixture.weights) for mixture in best.values())
        prior = cls(codes.shape[1], num_classes, size, **kwargs)
        logits = prior.logits.copy()
        for y, mixture in best.items():
            m = len(mixture.weights)  # smaller than `size` for a class with few codes
            logits[y] = -np.inf
            logits[y, :m] = np.log(mixture.weights)
            prior.means[y, :m] = mixture.means
            prior.cholesky[y, :m] = mixture.factors
        prior.logits = logits
        return prior

    def merged(self, frequencies, **kwargs):
        """Merge the mixtures of all classes into one: p(z) = sum over y of p(y) p(z | y).

        Args:
            frequencies: (K,) how often each class occurs; they are normalised.

        Returns:
            A `ClassMixture` of one class with K * M components.
        """
        from scipy.special import log_softmax

        with np.errstate(divide="ignore"):  # log 0, for a class that never occurs
            shares = np.log(to_numpy(frequencies, "float32"))
        logits = log_softmax(self.logits, -1) + shares[:, None]
        prior = ClassMixture(self.latent_dim, 1, logits.size, **kwargs)
        prior.logits = logits.reshape(prior.logits.shape)
        prior.means = self.means.reshape(prior.means.shape)
        prior.cholesky = self.cholesky.reshape(prior.cholesky.shape)
        return prior

    def get_config(self):
        return {
            **super().get_config(),
            "latent_dim": self.latent_dim,
            "num_classes": self.num_classes,
            "components": self.components,
        }


@dataclass
class Mixture:
    """A mixture of M Gaussians over D latents: weights (M,), means (M, D), Cholesky factors (M, D, D)."""

    weights: np.ndarray
    means: np.ndarray
    factors: np.ndarray

    def __post_init__(self):
        # In float32, like all computations that are done for each code.
        self._whiten = np.linalg.inv(self.factors).astype("float32")
        self._offsets = np.einsum("mij,mj->mi", self._whiten, self.means).astype("float32")
        diagonals = np.diagonal(self.factors, axis1=1, axis2=2)
        log_volume = 0.5 * self.means.shape[1] * np.log(2 * np.pi) + np.log(diagonals).sum(-1)
        self._constants = (np.log(self.weights) - log_volume).astype("float32")

    def joint(self, codes):
        """log p(z, component): codes (n, D) -> (n, M) float32."""
        result = np.empty((len(codes), len(self.weights)), "float32")
        for m, (whiten, offset) in enumerate(zip(self._whiten, self._offsets)):
            white = codes @ whiten.T - offset
            result[:, m] = self._constants[m] - 0.5 * np.einsum("nd,nd->n", white, white)
        return result

    def log_prob(self, codes):
        """log p(z): codes (n, D) -> (n,)."""
        return logsumexp(self.joint(to_numpy(codes, "float32")))


def logsumexp(terms):
    """log sum exp over the last axis of (n, M)."""
    largest = terms.max(-1, keepdims=True)
    return largest[:, 0] + np.log(np.exp(terms - largest).sum(-1))


def fit_mixtures(by_class, components, shrinkage, seed=0):
    """Fit a mixture to the codes of each class, all classes together; returns {class: Mixture}.

    Args:
        by_class: {class: (n, D) float32 codes}.
        components: number of components of each class; a class with few codes gets fewer.
        shrinkage: nu: the pooled covariance counts as much as nu codes; see `ClassMixture.fit`.
        seed: of the first guess, which k-means makes.
    """
    shares = {y: _first_guess(codes, components, seed) for y, codes in by_class.items()}
    total = sum(map(len, by_class.values()))
    before = -np.inf
    for _ in range(ITERATIONS):
        sums = {y: _sums(codes, shares[y]) for y, codes in by_class.items()}
        pooled = sum(scatter.sum(0) for _, _, scatter in sums.values()) / total
        dim = len(pooled)
        mixtures, likelihood = {}, 0.0
        for y, (counts, means, scatter) in sums.items():
            n = counts.sum()
            within = (scatter.sum(0) + dim * pooled) / (n + dim)
            covariances = (scatter + shrinkage * within) / (counts + shrinkage)[:, None, None]
            covariances += REGULARISATION * np.eye(dim)
            mixtures[y] = Mixture(counts / n, means, np.linalg.cholesky(covariances))
            joint = mixtures[y].joint(by_class[y])
            evidence = logsumexp(joint)
            shares[y] = np.exp(joint - evidence[:, None])
            likelihood += evidence.sum(dtype="float64")
        if likelihood - before < TOLERANCE * total:
            break
        before = likelihood
    return mixtures


def _first_guess(codes, components, seed):
    """Assign codes to components by k-means, fitted to some of them: one-hot shares (n, M)."""
    from sklearn.cluster import KMeans

    m = max(1, min(components, len(codes) // CODES_A_COMPONENT))
    if m == 1:
        return np.ones((len(codes), 1), "float32")
    some = codes[np.random.default_rng(seed).permutation(len(codes))[: GUESSED * m]]
    means = KMeans(m, n_init=1, max_iter=20, random_state=seed).fit(some)
    return np.eye(m, dtype="float32")[means.predict(codes)]


def _sums(codes, shares):
    """For each component, the number of its codes (M,), their mean (M, D) and scatter around it (M, D, D)."""
    counts = shares.sum(0, dtype="float64") + 1e-9
    means = (shares.T @ codes) / counts[:, None]
    scatter = np.empty((len(means), codes.shape[1], codes.shape[1]))
    for m, mean in enumerate(means):
        rows = np.flatnonzero(shares[:, m] > 1e-4)
        around = (codes[rows] - mean.astype("float32")) * np.sqrt(shares[rows, m])[:, None]
        scatter[m] = around.T @ around
    return counts, means, scatter


PRIORS = {"normal": StandardNormal, "mixture": ClassMixture}


def draw_codes(prior, n, labels=None, seed=0):
    """`prior.draw`, checked: a prior may be of a user's own class.

    Raises:
        ValueError: it does not return n codes.
    """
    codes = prior.draw(n, labels, seed)
    if np.shape(codes)[:1] != (n,):
        raise ValueError(
            f"draw of {type(prior).__name__} must return {n} codes (N, D); got {np.shape(codes)}."
        )
    return codes


def log_density(prior, codes, labels=None):
    """`prior.log_prob`, checked in the same way: (N,) float64.

    Raises:
        ValueError: it does not return a number for each code.
    """
    values = np.asarray(prior.log_prob(codes, labels), "float64")
    if values.shape != (len(codes),):
        raise ValueError(
            f"log_prob of {type(prior).__name__} must return a number for each of {len(codes)} codes; "
            f"got {values.shape}."
        )
    return values


def copy_prior(prior):
    """A copy of a prior, with the same class and arguments, that shares no array with it.

    Raises:
        ValueError: its arrays are not finite.
    """
    prior.check()
    copy, arrays = type(prior).from_config(prior.get_config()), {}
    prior.save_own_variables(arrays)
    copy.load_own_variables({name: np.array(array) for name, array in arrays.items()})
    return copy


def prior_in_weights(path, prior):
    """An unfitted prior whose arrays have the shapes of the prior in a .weights.h5 or .keras file.

    None if the model's prior has these shapes already, or if the file does not show them.

    Args:
        path: of the file.
        prior: the model's prior.

    Raises:
        ValueError: the file has a prior of the user's own class, and the model's prior is another; or it is a zip
            with a directory larger than any model file's.
    """
    import h5py

    path = Path(path)
    try:
        if path.suffix == ".keras":
            with open_zip(path) as archive:
                file = h5py.File(io.BytesIO(archive.read("model.weights.h5")))
        elif path.name.endswith(".weights.h5"):
            file = h5py.File(path)
        else:
            return None
        with file:
            kind, shapes = _prior_of_file(file)
    except (OSError, KeyError, zipfile.BadZipFile):
        return None  # Keras reports the problem when it loads the file
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    own = [np.shape(getattr(prior, name)) for name in prior.arrays]
    if shapes == own and (not own or kind is type(prior)):
        return None
    if not shapes:
        return StandardNormal(prior.latent_dim, name="prior")
    if kind is ClassMixture:
        first, d = shapes[0], prior.latent_dim
        if len(first) != 2 or shapes != [first, (*first, d), (*first, d, d)]:
            raise ValueError(f"{path} has a prior whose arrays do not fit each other")
        return ClassMixture(prior.latent_dim, *shapes[0], name="prior")
    raise ValueError(
        f"{path} has a {kind.__name__} as its prior, with arrays of {', '.join(map(str, shapes))}: give the model "
        "one like it, set_prior(…), before its weights are loaded."
    )


def _prior_of_file(file):
    """The class of the prior that has arrays in a file, and their shapes; (None, []) if no prior has any."""
    kinds = [Prior]
    for kind in kinds:  # the list grows while we go through it
        kinds += kind.__subclasses__()
    kinds = {kind.__name__.lower(): kind for kind in kinds}
    for name, layer in file.get("layers", {}).items():
        arrays = layer.get("vars", {})
        # Keras names a layer in the file after its class: class_mixture.
        if len(arrays) and (kind := kinds.get(name.replace("_", ""))):
            return kind, [tuple(arrays[i].shape) for i in sorted(arrays)]
    return None, []

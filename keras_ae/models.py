"""The three models. Each is its `autoencode`, its loss terms and its inputs; the rest is shared.

loss = mean over the batch of [ reconstruction + kl_weight * KL(q(z|x) || N(0, I)) ]
"""

import keras
import numpy as np

from keras_ae import distributed, ops
from keras_ae.annealing import warn_of_early_choices
from keras_ae.layers import run
from keras_ae.losses import RECONSTRUCTIONS, gaussian_kl
from keras_ae.networks import (
    BACKBONES,
    build_decoder,
    build_encoder,
    one_hot,
    own_decoder,
    own_encoder,
)
from keras_ae.noise import SeedGenerator
from keras_ae.pictures import to_float
from keras_ae.priors import ClassMixture, StandardNormal
from keras_ae.tracking import Means
from keras_ae.train_step import StepMixin, forward_of
from keras_ae.train_step.execution import Execution

LOG_VAR_RANGE = (-30.0, 20.0)
AT_ONCE = 10_240  # images turned to floats at a time
PRIOR_IMAGES = 100_000  # images whose codes a prior is fitted to
FORMAT = 1  # of a model's config; `from_config` refuses what is newer


def unit_range(images):
    """uint8 in 0..255 -> float32 in [0, 1]; floats are in [0, 1] already and stay as they are."""
    if keras.backend.standardize_dtype(images.dtype) == "uint8":
        return ops.cast(images, "float32") / 255.0
    return ops.cast(images, "float32")


@keras.saving.register_keras_serializable("keras_ae")
class AE(StepMixin, keras.Model):
    """Autoencoder: image -> code -> image.

    Call it on images (N, H, W, C), uint8 in 0..255 or float in [0, 1]; it returns reconstructions of
    the same shape, float32 in [0, 1]. The images are their own target: `fit(images)`.

    Args:
        image_shape: (H, W, C) of the images.
        latent_dim: number of latents D.
        backbone: "conv" or "mlp"; see `keras_ae.networks`.
        hidden: widths of the hidden layers; see `keras_ae.networks.build_encoder`.
        reconstruction: "l1", "mse" or "bce", summed over pixels.
        encoder, decoder: `keras.Model`s of your own in place of the backbone's; what they take and return
            is in `keras_ae.networks.own_encoder` and `own_decoder`. They are saved with the model, classes
            of your own if they are registered (`keras.saving.register_keras_serializable`).

    Raises:
        ValueError: for an image_shape that is no (H, W, C), a name that is not known, or an encoder or
            decoder of other shapes.

    References:
        Hinton & Salakhutdinov 2006, Reducing the Dimensionality of Data with Neural Networks.
    """

    heads: tuple[str, ...] = ("code",)
    num_classes = 0
    _means = None

    def __init__(
        self,
        image_shape=(28, 28, 1),
        latent_dim=16,
        backbone="conv",
        hidden=None,
        reconstruction="l1",
        encoder=None,
        decoder=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.execution = Execution()
        image_shape = tuple(image_shape)
        if len(image_shape) != 3 or min(image_shape) < 1:
            raise ValueError(f"image_shape must be (height, width, channels); got {image_shape}.")
        if latent_dim < 1:
            raise ValueError(f"latent_dim must be 1 or more; got {latent_dim}.")
        if backbone not in BACKBONES:
            raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}; got {backbone!r}.")
        if reconstruction not in RECONSTRUCTIONS:
            names = ", ".join(RECONSTRUCTIONS)
            raise ValueError(f"reconstruction must be one of {names}; got {reconstruction!r}.")
        self.image_shape, self.latent_dim = image_shape, latent_dim
        self.backbone, self.hidden = backbone, tuple(hidden) if hidden else None
        self.reconstruction = reconstruction
        self.own = tuple(
            n for n, x in (("encoder", encoder), ("decoder", decoder)) if x is not None
        )
        shared, classes = {"backbone": backbone, "hidden": hidden}, self.num_classes
        shape = image_shape, latent_dim
        self.encoder = (
            build_encoder(*shape, self.heads, **shared, num_classes=classes)
            if encoder is None
            else own_encoder(encoder, *shape, self.heads, classes)
        )
        self.decoder = (
            build_decoder(*shape, **shared, num_classes=classes)
            if decoder is None
            else own_decoder(decoder, *shape, classes)
        )
        self.reconstruction_tracker = keras.metrics.Mean(name="reconstruction")
        self.built = True

    def build(self, input_shape=None):
        """All layers are built by the constructor."""

    def split(self, inputs):
        """Inputs of a call -> (images in [0, 1], what the networks are conditioned on: a list)."""
        return unit_range(inputs), []

    def autoencode(self, image, condition, training=False, sample=False):
        """What the loss needs of a `split` input: `reconstruction` (N, H, W, C) and `code` (N, D)."""
        code = run(self.encoder, [image, *condition], training)["code"]
        return {"code": code, "reconstruction": run(self.decoder, [code, *condition], training)}

    def call(self, inputs, training=False):
        outputs = self.autoencode(*self.split(inputs), training=training, sample=training)
        return outputs["reconstruction"]

    def loss_terms(self, image, outputs):
        """(N,) terms by name, of which the loss is the sum: in pixel units or nats per image."""
        rebuilt = outputs["reconstruction"]
        return {"reconstruction": RECONSTRUCTIONS[self.reconstruction](image, rebuilt)}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The scalar that a step minimises; updates the trackers. `y` and `y_pred` are not used.

        The target is the input itself, and the KL term needs the posterior, so the forward pass is
        made here, in training and in evaluation alike with codes drawn from the posterior.
        """
        image, condition = self.split(x)
        outputs = self.autoencode(image, condition, training=training, sample=True)
        terms = self.loss_terms(image, outputs)
        if sample_weight is not None:
            terms = {k: v * ops.cast(sample_weight, "float32") for k, v in terms.items()}
        terms = {name: ops.mean(term) for name, term in terms.items()}
        loss = self.combine(terms)
        tracked = {getattr(self, f"{name}_tracker"): term for name, term in terms.items()}
        if self._loss_tracker is not None:  # made by compile()
            tracked[self._loss_tracker] = loss
        self.means.add(tracked, keras.ops.shape(image)[0])
        return loss

    def combine(self, terms):
        """The loss from the batch means of its terms."""
        return terms["reconstruction"]

    @property
    def means(self):
        """The running means of the epoch; a step on torch looks them up once for several steps."""
        return self._means or Means(self.metrics)

    def encode(self, inputs, batch_size=256):
        """The codes of images (no randomness): (N, D) float32."""
        return self._encoded(inputs, batch_size)[self.heads[0]]

    def decode(self, codes, labels=None, batch_size=256):
        """Codes (N, D) [and labels (N,)] -> images (N, H, W, C) float32 in [0, 1].

        In place of labels, shares (N, K) of the classes decode what lies between classes.
        """
        codes = np.asarray(codes, "float32")
        condition = [] if not self.num_classes else [self._one_hot(labels, len(codes))]
        return _run(self.decoder, [codes, *condition], batch_size)

    def reconstruct(self, inputs, batch_size=256):
        """Images rebuilt from their codes (no randomness): (N, H, W, C) float32 in [0, 1]."""
        labels = inputs[1] if self.num_classes else None
        return self.decode(self.encode(inputs, batch_size), labels, batch_size)

    def _encoded(self, inputs, batch_size):
        """The encoder's outputs by head, as NumPy arrays."""
        images = inputs[0] if self.num_classes else inputs
        if not hasattr(images, "shape"):
            images = np.asarray(images)
        condition = [] if not self.num_classes else [self._one_hot(inputs[1], len(images))]
        # Part by part: images as floats take four times their memory, and may be read from disk.
        parts = []
        for i in range(0, max(1, len(images)), AT_ONCE):
            rows = slice(i, i + AT_ONCE)
            network_inputs = [to_float(images[rows]), *(c[rows] for c in condition)]
            parts.append(_run(self.encoder, network_inputs, batch_size))
        return keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)

    def get_config(self):
        return {
            **super().get_config(),
            "format": FORMAT,
            "image_shape": self.image_shape,
            "latent_dim": self.latent_dim,
            "backbone": self.backbone,
            "hidden": self.hidden,
            "reconstruction": self.reconstruction,
            **{name: keras.saving.serialize_keras_object(getattr(self, name)) for name in self.own},
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for name in ("encoder", "decoder"):
            if isinstance(config.get(name), dict):
                network = keras.saving.deserialize_keras_object(config[name], custom_objects)
                config[name] = network
        version = config.pop("format", FORMAT)
        if not isinstance(version, int) or version > FORMAT:
            raise ValueError(
                f"it is of format {version}, this version reads up to {FORMAT}: upgrade keras-ae."
            )
        return cls(**config)

    def get_compile_config(self):
        # On torch, Keras swaps an optimizer for a torch class and would write that class's name: a
        # file that no other backend can read. The public name is the same optimizer everywhere.
        config = super().get_compile_config()
        optimizer = (config or {}).get("optimizer")
        if isinstance(optimizer, dict) and ".backend." in (optimizer.get("module") or ""):
            optimizer.update(module="keras.optimizers", registered_name=None)
        return config


@keras.saving.register_keras_serializable("keras_ae")
class VAE(AE):
    """Variational autoencoder: q(z|x) = N(mean(x), exp(log_var(x))), prior N(0, I), x' = decoder(z).

    As `AE`, and: in training and in evaluation z is drawn from q(z|x); a call outside of training,
    and so `predict`, takes its mean. `kl_weight` is a weight of the model that `KLAnnealing` sets.

    Args:
        kl_weight: the weight of the KL term until a callback sets it; 1 maximises the evidence lower
            bound, in nats per image.
        prior: what `sample` draws codes from: a `StandardNormal` or `ClassMixture` layer, see
            `fit_prior`. None is N(0, I).
        **kwargs: the arguments of `AE`.

    References:
        Kingma & Welling 2014, Auto-Encoding Variational Bayes, arXiv:1312.6114.
        Higgins et al. 2017, beta-VAE.
    """

    heads = ("mean", "log_var")

    def __init__(self, *args, kl_weight=1.0, prior=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.kl_weight_at_start = float(kl_weight)
        self.kl_weight = self.add_weight(
            (),
            keras.initializers.Constant(kl_weight),
            trainable=False,
            name="kl_weight",
            dtype="float32",
        )
        self.seed_generator = SeedGenerator()
        self.prior = prior or StandardNormal(self.latent_dim, name="prior")
        self.kl_tracker = keras.metrics.Mean(name="kl")
        self.kl_weight_tracker = keras.metrics.Mean(name="kl_weight")

    def fit(
        self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, **kwargs
    ):
        """`keras.Model.fit`, which warns of callbacks that `KLAnnealing` leads astray."""
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            warn_of_early_choices(keras.tree.flatten(callbacks or []), epochs)
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)

    def autoencode(self, image, condition, training=False, sample=False):
        """Of a `split` input: `reconstruction` (N, H, W, C), `mean` and `log_var` (N, D).

        With `sample` the code is drawn from the posterior, else it is the posterior's mean.
        """
        posterior = run(self.encoder, [image, *condition], training)
        mean = ops.cast(posterior["mean"], "float32")
        log_var = ops.clip(ops.cast(posterior["log_var"], "float32"), *LOG_VAR_RANGE)
        latent = mean
        if sample:
            noise = self.seed_generator.normal(keras.ops.shape(mean))
            latent = mean + ops.exp(0.5 * log_var) * noise
        reconstruction = run(self.decoder, [latent, *condition], training)
        return {"mean": mean, "log_var": log_var, "reconstruction": reconstruction}

    def loss_terms(self, image, outputs):
        kl = gaussian_kl(outputs["mean"], outputs["log_var"])
        return {**super().loss_terms(image, outputs), "kl": kl}

    def combine(self, terms):
        kl_weight = keras.ops.convert_to_tensor(self.kl_weight)
        self.means.add({self.kl_weight_tracker: kl_weight}, 1)
        return terms["reconstruction"] + kl_weight * terms["kl"]

    def posterior(self, inputs, batch_size=256):
        """Mean and log-variance of q(z|x): two arrays (N, D) float32."""
        heads = self._encoded(inputs, batch_size)
        return heads["mean"], np.clip(heads["log_var"], *LOG_VAR_RANGE)

    def fit_prior(self, inputs, labels=None, seed=0):
        """Fit a `ClassMixture` to the codes of the training images, for `sample` to draw from.

        Codes are drawn from the posteriors, one an image: what the decoder was trained on. Of more than
        100,000 images, so many are taken at random. Replaces `self.prior`, which is saved with the model.

        Args:
            inputs: what `fit` was given.
            labels: (N,) classes of the images, where they are known. A VAE draws without labels all the
                same, but a mixture fitted class by class has less density between the classes.
            seed: of the codes and of the mixture.
        """
        images = inputs[0] if self.num_classes else inputs
        if len(images) > PRIOR_IMAGES:
            rows = np.random.default_rng(seed).choice(len(images), PRIOR_IMAGES, replace=False)
            rows.sort()
            labels = labels if labels is None else np.asarray(labels)[rows]
            if self.num_classes:
                inputs = (_Rows(images, rows), np.asarray(inputs[1])[rows])
            else:
                inputs = _Rows(images, rows)
        mean, log_var = self.posterior(inputs)
        noise = np.random.default_rng(seed).standard_normal(mean.shape, dtype="float32")
        codes = mean + np.exp(0.5 * log_var) * noise
        if self.num_classes:
            prior = ClassMixture.fit(codes, inputs[1], self.num_classes, seed=seed, name="prior")
        elif labels is not None:
            classes, labels = np.unique(labels, return_inverse=True)
            by_class = ClassMixture.fit(codes, labels, len(classes), seed=seed)
            prior = by_class.merged(np.bincount(labels), name="prior")
        else:
            prior = ClassMixture.fit(codes, seed=seed, name="prior")
        self.set_prior(prior)

    def set_prior(self, prior):
        """Draw samples from another prior layer from now on.

        `set_prior(other.prior)` copies that of another model; it is no part of `get_weights()`.
        """
        self._tracker.untrack(self.prior)  # or it would stay one of the model's layers
        self.prior = prior

    def sample(self, n, labels=None, seed=0, prior="fitted", batch_size=256):
        """Draw n images: (n, H, W, C) float32 in [0, 1].

        Args:
            n: number of images, >= 0.
            labels: for a CVAE, a class or (n,) classes, in [0, num_classes).
            seed: of the codes. One seed gives one picture on every backend.
            prior: "fitted" for the model's own prior, "normal" for N(0, I).
            batch_size: images decoded at a time.

        Raises:
            ValueError: for a label that is missing, out of range, or not asked for.
        """
        if prior not in ("fitted", "normal"):
            raise ValueError(f"prior must be 'fitted' or 'normal'; got {prior!r}.")
        labels = self._check_labels(labels, n)
        source = self.prior if prior == "fitted" else StandardNormal(self.latent_dim)
        return self.decode(source.draw(n, labels, seed), labels, batch_size)

    def _check_labels(self, labels, n):
        if labels is not None:
            raise ValueError(f"A {type(self).__name__} has no classes: it takes no label.")

    def get_config(self):
        return {
            **super().get_config(),
            "kl_weight": self.kl_weight_at_start,
            "prior": keras.saving.serialize_keras_object(self.prior),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        if isinstance(config.get("prior"), dict):
            prior = keras.saving.deserialize_keras_object(config["prior"], custom_objects)
            config = {**config, "prior": prior}
        return super().from_config(config)


@keras.saving.register_keras_serializable("keras_ae")
class CVAE(VAE):
    """Class-conditional VAE: q(z|x, y) and x' = decoder(z, y), y one-hot in both networks.

    As `VAE`, on pairs: `fit((images, labels))`, `predict((images, labels))`, with labels (N,) of
    integers in [0, num_classes).

    Args:
        num_classes: number of classes K, >= 1.
        class_names: K names, or None for the numbers.
        **kwargs: the arguments of `VAE`.

    References:
        Sohn, Lee & Yan 2015, Learning Structured Output Representation using Deep Conditional
        Generative Models; Kingma et al. 2014, arXiv:1406.5298 (model M2).
    """

    def __init__(self, *args, num_classes=10, class_names=None, **kwargs):
        if num_classes < 1:
            raise ValueError(f"num_classes must be 1 or more; got {num_classes}.")
        if class_names is not None and len(class_names) != num_classes:
            raise ValueError(
                f"{len(class_names)} class names were given for {num_classes} classes."
            )
        self.num_classes = num_classes
        self.class_names = tuple(class_names) if class_names is not None else None
        super().__init__(*args, **kwargs)

    @property
    def names(self):
        """A name for each class: its own, or its number."""
        return self.class_names or tuple(map(str, range(self.num_classes)))

    def split(self, inputs):
        if not isinstance(inputs, (tuple, list)) or len(inputs) != 2:
            raise ValueError(
                "A CVAE takes pairs of images and labels, as in fit((images, labels))."
            )
        image, labels = inputs
        return unit_range(image), [one_hot(labels, self.num_classes)]

    def fit(self, x=None, *args, validation_data=None, **kwargs):
        """`keras.Model.fit`, which refuses labels out of range.

        Raises:
            ValueError: for arrays of labels that are not all in [0, num_classes). Labels that come batch by
                batch (a generator, `PyDataset`, `tf.data` or `DataLoader`) are not looked at, for which a
                GPU would have to be waited for: one that is out of range makes the loss NaN.
        """
        self._check_pair(x)
        if isinstance(validation_data, (tuple, list)) and validation_data:
            self._check_pair(validation_data[0])
        return super().fit(x, *args, validation_data=validation_data, **kwargs)

    def evaluate(self, x=None, *args, **kwargs):
        """`keras.Model.evaluate`, which refuses labels out of range, as `fit` does."""
        self._check_pair(x)
        return super().evaluate(x, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """`keras.Model.predict`, which refuses labels out of range, as `fit` does."""
        self._check_pair(x)
        return super().predict(x, *args, **kwargs)

    def _check_pair(self, x):
        if isinstance(x, (tuple, list)) and len(x) == 2 and np.ndim(x[1]) == 1:
            self._check_labels(keras.ops.convert_to_numpy(x[1]), len(x[1]))

    def _one_hot(self, labels, n):
        if np.ndim(labels) == 2:
            shares = np.asarray(labels, "float32")
            if shares.shape != (n, self.num_classes):
                raise ValueError(f"Shares of {self.num_classes} classes must be {n} rows of them.")
            return shares
        labels = self._check_labels(labels, n)
        return (labels[:, None] == np.arange(self.num_classes)).astype("float32")

    def _check_labels(self, labels, n):
        if labels is None:
            raise ValueError(f"A CVAE needs a label, 0 to {self.num_classes - 1}, for every image.")
        labels = np.asarray(labels)
        if labels.shape != (n,):
            labels = np.broadcast_to(labels, (n,))
        if n and not (labels.min() >= 0 and labels.max() < self.num_classes):
            raise ValueError(f"Labels of this model are 0 to {self.num_classes - 1}.")
        return labels.astype("int64")

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "class_names": self.class_names,
        }


class _Rows:
    """Some rows of images, which are taken as they are asked for."""

    def __init__(self, images, rows):
        self.images, self.rows = images, rows
        self.shape = (len(rows), *images.shape[1:])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, rows):
        return self.images[self.rows[rows]]


def _run(network, inputs, batch_size):
    """Run an encoder or decoder over arrays, in batches, without gradients; NumPy in, NumPy out."""
    if not len(inputs[0]):  # Keras cannot: none of the outputs of one
        one = [np.zeros((1, *array.shape[1:]), array.dtype) for array in inputs]
        return keras.tree.map_structure(lambda output: output[:0], _run(network, one, 1))
    n, batch_size = len(inputs[0]), distributed.filled(batch_size)
    if (more := distributed.filled(n) - n) > 0:
        longer = [np.concatenate([array, array[-1:].repeat(more, 0)]) for array in inputs]
        outputs = _run(network, longer, batch_size)
        return keras.tree.map_structure(lambda output: output[:n], outputs)
    # OpenVINO's predict computes in bfloat16 where the CPU can; a call computes in float32. Elsewhere
    # `predict` would set up a loop with callbacks first: 3 of 15 ms for 64 images.
    # Under a strategy of tensorflow it would have each device predict the whole batch.
    strategy = getattr(network, "distribute_strategy", None)
    several = strategy is not None and strategy.num_replicas_in_sync > 1
    direct = several or keras.backend.backend() == "openvino"
    forward = network if direct else forward_of(network)
    batches = [
        forward([array[i : i + batch_size] for array in inputs])
        for i in range(0, len(inputs[0]), batch_size)
    ]
    return keras.tree.map_structure(_joined, *batches)


def _joined(*batches):
    """One NumPy array of the outputs for some batches, a single one uncopied."""
    first, *more = (b if isinstance(b, np.ndarray) else np.array(b) for b in batches)
    return np.concatenate([first, *more]) if more else first

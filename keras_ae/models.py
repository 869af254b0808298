"""The three models. Each defines its `forward`, its loss terms and its inputs; the rest is shared.

loss = mean over the batch of [ reconstruction + kl_weight * KL(q(z|x) || N(0, I)) ]
"""

import math
import types
import warnings
from collections import Counter

import keras
import numpy as np
from keras import ops

from keras_ae import distributed
from keras_ae.annealing import warn_of_early_choices
from keras_ae.backbones import (
    BACKBONES,
    backbone_of_format_1,
    check_decoder,
    check_encoder,
    ends_in_sigmoid,
    in_policy,
    logits_of,
)
from keras_ae.data import Preparation
from keras_ae.data.reading import LETTERS
from keras_ae.errors import NotFinite, RunError, UserError
from keras_ae.fast import Steps
from keras_ae.fast.networks import call_network
from keras_ae.inference import View, check_count, check_memory, in_batches
from keras_ae.inputs import batches_of, check_shape, is_array, one_hot, peek, rank_of, unit_range
from keras_ae.losses import RECONSTRUCTIONS, gaussian_kl, likeliest_scale, running_scale
from keras_ae.objective import Objective
from keras_ae.priors import (
    ClassMixture,
    Prior,
    StandardNormal,
    copy_prior,
    draw_codes,
    prior_in_weights,
)
from keras_ae.tensors import to_numpy

LOG_VAR_RANGE = (-30.0, 20.0)
PRIOR_IMAGES = 100_000  # images whose codes a prior is fitted to
LARGEST = float(np.finfo("float32").max)  # of a KL weight
SPREAD = 0.7  # of these codes around the posterior's mean, in its standard deviations
FORMAT = 2  # of a model's config; `from_config` refuses a newer one


@keras.saving.register_keras_serializable("keras_ae")
class AE(Steps, Objective):
    """Autoencoder: image -> code -> image.

    Call it on images (N, H, W, C), integers in 0..255 or floats in [0, 1]; it returns reconstructions of
    the same shape, float32 in [0, 1]. `fit(images)` reconstructs the images themselves, `fit(noisy, clean)`
    other images.

    Args:
        image_shape: (H, W, C) of the images.
        latent_dim: number of latents D.
        backbone: a name in `keras_ae.backbones.BACKBONES` ("conv", "mlp") or a `Backbone`.
        hidden: widths of the hidden layers, or None for the default widths of `size`.
        reconstruction: a name in `keras_ae.losses.RECONSTRUCTIONS` ("l1", "mse", "bce"), a
            `Reconstruction`, or a function (target, reconstruction) -> (N,), a sum over pixels.
        encoder, decoder: `keras.Model`s of your own in place of the backbone's networks.
            `keras_ae.backbones.check_encoder` and `check_decoder` say what they take and return. They are
            saved with the model; your own classes must be registered for that
            (`keras.saving.register_keras_serializable`).
        size: "small", "base" or "large": how wide the networks are.
        **kwargs: arguments of `keras.Model`: `name`; `dtype`, a policy that the networks use as well.

    Raises:
        ValueError: image_shape is not (H, W, C), a name is unknown, or the encoder or decoder has other
            shapes.

    References:
        Hinton & Salakhutdinov 2006, Reducing the Dimensionality of Data with Neural Networks.
    """

    terms: tuple[str, ...] = ("reconstruction",)
    heads: tuple[str, ...] = ("code",)
    num_classes = 0
    format = FORMAT
    quantization = None  # the `QuantizationConfig` of Keras that the layers were quantized with
    # A `keras_ae.data.Preparation`: how image files are prepared for the model.
    preparation = None

    def __init__(
        self,
        image_shape=(28, 28, 1),
        latent_dim=16,
        backbone="conv",
        hidden=None,
        reconstruction="l1",
        encoder=None,
        decoder=None,
        size="base",
        **kwargs,
    ):
        super().__init__(**kwargs)
        image_shape = tuple(image_shape)
        if len(image_shape) != 3 or min(image_shape) < 1:
            raise ValueError(f"image_shape must be (height, width, channels); got {image_shape}.")
        image_shape = tuple(check_count("image_shape", size, 1) for size in image_shape)
        latent_dim = check_count("latent_dim", latent_dim, 1)
        found = BACKBONES.find(backbone)
        widths, classes = found.widths_of(image_shape, size, hidden), self.num_classes
        self.image_shape, self.latent_dim = image_shape, latent_dim
        self.backbone, self.size = backbone, size
        self.hidden = None if hidden is None else tuple(hidden)
        self.reconstruction, self._term = reconstruction, RECONSTRUCTIONS.find(reconstruction)
        given = {"encoder": encoder, "decoder": decoder}
        self.custom_networks = tuple(name for name, x in given.items() if x is not None)
        with in_policy(self.dtype_policy):
            self.encoder = (
                found.encoder(image_shape, latent_dim, self.heads, widths, classes)
                if encoder is None
                else check_encoder(encoder, image_shape, latent_dim, self.heads, classes)
            )
            self.decoder = (
                found.decoder(image_shape, latent_dim, widths, classes)
                if decoder is None
                else check_decoder(decoder, image_shape, latent_dim, classes)
            )
        if decoder is not None and self._term.of_logits and not ends_in_sigmoid(self.decoder):
            warnings.warn(
                f"{reconstruction!r} is computed from the decoder's probabilities, as it does not end in "
                "Activation('sigmoid'): pixels that it saturates wrongly have no gradient. End it so, after any "
                "Reshape, and the loss takes the logits.",
                stacklevel=2,
            )
        # Networks that share layers with the decoder, by name. Keras does not track the contents of a
        # SimpleNamespace, so it does not save these layers twice.
        self._views = types.SimpleNamespace(networks={})
        # `export` needs both. (`build` would set them, but after it Keras lets nobody replace the prior.)
        self.built, self._build_shapes_dict = True, {"input_shape": self._input_shape()}
        self._called = True  # a first call has nothing to build; on jax `predict` makes no call

    @property
    def frozen_networks(self):
        """The names of its networks that do not train, as after `model.encoder.trainable = False`."""
        return [name for name in ("encoder", "decoder") if not getattr(self, name).trainable]

    def build(self, input_shape=None):
        """Does nothing: the constructor builds all layers."""

    def get_build_config(self):
        """Returns nothing: the constructor builds all layers."""

    def _input_shape(self):
        return (None, *self.image_shape)

    def compute_output_shape(self, input_shape):
        """The shape of the reconstructions for inputs of a given shape."""
        return (self._images_shape(input_shape)[0], *self.image_shape)

    def _images_shape(self, input_shape):
        return input_shape

    # The forward path

    def network_inputs(self, inputs):
        """Split the inputs of a call: (images in [0, 1], a list of what the networks are conditioned on).

        Raises:
            ValueError: the inputs are no images of the model's shape.
        """
        images = self.images_of(inputs)
        check_shape(images, self.image_shape, f"Images of {self._an()}")
        return unit_range(images), []

    def images_of(self, x):
        """The images among the inputs. Raises ValueError if they are not one array or tensor."""
        if isinstance(x, (tuple, list, dict)):
            raise ValueError(f"{self._an(capital=True)} takes images; got {len(x)} inputs.")
        return x

    def scaled(self, x):
        return unit_range(x) if is_array(x) else x

    def forward(self, inputs, training=False, sample=False):
        """`latent` (N, D) and `reconstruction` (N, H, W, C) in [0, 1]; see `Objective.forward`."""
        image, condition = self.network_inputs(inputs)
        code = call_network(self.encoder, [image, *condition], training)["code"]
        latent = ops.cast(code, "float32")
        return {"latent": latent, **self.decoded(latent, condition, training)}

    def decoded(self, latent, condition, training=False):
        """Decode latents (N, D) to a dict: `reconstruction` and, if the loss uses them, `logits`.

        `logits` is a pair (the reconstruction that belongs to them, logits). So if a `forward` replaces the
        reconstruction, `loss_terms` sees this and computes the loss from the new one.
        """
        inputs = [latent, *condition]
        if network := self._logits_network():
            logits = call_network(network, inputs, training)
            reconstruction = ops.sigmoid(ops.cast(logits, "float32"))
            return {"reconstruction": reconstruction, "logits": (reconstruction, logits)}
        reconstruction = call_network(self.decoder, inputs, training)
        return {"reconstruction": ops.cast(reconstruction, "float32")}

    def _logits_network(self):
        """The decoder without its last sigmoid, or None if the loss takes no logits or it ends otherwise."""
        if self._term.of_logits is None:
            return None
        decoder, network = self._views.networks.get("logits", (None, None))
        if decoder is not self.decoder:
            network = logits_of(self.decoder)
            self._views.networks["logits"] = self.decoder, network
        return network if network is not None and ends_in_sigmoid(self.decoder) else None

    def loss_terms(self, target, outputs):
        """`reconstruction` of each image, a sum over pixels: (N,)."""
        reconstruction = outputs["reconstruction"]
        of, logits = outputs.get("logits", (None, None))
        if self._term.of_logits and of is reconstruction:
            return {"reconstruction": self._term.of_logits(target, logits)}
        return {"reconstruction": self._term(target, reconstruction)}

    # Arrays in, arrays out

    def encode(self, inputs, batch_size=256):
        """Codes (N, D) float32 of the same inputs that `fit` takes, without randomness."""
        return self._outputs(inputs, ("latent",), batch_size)["latent"]

    def reconstruct(self, inputs, batch_size=256):
        """Reconstructions (N, H, W, C) float32 in [0, 1] of the inputs, without randomness."""
        return self._outputs(inputs, ("reconstruction",), batch_size)["reconstruction"]

    def decode(self, codes, labels=None, batch_size=256):
        """Decode codes (N, D) [and labels (N,)] to images (N, H, W, C) float32 in [0, 1].

        To decode a blend of classes, give shares (N, K) of the classes in place of labels.

        Raises:
            ValueError: codes are not (N, D) finite numbers, or labels do not fit.
        """
        codes = to_numpy(codes, "float32")
        if codes.ndim != 2 or codes.shape[1] != self.latent_dim:
            raise ValueError(f"Codes must be (N, {self.latent_dim}); got {codes.shape}.")
        if not np.isfinite(codes).all():
            raise NotFinite(
                "Codes must be finite numbers; some are NaN, infinite or beyond float32."
            )
        labels = self.class_labels(labels, len(codes), shares=True)
        condition = [] if labels is None else [labels]
        return in_batches(self.decoder, [codes, *condition], batch_size)

    def class_labels(self, labels, n, shares=False):
        """The labels of n images: None, as this model has no classes. See `CVAE.class_labels`.

        Raises:
            ValueError: labels are given.
        """
        if labels is not None:
            raise ValueError(f"{self._an(capital=True)} has no classes: it takes no label.")

    def _outputs(self, inputs, names, batch_size):
        """Some outputs of `forward`, for the same inputs that `fit` takes: {name: array}."""
        check_count("batch_size", batch_size, 1)
        if names not in self._views.networks:
            self._views.networks[names] = View(self, names)
        arrays = inputs if isinstance(inputs, (tuple, list)) else [inputs]
        first = arrays[0] if arrays else None
        n = len(first) if is_array(first) and rank_of(first) else 0  # unknown of batches
        parts, done = [], 0
        for batch in batches_of(inputs, batch_size):
            parts.append(self._view(names, self.unpack(batch)[0], batch_size))
            done += len(parts[-1][names[0]])
            row = sum(x.nbytes // max(1, len(x)) for x in parts[-1].values())
            check_memory(max(n, done) * row, f"{max(n, done):,} outputs")
        if not parts:  # Keras cannot predict 0 images: predict one, and keep none of its outputs
            empty = np.zeros((1, *self.image_shape), "float32")
            one = (empty, np.zeros(1, "int64")) if self.num_classes else empty
            return {name: x[:0] for name, x in self._view(names, one, batch_size).items()}
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def _view(self, names, x, batch_size):
        self._check_inputs(x, own_target=False)
        arrays = list(x) if isinstance(x, (tuple, list)) else [x]
        return in_batches(self._views.networks[names], arrays, batch_size)

    # Datasets: `keras_ae.data.ImageData`

    @classmethod
    def arguments_for(cls, data):
        """Arguments of the constructor that follow from a dataset.

        Raises:
            RunError: the dataset lacks something that the model needs.
        """
        return {"image_shape": data.images.shape[1:]}

    def inputs_of(self, data):
        """The inputs of `fit` for a dataset: its images."""
        return data.images

    def check_data(self, data):
        """Refuse a dataset that the model cannot take.

        Raises:
            UserError: its images have another shape.
        """
        shape = tuple(data.images.shape[1:])
        if shape != tuple(self.image_shape):
            raise UserError(
                f"This model takes images of {tuple(self.image_shape)}; those of {data.name} are {shape}."
            )

    def compile(self, *args, **kwargs):
        super().compile(*args, **kwargs)
        self._forget_compiled()

    def save(self, filepath, *args, **kwargs):
        """As `keras.Model.save`, to a .keras file.

        Raises:
            ValueError: the file is an HDF5 file, which cannot hold these models.
        """
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(f"A model of keras-ae is saved to a .keras file; got {filepath}.")
        return super().save(filepath, *args, **kwargs)

    def _forget_compiled(self):
        """Drop what jax and tensorflow compiled for `encode` and the like; `compile` does so for `fit`."""
        self._views.networks.clear()
        self.encoder.predict_function = self.decoder.predict_function = None

    def quantize(self, mode=None, config=None, filters=None, **kwargs):
        """Quantize as Keras does. If this covers all layers and needs no data, the model is saved quantized."""
        super().quantize(mode, config=config, filters=filters, **kwargs)
        self._forget_compiled()
        if filters is None and mode in ("int8", "int4", "float8"):
            self.quantization = config

    def get_config(self):
        more = {}
        if self.quantization is not None:
            more["quantization"] = keras.saving.serialize_keras_object(self.quantization)
        if self.preparation is not None:
            more["preparation"] = self.preparation.to_dict()
        built = {"encoder", "decoder"} - {*self.custom_networks}
        parts = [layer for name in built for layer in getattr(self, name)._flatten_layers()]
        if self.quantization is None and any(getattr(x, "quantization_mode", None) for x in parts):
            raise ValueError(
                "Some layers of this model are quantized, and its file can hold one that is quantized as a whole: "
                "quantize(mode) of the model, without filters, in int8, int4 or float8."
            )
        if frozen := [name for name in self.frozen_networks if name in built]:
            more["frozen"] = frozen
        return {
            **super().get_config(),
            **more,
            "format": self.format,
            "image_shape": self.image_shape,
            "latent_dim": self.latent_dim,
            "backbone": _named(self.backbone, BACKBONES, "backbone"),
            "size": self.size,
            "hidden": self.hidden,
            "reconstruction": _named(self.reconstruction, RECONSTRUCTIONS, "reconstruction"),
            **{
                name: keras.saving.serialize_keras_object(getattr(self, name))
                for name in self.custom_networks
            },
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for name in ("encoder", "decoder", "reconstruction", "quantization"):
            if isinstance(config.get(name), dict):
                found = keras.saving.deserialize_keras_object(config[name], custom_objects)
                config[name] = found
        version = config.pop("format", FORMAT)
        if not isinstance(version, int) or version > FORMAT:
            raise ValueError(
                f"it is of format {version}, this version reads up to {FORMAT}: upgrade keras-ae."
            )
        quantization = config.pop("quantization", None)
        preparation, frozen = config.pop("preparation", None), config.pop("frozen", ())
        named = config.get("backbone")
        if version == 1 and isinstance(named, str):
            config["backbone"] = backbone_of_format_1(named)
        model = cls(**config)
        model.format, model.backbone = version, named or model.backbone
        if preparation is not None:
            model.preparation = Preparation.from_dict(preparation)
        for name in frozen:
            getattr(model, name).trainable = False
        if quantization is not None:
            model.quantize(config=quantization)
        return model

    def get_compile_config(self):
        # On torch, Keras replaces the optimizer by a class for torch and would save the name of that class,
        # which no other backend can read. The public name is the same optimizer on every backend.
        config = super().get_compile_config()
        optimizer = (config or {}).get("optimizer")
        if isinstance(optimizer, dict) and ".backend." in (optimizer.get("module") or ""):
            optimizer.update(module="keras.optimizers", registered_name=None)
        return config


def _named(value, registry, what):
    """The entry of a config for a user's argument: its name in the registry, or a function as Keras saves it."""
    if isinstance(value, str):
        return value
    for name, entry in registry.items():
        if entry is value:
            return name
    if callable(value) and hasattr(value, "__name__"):
        return keras.saving.serialize_keras_object(value)
    raise ValueError(
        f"A {what} of your own is saved by its name: register it, "
        f"{what.upper()}S['its name'] = …, before the model is made."
    )


@keras.saving.register_keras_serializable("keras_ae")
class VAE(AE):
    """Variational autoencoder: q(z|x) = N(mean(x), exp(log_var(x))), prior N(0, I), x' = decoder(z).

    As `AE`, with these differences: `fit` and `evaluate` draw z from q(z|x); a call outside training, and
    so `predict`, takes the mean of q(z|x). `kl_weight` is a weight of the model that `KLAnnealing` sets.

    Args:
        kl_weight: the weight of the KL term until a callback sets it; 1 maximises the evidence lower
            bound, in nats per image. "auto" learns the scale that makes the images most likely and uses it
            as the weight (`likelihood_scale`): the running mean per value of |x - x'| with "l1", of
            2 (x - x')^2 with "mse". A number that a callback sets is then a factor on it.
        prior: `sample` draws codes from it: a `StandardNormal` or `ClassMixture` layer, or one of
            your own (`keras_ae.priors.Prior`), see `fit_prior`. None is N(0, I).
        **kwargs: the arguments of `AE`.

    References:
        Kingma & Welling 2014, Auto-Encoding Variational Bayes, arXiv:1312.6114.
        Higgins et al. 2017, beta-VAE.
        Rybkin, Daniilidis & Levine 2021, sigma-VAE, arXiv:2006.13202 (`kl_weight="auto"`).
    """

    terms = (*AE.terms, "kl")
    heads = ("mean", "log_var")

    def __init__(self, *args, kl_weight=1.0, prior=None, **kwargs):
        super().__init__(*args, **kwargs)
        auto = kl_weight == "auto"
        self.kl_weight_at_start = "auto" if auto else float(kl_weight)
        if not auto and not 0 <= self.kl_weight_at_start <= LARGEST:
            raise ValueError(
                f'kl_weight must be 0 or more and at most {LARGEST:.2g}, or "auto"; got {kl_weight!r}.'
            )
        self._kl_weight = self._scalar("kl_weight", 1.0 if auto else kl_weight)
        self.likelihood_scale = self._scalar("likelihood_scale", 0.0) if auto else None
        if auto:
            self._check_likelihood()
            self.likelihood_scale_tracker = keras.metrics.Mean(name="likelihood_scale")
        self.seed_generator = keras.random.SeedGenerator()
        if prior is None:
            prior = StandardNormal(self.latent_dim, name="prior")
        self.prior = self._fitting_prior(prior)
        self.kl_weight_tracker = keras.metrics.Mean(name="kl_weight")

    def forward(self, inputs, training=False, sample=False):
        """`mean`, `log_var` and `latent` (N, D), `reconstruction` (N, H, W, C); see `Objective.forward`.

        With `sample` the latent is drawn from the posterior, else it is the posterior's mean.
        """
        image, condition = self.network_inputs(inputs)
        posterior = call_network(self.encoder, [image, *condition], training)
        mean = ops.cast(posterior["mean"], "float32")
        log_var = ops.clip(ops.cast(posterior["log_var"], "float32"), *LOG_VAR_RANGE)
        latent = mean
        if sample:
            noise = self.noise(ops.shape(mean))
            latent = mean + ops.exp(0.5 * log_var) * noise
        outputs = {"latent": latent, "mean": mean, "log_var": log_var}
        return {**outputs, **self.decoded(latent, condition, training)}

    def loss_terms(self, target, outputs):
        """`reconstruction`, and `kl`, KL(q(z|x) || N(0, I)) in nats, of each image: (N,)."""
        kl = gaussian_kl(outputs["mean"], outputs["log_var"])
        return {**super().loss_terms(target, outputs), "kl": kl}

    def term_weights(self):
        """`kl_weight` for the KL term, times the scale of the likelihood if that is learnt."""
        return {"kl": self._weight_of_kl()}

    def _weight_of_kl(self):
        weight = ops.convert_to_tensor(self.kl_weight)
        return weight if self.likelihood_scale is None else weight * self.likelihood_scale

    def on_terms(self, terms, sample_weight, training):
        """Tracks the weight of the KL term; with `kl_weight="auto"`, also updates the scale of the likelihood."""
        values = {}
        if self.likelihood_scale is not None:
            if training:
                mean = distributed.batch_mean(terms["reconstruction"], sample_weight)
                likeliest = likeliest_scale(self._term, mean, np.prod(self.image_shape))
                self.likelihood_scale.assign(running_scale(self.likelihood_scale, likeliest))
            values[self.likelihood_scale_tracker] = ops.convert_to_tensor(self.likelihood_scale)
        self.track({self.kl_weight_tracker: self._weight_of_kl(), **values}, 1)

    @property
    def kl_weight(self):
        """The current weight of the KL term, a scalar Keras variable. Assigning a number changes its value."""
        return self._kl_weight

    @kl_weight.setter
    def kl_weight(self, value):
        if isinstance(value, keras.Variable):
            raise ValueError(
                "kl_weight is a variable of the model already: assign a number, or override term_weights to weigh the "
                "KL term by another."
            )
        value = float(keras.ops.convert_to_numpy(value))
        if not 0 <= value <= LARGEST:
            raise ValueError(f"kl_weight must be 0 or more and at most {LARGEST:.2g}; got {value}.")
        self._kl_weight.assign(value)

    def __setattr__(self, name, value):
        if name == "kl_weight":  # Keras would track a value before the property refuses it
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def scale_of_likelihood(self):
        """The scale b (a float) of the likelihood that the loss assumes: see `Reconstruction.likelihood`.

        With `kl_weight="auto"` it is `likelihood_scale`, which is 0 before training; else `kl_weight`.
        """
        variable = self.kl_weight if self.likelihood_scale is None else self.likelihood_scale
        return float(ops.convert_to_numpy(variable))

    def _scalar(self, name, value):
        start = keras.initializers.Constant(value)
        # One value for all devices that train, as by MirroredStrategy.
        return self.add_weight(
            (), start, trainable=False, name=name, dtype="float32", aggregation="mean"
        )

    def _check_likelihood(self):
        if self._term.likelihood is None or "reconstruction" not in self.terms:
            raise ValueError(
                'kl_weight="auto" is the scale of a likelihood, and this reconstruction stands for none: '
                "give a number (kl_weight=0.1, --kl-weight 0.1)."
            )

    def fit(self, x=None, y=None, *args, **kwargs):
        """As `AE.fit`; warns of callbacks that do not work together with `KLAnnealing`."""
        named = dict(zip(("batch_size", "epochs", "verbose", "callbacks"), args)) | kwargs
        callbacks = named.get("callbacks") or []
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            warn_of_early_choices(keras.tree.flatten(callbacks), named.get("epochs", 1))
        return super().fit(x, y, *args, **kwargs)

    def posterior(self, inputs, batch_size=256):
        """Mean and log-variance of q(z|x) for the inputs that `fit` takes: two arrays (N, D) float32."""
        outputs = self._outputs(inputs, ("mean", "log_var"), batch_size)
        return outputs["mean"], outputs["log_var"]

    # The prior

    def fit_prior(self, inputs, labels=None, seed=0):
        """Fit a `ClassMixture` to the codes of the training images; `sample` then draws from it.

        If the model was given a prior of another class, a prior of that class is fitted: see
        `keras_ae.priors.Prior.fit`.

        One code per image is drawn from its posterior, because the decoder was trained on such codes, with 0.7
        of the standard deviation: the mixture, which smooths, then describes whole draws about as well as if it
        were fitted to them, and fewer samples lie between two digits (docs/defaults.md). A prior of another
        class is fitted to whole draws. If there are more than 100,000 images, 100,000 random ones are used. The
        mixture replaces `self.prior`, which is saved with the model.

        Args:
            inputs: the inputs that `fit` was given.
            labels: (N,) classes of the images, if they are known. `sample` takes no labels of a VAE even
                then, but a mixture that is fitted class by class has less density between the classes.
            seed: of the codes and of the mixture.

        Raises:
            ValueError: labels are no classes, or `fit` of a prior of another class returns none that fits.
        """
        inputs, labels = self._prior_inputs(inputs, labels, seed)
        mean, log_var = self.posterior(inputs)
        noise = np.random.default_rng(seed).standard_normal(mean.shape, dtype="float32")
        spread = SPREAD if issubclass(self._kind_of_prior(), ClassMixture) else 1.0
        codes = mean + spread * np.exp(0.5 * log_var) * noise
        prior = self._fitting_prior(self._prior_of(codes, labels, seed))
        prior.check()
        self._replace_prior(prior)

    def prior_inputs_of(self, data):
        """The arguments of `fit_prior` for a dataset: its images, and its labels or None."""
        return data.images, data.labels

    def _prior_inputs(self, inputs, labels, seed):
        """The inputs and labels that `fit_prior` uses: at most PRIOR_IMAGES of them."""
        labels = None if labels is None else _indices(labels)
        if labels is not None and labels.dtype.kind == "f" and (labels % 1).any():
            raise ValueError(
                "Labels are the numbers of classes; some of these are no whole numbers."
            )
        if not is_array(inputs):
            return inputs, labels
        if labels is not None and len(labels) != len(inputs):
            raise ValueError(f"There are {len(inputs)} images and {len(labels)} labels.")
        rows = _chosen_rows(len(inputs), seed)
        if rows is None:
            return inputs, labels
        return Rows(inputs, rows), labels if labels is None else labels[rows]

    def _kind_of_prior(self):
        """The class of prior that is fitted: of one of the user's, its own."""
        return ClassMixture if type(self.prior) is StandardNormal else type(self.prior)

    def _prior_of(self, codes, labels, seed):
        if labels is not None and len(labels) != len(codes):
            raise ValueError(f"There are {len(codes)} images and {len(labels)} labels.")
        kind = self._kind_of_prior()
        if labels is None or kind is not ClassMixture:
            return kind.fit(codes, seed=seed, name="prior")
        classes, labels = np.unique(labels, return_inverse=True)
        by_class = ClassMixture.fit(codes, labels, len(classes), seed=seed)
        return by_class.merged(np.bincount(labels), name="prior")

    def set_prior(self, prior):
        """Replace the prior by a copy of another prior layer; `sample` draws from it from now on.

        `set_prior(other.prior)` copies the prior of another model, which `get_weights()` does not include.

        Raises:
            ValueError: it is for another number of latents or classes.
        """
        self._replace_prior(copy_prior(self._fitting_prior(prior)))

    def _replace_prior(self, prior):
        locked = self._tracker.locked  # by Keras, in `build` and `quantize`
        self._tracker.unlock()
        try:
            self._tracker.untrack(self.prior)  # otherwise it would stay in the model's layers
            self.prior = prior
        finally:
            if locked:
                self._tracker.lock()

    def load_weights(self, filepath, *args, **kwargs):
        """Load weights as Keras does; the prior in the file, fitted or not, becomes the model's prior."""
        prior = prior_in_weights(filepath, self.prior)
        before = self.prior
        if prior is not None:
            self._replace_prior(self._fitting_prior(prior))
        try:
            super().load_weights(filepath, *args, **kwargs)
        except Exception:
            self._replace_prior(before)
            raise

    def prior_named(self, prior):
        """The model's own prior for "fitted", N(0, I) for "normal"; a prior layer is returned as it is.

        Raises:
            ValueError: it is none of these, or a layer for other codes or classes.
        """
        if isinstance(prior, Prior):
            return self._fitting_prior(prior)
        if prior not in ("fitted", "normal"):
            raise ValueError(
                f"prior must be 'fitted' or 'normal', or a prior layer; got {prior!r}."
            )
        return self.prior if prior == "fitted" else StandardNormal(self.latent_dim)

    def _fitting_prior(self, prior):
        """A prior layer, checked."""
        if not isinstance(prior, Prior):
            raise ValueError(
                f"A prior must be a keras_ae.priors.Prior, with draw and log_prob; got {type(prior).__name__}."
            )
        latents = getattr(prior, "latent_dim", self.latent_dim)
        classes = getattr(prior, "num_classes", None)
        if latents != self.latent_dim or classes not in (None, max(1, self.num_classes)):
            raise ValueError(
                f"This prior is for {latents} latents and {classes or 1} classes; {self._an()} of {self.latent_dim} "
                f"latents and {max(1, self.num_classes)} classes cannot draw from it."
            )
        return prior

    def sample(self, n, labels=None, seed=0, prior="fitted", batch_size=256):
        """Draw n images: (n, H, W, C) float32 in [0, 1].

        Args:
            n: number of images, >= 0.
            labels: for a CVAE, one class or (n,) classes, in [0, num_classes).
            seed: of the codes. One seed gives the same picture on every backend.
            prior: see `prior_named`.
            batch_size: images decoded at a time.

        Raises:
            ValueError: n is no whole number of 0 or more, or labels are missing, out of range, or given to a model without classes.
            UserError: so many images would take too much memory.
        """
        check_count("n", n, 0)
        source = self.prior_named(prior)
        check_memory(4 * n * (math.prod(self.image_shape) + self.latent_dim), f"{n:,} images")
        labels = self.class_labels(labels, n)
        return self.decode(draw_codes(source, n, labels, seed), labels, batch_size)

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
        return super().from_config(config, custom_objects)


@keras.saving.register_keras_serializable("keras_ae")
class CVAE(VAE):
    """Class-conditional VAE: q(z|x, y) and x' = decoder(z, y); both networks take y one-hot.

    As `VAE`, on pairs of images and labels: `fit((images, labels))`, or `fit(images, labels)` and anything
    that yields such batches. Labels are (N,) or (N, 1) integers in [0, num_classes), or one-hot (N, K).
    `fit((noisy, labels), clean)` reconstructs other images.

    `fit`, `evaluate` and `predict` raise ValueError for arrays of labels that are not all in [0, num_classes).
    If labels come batch by batch (a generator, `PyDataset`, `tf.data` or `DataLoader`), only the first batch
    is checked. A later label that is out of range makes the loss NaN.

    Args:
        num_classes: number of classes K, >= 1.
        class_names: K different names of at most 255 letters, or None to use the numbers as names.
        **kwargs: the arguments of `VAE`.

    References:
        Sohn, Lee & Yan 2015, Learning Structured Output Representation using Deep Conditional
        Generative Models; Kingma et al. 2014, arXiv:1406.5298 (model M2).
    """

    def __init__(self, *args, num_classes=10, class_names=None, **kwargs):
        num_classes = check_count("num_classes", num_classes, 1)
        if class_names is not None and len(class_names) != num_classes:
            raise ValueError(
                f"{len(class_names)} class names were given for {num_classes} classes."
            )
        if class_names is not None:
            _check_names(class_names)
        self.num_classes = num_classes
        self.class_names = tuple(class_names) if class_names is not None else None
        super().__init__(*args, **kwargs)

    def _input_shape(self):
        return [super()._input_shape(), (None,)]

    def _images_shape(self, input_shape):
        return input_shape[0]

    @property
    def names(self):
        """The name of each class, or its number if no names were given."""
        return self.class_names or tuple(map(str, range(self.num_classes)))

    def network_inputs(self, inputs):
        images, condition = super().network_inputs(inputs)
        return images, [*condition, one_hot(inputs[1], self.num_classes)]

    def images_of(self, x):
        if not isinstance(x, (tuple, list)) or len(x) != 2:
            raise ValueError(
                "A CVAE takes pairs of images and labels, as in fit((images, labels))."
            )
        return x[0]

    def scaled(self, x):
        return super().scaled(self.images_of(x)), x[1]

    def unpack(self, data):
        """A batch of `fit` as (x, y, sample_weight); for a batch (images, labels), x is the pair."""
        x, y, sample_weight = super().unpack(data)
        if is_array(x) and y is not None and (rank_of(y) or 1) < 3:
            x, y = (x, y), None
        return x, y, sample_weight

    def _check_inputs(self, x, own_target):
        super()._check_inputs(x, own_target)
        labels = x[1]
        if is_array(labels) and tuple(labels.shape[1:]) in ((), (1,)):
            self.class_labels(labels, len(labels))

    def _with_y(self, x):
        return x if isinstance(x, (tuple, list)) and len(x) == 2 else (x, None)

    def _classes_as_y(self, x, y):
        if isinstance(x, (tuple, list)) and y is None:
            return x
        if y is None:  # x yields batches, and Keras takes the second part of each as the classes
            batch, x = peek(x)
            if batch is not None and not is_array(batch[0]):
                raise ValueError(
                    "class_weight needs batches of (images, labels); these are ((images, labels),)."
                )
            return x, y
        if not is_array(y) or len(y.shape) < 3:
            return x, y
        raise ValueError(
            "class_weight needs the labels as y, fit(images, labels, class_weight=…); with other targets, "
            "give sample_weight, a number an image."
        )

    def _prior_inputs(self, inputs, labels, seed):
        """The pairs (images, labels) that `fit_prior` uses, and their labels (N,)."""
        if labels is not None:
            raise ValueError("A CVAE has its labels in the pair: fit_prior((images, labels)).")
        if isinstance(inputs, (tuple, list)):
            images, labels = inputs
            rows = _chosen_rows(len(images), seed)
            if rows is not None:
                images, labels = Rows(images, rows), to_numpy(labels)[rows]
            return (images, labels), self.class_labels(labels, len(images))
        pairs = [self.unpack(batch)[0] for batch in batches_of(inputs, 256)]
        images, labels = (
            np.concatenate([ops.convert_to_numpy(pair[i]) for pair in pairs]) for i in (0, 1)
        )
        return (images, labels), self.class_labels(labels, len(images))

    def _prior_of(self, codes, labels, seed):
        kind = self._kind_of_prior()
        return kind.fit(codes, labels, self.num_classes, seed=seed, name="prior")

    def class_labels(self, labels, n, shares=False):
        """The labels of n images, checked: (n,) int64 in [0, num_classes).

        Args:
            labels: one class, (n,) or (n, 1) classes, or one-hot (n, K).
            n: number of images.
            shares: return (n, K) float32, the share of each class in an image. Then labels may be such shares,
                and the rows of classes are made on demand.

        Raises:
            ValueError: there are no labels, or they are not of these.
        """
        classes = f"0 to {self.num_classes - 1}"
        if labels is None:
            raise ValueError(f"A CVAE needs a label, {classes}, for every image.")
        labels = labels if isinstance(labels, np.ndarray) else ops.convert_to_numpy(labels)
        if shares and labels.ndim == 2 and (labels.shape[1] > 1 or labels.dtype.kind == "f"):
            if labels.shape != (n, self.num_classes):
                raise ValueError(f"Shares of {self.num_classes} classes must be {n} rows of them.")
            return labels.astype("float32")
        if labels.ndim == 2 and labels.shape[1] not in (1, self.num_classes):
            raise ValueError(f"One-hot labels must be (N, {self.num_classes}); got {labels.shape}.")
        labels = _indices(labels) if labels.ndim else labels
        if labels.dtype.kind not in "biuf" or (labels % 1).any():
            raise ValueError(
                f"Labels are the numbers of classes, {classes}; got {labels.ravel()[0]!r}."
            )
        if labels.shape not in ((), (1,), (n,)):
            raise ValueError(f"There are {n} images and {len(labels)} labels.")
        if labels.size and not (labels.min() >= 0 and labels.max() < self.num_classes):
            raise ValueError(f"Labels of this model are {classes}.")
        labels = np.broadcast_to(labels, (n,)).astype("int64")
        return OneHot(labels, self.num_classes) if shares else labels

    @classmethod
    def arguments_for(cls, data):
        if data.labels is None:
            raise RunError(
                f"{data.name} has no labels, which a cvae needs: fit an ae or a vae to it, or import it "
                "from a folder with a folder for each class."
            )
        names = {"num_classes": data.num_classes, "class_names": data.class_names}
        return super().arguments_for(data) | names

    def inputs_of(self, data):
        """The inputs of `fit` for a dataset: its images and labels."""
        return data.images, data.labels

    def prior_inputs_of(self, data):
        """The arguments of `fit_prior` for a dataset: the pair of its images and labels."""
        return (self.inputs_of(data),)

    def check_data(self, data):
        super().check_data(data)
        if data.labels is None:
            raise UserError(f"This model needs labels, and {data.name} has none.")
        if data.labels.max(initial=0) >= self.num_classes:
            raise UserError(
                f"This model has {self.num_classes} classes; {data.name} has labels beyond that."
            )

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "class_names": self.class_names,
        }


def _check_names(names):
    """Refuse names of classes that no dataset has: a model file holds them, and --label takes them."""
    for i, name in enumerate(names):
        if not isinstance(name, str) or len(name) > LETTERS:
            raise ValueError(f"The name of class {i} must be a text of at most {LETTERS} letters.")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{times} classes have the name {name!r}: give each a name of its own.")


MODELS = {"ae": AE, "vae": VAE, "cvae": CVAE}


class Rows:
    """Some rows of an array of images; a row is read only when it is asked for."""

    def __init__(self, images, rows):
        self.images, self.rows = images, rows
        self.shape, self.dtype = (len(rows), *images.shape[1:]), images.dtype

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, rows):
        return self.images[self.rows[rows]]


class OneHot:
    """Labels (N,) as a one-hot array (N, K); a row is made only when it is asked for."""

    dtype = np.dtype("float32")

    def __init__(self, labels, num_classes):
        self.labels, self.shape = labels, (len(labels), num_classes)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, rows):
        return (self.labels[rows, None] == np.arange(self.shape[1])).astype(self.dtype)

    def __array__(self, dtype=None, copy=None):
        return self[:].astype(dtype or self.dtype)


def _chosen_rows(n, seed):
    """The indices of the rows that a prior is fitted to, or None for all rows."""
    if n <= PRIOR_IMAGES:
        return None
    return np.sort(np.random.default_rng(seed).choice(n, PRIOR_IMAGES, replace=False))


def _indices(labels):
    """Labels (N,), (N, 1) or one-hot (N, K) as indices (N,)."""
    labels = to_numpy(labels)
    if labels.ndim not in (1, 2):
        raise ValueError(f"Labels must be (N,), (N, 1) or (N, K) one-hot; got {labels.shape}.")
    return labels.argmax(-1) if labels.ndim == 2 and labels.shape[1] > 1 else labels.reshape(-1)

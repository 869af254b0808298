"""The model and the optimizer that some settings ask for, and the settings that a model or images decide."""

import dataclasses
import json
import math

import keras

from keras_ae.backbones import BACKBONES, count_weights, seeded_weights, zero_weights
from keras_ae.errors import RunError, total_memory
from keras_ae.fast.adam import Adam
from keras_ae.inference import memory_of_training
from keras_ae.model_file import JSON_BYTES, MOST_NUMBERS
from keras_ae.models import MODELS
from keras_ae.recommended import RECOMMENDED, recommended
from keras_ae.settings import Settings, has_kl

COPIES_IN_TRAINING = 4  # memory in units of the weights: weights, gradients, two moments of Adam
# Settings that a user's own model has already fixed.
OF_THE_MODEL = ("latent_dim", "backbone", "size", "hidden", "reconstruction", "dtype")


def settled(settings, train=None):
    """Fill in the settings that follow from other settings, and from the training images if given.

    Raises:
        ValueError: the backbone does not take these widths.
    """
    backbone = BACKBONES.find(settings.backbone)
    shape = (28, 28, 1) if train is None else train.images.shape[1:]
    backbone.widths_of(shape, settings.size, settings.hidden)
    found = {"learning_rate": backbone.learning_rate}
    if train is not None:
        found |= recommended(train.name, shape, len(train.images))
    if not has_kl(settings.model):
        found.pop("kl_weight", None)
    return filled(settings, found)


def as_stored(settings, stored):
    """Fill in the settings that follow from the images with the values of a stored run."""
    return filled(settings, {name: getattr(stored, name) for name in RECOMMENDED})


def filled(settings, values):
    """Settings in which these values replace None."""
    missing = {name: value for name, value in values.items() if getattr(settings, name) is None}
    return dataclasses.replace(settings, **missing)


def settings_of(settings, model):
    """The settings for a run with a user's own model: values that the model has fixed are taken from it.

    Raises:
        ValueError: the settings contradict the model, or the model is no kind of `settings.model`.
    """
    base = MODELS[settings.model]
    if not isinstance(model, base):
        raise ValueError(
            f"Settings({settings.model!r}) are for a {base.__name__}; got a {type(model).__name__}."
        )
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    decided = {name: model.get_config()[name] for name in OF_THE_MODEL if name != "dtype"}
    decided["dtype"] = model.dtype_policy.name
    if not isinstance(decided["reconstruction"], str):  # a function of the user's
        decided["reconstruction"] = defaults["reconstruction"]
    for name, value in decided.items():
        if getattr(settings, name) not in (defaults[name], value):
            raise ValueError(
                f"The model has {name} {value!r}, and the settings {getattr(settings, name)!r}: leave it "
                "out of the settings."
            )
    if (weight := getattr(model, "kl_weight_at_start", None)) is not None:
        # For a trained model, this is the weight at the end of its annealing.
        weight = weight if weight == "auto" else float(keras.ops.convert_to_numpy(model.kl_weight))
        asked = settings.kl_weight
        if asked is not None and asked != weight and "auto" in (asked, weight):
            raise ValueError(
                f"The model has kl_weight {weight!r}, and the settings {asked!r}: leave it out of the "
                "settings."
            )
        decided["kl_weight"] = weight if asked is None else asked
    return dataclasses.replace(settings, **decided)


def refuse_kl_settings(settings, model):
    """Refuse KL settings for a model of the user's whose loss has no KL divergence.

    Raises:
        ValueError: the settings weigh a KL divergence.
    """
    if given := settings.kl_settings():
        raise ValueError(
            f"The loss of {type(model).__name__} has no term kl, which {given[0]} is for: leave it out of the settings."
        )


def build_model(settings, train):
    """Build the model of some settings for training data (`keras_ae.data.ImageData`), not compiled."""
    model = MODELS[settings.model]
    arguments = model.arguments_for(train) | {
        name: getattr(settings, name) for name in OF_THE_MODEL
    }
    if settings.kl_weight == "auto":
        arguments["kl_weight"] = "auto"
    weights = count_weights(
        arguments["image_shape"],
        settings.latent_dim,
        len(model.heads),
        settings.backbone,
        settings.hidden,
        arguments.get("num_classes", 0),
        settings.size,
    )
    needed = COPIES_IN_TRAINING * 4 * weights
    if needed > (memory := total_memory()):
        raise RunError(
            f"This network has {weights:,} weights, whose training takes {needed / 2**30:,.0f} "
            f"GiB of memory; there are {memory / 2**30:,.0f}. Try a smaller --hidden or --latent-dim."
        )
    with seeded_weights(settings.seed):
        return model(**arguments, name=settings.model)


def check_trainable(model, images):
    """Check that a model can make a training step of so many images.

    Raises:
        RunError: all its weights are frozen, or the step would take more memory than the machine has.
    """
    if not model.trainable_variables:
        raise RunError(
            "The model has nothing to train: all its weights are frozen (trainable=False)."
        )
    if math.prod(model.image_shape) > MOST_NUMBERS:
        raise RunError(
            f"Images of {' x '.join(map(str, model.image_shape))} have more than {MOST_NUMBERS:,} numbers, which no "
            "model file may: import them smaller (--resize)."
        )
    if len(json.dumps(getattr(model, "class_names", None))) > JSON_BYTES // 2:
        raise RunError(
            f"The names of {model.num_classes:,} classes are longer than a model file may hold: shorten them."
        )
    needed = memory_of_training([model.encoder, model.decoder], images)
    if needed > (memory := total_memory()):
        raise RunError(
            f"A step of {images:,} images takes {needed / 2**30:,.0f} GiB of memory; there are "
            f"{memory / 2**30:,.0f}. Try a smaller --batch-size or --hidden."
        )
    # The fit of a prior holds a few matrices, in double precision, of a row and a column for each latent.
    matrices = 4 * 8 * model.latent_dim**2
    if "kl" in model.terms and matrices > memory:
        raise RunError(
            f"The prior of {model.latent_dim:,} latents takes {matrices / 2**30:,.0f} GiB of memory; there are "
            f"{memory / 2**30:,.0f}. Try a smaller --latent-dim."
        )


def in_dtype(model, dtype):
    """A loaded model, which is float32, converted to the precision of a run."""
    if dtype == model.dtype_policy.name or model.custom_networks:
        return model
    with zero_weights():
        other = type(model).from_config({**model.get_config(), "dtype": dtype})
    other.set_weights(model.get_weights())
    if hasattr(model, "prior"):
        other.set_prior(model.prior)
    return other


def build_optimizer(settings, total_steps):
    """The optimizer of some settings, with its learning-rate schedule over the whole run."""
    rate, schedules = settings.learning_rate, keras.optimizers.schedules
    if settings.lr_schedule == "onecycle":
        up = max(1, total_steps // 10)
        rate = schedules.CosineDecay(rate / 25, max(1, total_steps - up), 0.0, "lr", rate, up)
    elif settings.lr_schedule == "cosine":
        rate = schedules.CosineDecay(rate, total_steps)
    config = {"learning_rate": rate}
    if settings.ema is not None:
        config |= {"use_ema": True, "ema_momentum": settings.ema}
    if settings.optimizer == "adam":
        return Adam(**config)
    return keras.optimizers.get({"class_name": settings.optimizer, "config": config})

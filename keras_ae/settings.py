"""The settings of a run: the options of `kae fit`, stored in `run.json`. This module imports no framework."""

import ast
import dataclasses
import functools
import math
import operator
import os
import sys
from pathlib import Path

KL_SCHEDULES = ("linear", "cosine", "sigmoid", "cyclical", "constant")
LR_SCHEDULES = ("onecycle", "cosine", "constant")
DTYPES = ("float32", "mixed_bfloat16")
MOST = 2**31 - 1  # largest number of latents, epochs, images …
DEPTH = 64  # most hidden layers of a network of convolutions or dense layers
HEAVIEST = 1e30  # largest weight of the KL term: a float32 goes to 3e38
SIZES = ("small", "base", "large")
OPTIMIZERS = ("adam", "adamw", "nadam", "rmsprop", "sgd")
EXPORT_SUFFIXES = {
    "onnx": ".onnx",
    "torch": ".pt2",
    "openvino": ".xml",
    "saved_model": "",
    "litert": ".tflite",
}
EXPORT_PARTS = ("decoder", "encoder", "autoencoder", "sampler")


class Registry(dict):
    """Entries by name. `REGISTRY["name"] = entry` adds one; an entry is accepted wherever a name is.

    Args:
        what: name of the argument that takes an entry, such as "backbone".
        kind: class of the entries.
        entries: {name: entry}.
        of_function: makes an entry from a plain function; None if functions are not accepted.
    """

    def __init__(self, what, kind, entries, of_function=None):
        super().__init__(entries)
        self.what, self.kind, self.of_function = what, kind, of_function

    def __setitem__(self, name, value):
        if (entry := self._entry(value)) is None:
            raise ValueError(f"A {self.what} must be {self.accepted}; {name!r} is {value!r}.")
        super().__setitem__(name, entry)

    @property
    def accepted(self):
        """What may be an entry, for a message."""
        return "a function" if self.of_function else f"a {self.kind.__name__}"

    def _entry(self, value):
        """The entry that a value is or makes; None if it is none."""
        if isinstance(value, self.kind):
            return value
        return self.of_function(value) if self.of_function and callable(value) else None

    def find(self, value):
        """The entry for a name; an entry is returned as it is.

        Raises:
            ValueError: the name is unknown, or the value is neither a name nor an entry.
        """
        entry = self.get(value) if isinstance(value, str) else self._entry(value)
        if entry is None:
            raise ValueError(
                f"{self.what} must be {self.accepted}, or one of {', '.join(self)}; got {value!r}."
            )
        return entry


def models():
    """Names of the models, as in `keras_ae.models.MODELS`."""
    return _names("models", "MODELS")


def released(name):
    """The folder of the released weights of this name (it may not exist)."""
    package = Path(__file__).parent
    installed = package / "released" / name
    return installed if installed.is_dir() else package.parent / "checkpoints" / "released" / name


def checkpoint_names(root):
    """Names that are accepted for a checkpoint: the models, the runs in a folder, and the released weights."""
    runs = sorted(path.parent.name for path in Path(root).glob("*/model.keras"))
    weights = sorted(path.parent.name for path in released("").glob("*/run.json"))
    return list(dict.fromkeys([*models(), *runs, *weights]))


def backbones():
    """Names of the backbones, as in `keras_ae.backbones.BACKBONES`."""
    return _names("backbones", "BACKBONES")


def reconstructions():
    """Names of the reconstruction terms, as in `keras_ae.losses.RECONSTRUCTIONS`."""
    return _names("losses", "RECONSTRUCTIONS")


def augmentations():
    """Names of the augmentations, as in `keras_ae.augmentation.AUGMENTATIONS`."""
    return _names("augmentation", "AUGMENTATIONS")


# Settings that name an entry of a registry: {setting: a function that returns the names}.
REGISTERED = {"model": models, "backbone": backbones, "reconstruction": reconstructions}


def unknown_name(values):
    """What in a dict of settings names no entry of a registry here: (field, name); None where all are known."""
    for field, names in REGISTERED.items():
        if isinstance(name := values.get(field), str) and name not in names():
            return field, name
    return None


def _names(module, registry):
    """The names in a registry. If its module, which needs Keras, is not imported, read them from its source."""
    loaded = sys.modules.get(f"keras_ae.{module}")
    found = getattr(loaded, registry, None)  # None while it is being imported
    return _names_in_source(module, registry) if found is None else tuple(found)


def _names_in_source(module, registry):
    return tuple(_entries_in_source(module, registry))


@functools.cache
def _entries_in_source(module, registry):
    """The entries of a registry, as the source has them: {name: node}."""
    for node in _source(module).body:
        if isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == [
            registry
        ]:
            entries = next(x for x in ast.walk(node.value) if isinstance(x, ast.Dict))
            return {ast.literal_eval(k): value for k, value in zip(entries.keys, entries.values)}
    raise LookupError(f"{module}.py has no {registry}.")


@functools.cache
def _source(module):
    return ast.parse(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))


def has_kl(model):
    """Whether the loss of the model of a name has a KL divergence to weigh, where Keras is not imported, a VAE's."""
    loaded = sys.modules.get("keras_ae.models")
    if (found := getattr(loaded, "MODELS", None)) is not None:
        return "kl" in found[model].terms
    bases = {
        node.name: [getattr(base, "id", "") for base in node.bases]
        for node in _source("models").body
        if isinstance(node, ast.ClassDef)
    }
    names = [_entries_in_source("models", "MODELS")[model].id]
    for name in names:  # which grows
        names += bases.get(name, [])
    return "VAE" in names


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that, with the package versions, determines a run.

    Attributes:
        model: "ae", "vae" or "cvae", or another name in `keras_ae.models.MODELS`.
        dataset: name of a TFDS dataset, or a name for your own arrays.
        backbone: "conv" or "mlp", or another name in `keras_ae.backbones.BACKBONES`.
        size: "small", "base" or "large": how wide the networks are.
        hidden: widths of the hidden layers (see `keras_ae.backbones`), or None for the widths of the size.
        latent_dim: number of latents. None, here and for `epochs`, `batch_size` and `kl_weight`, takes the
            recommended value for the shape and number of the images (see `keras_ae.recommended`).
        epochs: passes over the training images.
        batch_size: images per step; the last batch of an epoch may be smaller.
        optimizer: a name in OPTIMIZERS.
        learning_rate: the peak of the schedule, or None for the backbone's default.
        lr_schedule: "onecycle" (linear up for a tenth of the run, then half a cosine down to 0),
            "cosine" (half a cosine down to 0) or "constant".
        reconstruction: "l1", "mse" or "bce", summed over pixels.
        kl_weight: final weight of the KL term in nats per image. 1 gives the evidence lower bound, "auto"
            learns the scale of the likelihood and uses it (see `keras_ae.VAE`).
        kl_schedule: how the weight rises to `kl_weight`; see `keras_ae.annealing`.
        kl_warmup: fraction of the run that this takes, in (0, 1].
        binarize: at each use, set each pixel to 1 with the probability of its grey value, else to 0
            (dynamic binarisation).
        augment: random changes of the training images, drawn at each use: "flip" (left and right), "shift"
            (up to a tenth of a side) and "colour" (for RGB images); None for none. See
            `keras_ae.augmentation`.
        dtype: "float32", or "mixed_bfloat16": layers compute in bfloat16, while weights, losses and the
            checkpoint stay float32.
        early_stopping: end the run after this many epochs without a lower validation loss. The count starts
            after the warm-up of `kl_weight`: losses before that cannot be compared. None for never.
        ema: momentum, in (0, 1), of a running average of the weights. The average replaces the weights
            wherever the model is used (validation, pictures, checkpoint). None for no average.
        seed: of the weights, the order of the images and all noise.
        limit: train on only the first `limit` images; None for all.
    """

    model: str
    dataset: str = "mnist"
    backbone: str = "conv"
    size: str = "base"
    hidden: tuple[int, ...] | None = None
    latent_dim: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str = "adam"
    learning_rate: float | None = None
    lr_schedule: str = "onecycle"
    reconstruction: str = "l1"
    kl_weight: float | str | None = None
    kl_schedule: str = "linear"
    kl_warmup: float = 1.0
    binarize: bool = False
    augment: tuple[str, ...] | None = None
    dtype: str = "float32"
    early_stopping: int | None = None
    ema: float | None = None
    seed: int = 0
    limit: int | None = None

    def __post_init__(self):
        if isinstance(self.dataset, os.PathLike):
            object.__setattr__(self, "dataset", os.fspath(self.dataset))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            # NumPy's numbers and lists, which run.json cannot hold.
            plain = hasattr(value, "tolist") and getattr(value, "ndim", 1) < 2
            if plain and field.name != "dataset":
                object.__setattr__(self, field.name, value.tolist())
        if isinstance(self.dataset, str) and "\0" in self.dataset:
            raise ValueError("dataset has a NUL character in it, which no name has.")
        for field, names in {
            **{field: names() for field, names in REGISTERED.items()},
            "size": SIZES,
            "optimizer": OPTIMIZERS,
            "lr_schedule": LR_SCHEDULES,
            "kl_schedule": KL_SCHEDULES,
            "dtype": DTYPES,
        }.items():
            if getattr(self, field) not in names:
                raise ValueError(
                    f"{field} must be one of {', '.join(names)}; got {getattr(self, field)!r}."
                )
        if not isinstance(self.dataset, str):
            kind = type(self.dataset).__name__
            raise ValueError(
                f"dataset must be a name; got a {kind}. Arrays are given to "
                "keras_ae.fit(settings, folder, train=…, test=…)."
            )
        if type(self.seed) is not int:
            raise ValueError(f"seed must be a whole number; got {self.seed!r}.")
        if type(self.binarize) is not bool:
            raise ValueError(f"binarize must be True or False; got {self.binarize!r}.")
        for field in ("latent_dim", "epochs", "batch_size", "limit", "early_stopping"):
            if (value := getattr(self, field)) is None:
                continue
            if type(value) is not int:
                raise ValueError(f"{field} must be a whole number; got {value!r}.")
            if value < 1:
                raise ValueError(f"{field} must be 1 or more; got {value}.")
            if value > MOST:
                raise ValueError(f"{field} must be {MOST:,} or less.")
        for field in ("learning_rate", "kl_weight", "kl_warmup", "ema"):
            value = getattr(self, field)
            if type(value) not in (int, float) and (value, field) != ("auto", "kl_weight"):
                if value is None and field != "kl_warmup":
                    continue
                raise ValueError(f"{field} must be a number; got {value!r}.")
            if type(value) is int and abs(value) > MOST:
                raise ValueError(f"{field} must be {MOST:,} or less.")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0; got {self.learning_rate}.")
        if self.kl_weight not in (None, "auto"):
            if not 0 <= self.kl_weight < math.inf:
                raise ValueError(f'kl_weight must be 0 or more, or "auto"; got {self.kl_weight}.')
            if self.kl_weight > HEAVIEST:
                raise ValueError(f"kl_weight must be {HEAVIEST:g} or less; got {self.kl_weight:g}.")
        if not 0 < self.kl_warmup <= 1:
            raise ValueError(
                f"kl_warmup is a fraction of the run, in (0, 1]; got {self.kl_warmup}. A warm-up longer "
                "than the run would never reach the full weight."
            )
        if self.early_stopping and self.epochs and self.warmup_epochs >= self.epochs:
            raise ValueError(
                "early_stopping begins after the warm-up of the KL weight, and that takes all "
                f"{self.epochs} epochs: give "
                + (
                    "more epochs."
                    if self.epochs < 2
                    else "a kl_warmup below 1, such as 0.5, or more epochs."
                )
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema is a momentum in (0, 1), such as 0.999; got {self.ema}.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be 0 to {2**32 - 1}; got {self.seed}.")
        if self.hidden is not None:
            listed = isinstance(self.hidden, list | tuple)
            if not listed or not all(hasattr(width, "__index__") for width in self.hidden):
                raise ValueError(f"hidden must be a list of whole numbers; got {self.hidden!r}.")
            object.__setattr__(self, "hidden", tuple(map(operator.index, self.hidden)))
            if len(self.hidden) > DEPTH:
                raise ValueError(
                    f"hidden must be {DEPTH} widths or fewer; got {len(self.hidden):,}."
                )
            if not self.hidden or min(self.hidden) < 1:
                raise ValueError(f"hidden must be widths of 1 or more; got {self.hidden}.")
            if max(self.hidden) > MOST:
                raise ValueError(f"hidden must be widths of {MOST:,} or less.")
            if self.size != "base":
                raise ValueError("hidden says all widths, and so does size: give one of them.")
        if self.augment is not None:
            names = self.augment.split(",") if isinstance(self.augment, str) else self.augment
            if not isinstance(names, list | tuple | set | frozenset):
                raise ValueError(f"augment must be a list of names; got {names!r}.")
            if unknown := [name for name in names if name not in augmentations()]:
                raise ValueError(
                    f"augment must be some of {', '.join(augmentations())}; got {unknown[0]!r}."
                )
            names = tuple(name for name in augmentations() if name in names)
            object.__setattr__(self, "augment", names or None)
        if not has_kl(self.model) and (given := self.kl_settings()):
            an = "An" if self.model[0] in "aeiou" else "A"
            raise ValueError(
                f"{an} {self.model} has no KL divergence: {given[0]} is for a vae or a cvae."
            )

    def kl_settings(self):
        """The names of the KL settings that differ from their defaults."""
        kl = [field for field in dataclasses.fields(self) if field.name.startswith("kl_")]
        return [field.name for field in kl if getattr(self, field.name) != field.default]

    @property
    def warmup_epochs(self):
        """Epochs until `kl_weight` has its final value; 0 for a model without a KL term.

        Raises:
            ValueError: `epochs` is None, and follows from the images of the run.
        """
        if self.epochs is None:
            raise ValueError(
                "The number of epochs follows from the images: these settings have none."
            )
        if self.kl_schedule == "constant" or not has_kl(self.model):
            return 0
        return math.ceil(self.kl_warmup * self.epochs)

    def to_dict(self):
        """The settings as a dict of plain values, as stored in `run.json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values):
        """Make settings from a dict; other keys are ignored."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in of_a_run(values).items() if name in names})


def of_a_run(values):
    """The settings in a run.json, without the KL weight that version 0.1.0 stored for an ae as well."""
    stray = values.get("model") == "ae" and "size" not in values
    return {k: v for k, v in values.items() if k != "kl_weight"} if stray else values

"""What several commands share: options, messages, the check of the backend, and safe writing."""

import contextlib
import difflib
import functools
import importlib.util
import json
import os
import sys
from pathlib import Path

import click

from keras_ae.settings import MODELS

# What each backend needs beside Keras, and what to install for it.
BACKENDS = {
    "torch": (["torch"], "torch"),
    "jax": (["jax"], "'keras-ae[jax]'"),
    "tensorflow": (["tensorflow"], "'keras-ae[tensorflow]'"),
    "numpy": (["jax", "scipy"], "'keras-ae[jax]'"),
    "openvino": (["openvino", "scipy"], "'keras-ae[openvino]'"),
}
TRAINING = ("torch", "jax", "tensorflow")

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(file_okay=True, path_type=Path),
    help="Where TFDS datasets lie.  [default: KAE_DATA_DIR, TFDS_DATA_DIR or ~/tensorflow_datasets]",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout."
)
force_option = click.option("--force", is_flag=True, help="Replace what is there.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress and no messages.")
seed_option = click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of what is drawn.",
)


def say(message):
    """A message for the person who waits, on stderr."""
    click.echo(message, err=True)


def start_backend(training=False):
    """Check KERAS_BACKEND and import Keras, with a line for what is misspelt or not installed."""
    name = os.environ.get("KERAS_BACKEND", "torch")
    if name not in BACKENDS:
        close = difflib.get_close_matches(name, BACKENDS, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise click.UsageError(
            f"KERAS_BACKEND={name} is no backend; choose one of {', '.join(BACKENDS)}.{hint}"
        )
    if training and name not in TRAINING:
        raise click.UsageError(
            f"Keras cannot train on {name}. Set KERAS_BACKEND to one of {', '.join(TRAINING)}."
        )
    packages, extra = BACKENDS[name]
    missing = [package for package in packages if not importlib.util.find_spec(package)]
    if missing:
        raise click.ClickException(
            f"KERAS_BACKEND={name} needs {' and '.join(missing)}: pip install {extra}"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # tensorflow's chatter about its build
    import keras  # noqa: F401


@contextlib.contextmanager
def usage_errors():
    """ValueErrors of the library are wrong usage: one line, exit 2."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def load(model):
    """Find and load MODEL, and say which file was taken. Returns (model, checkpoint)."""
    path = Path(model)
    if model not in MODELS and not path.exists() and path.suffix != ".keras" and path.name == model:
        raise click.UsageError(
            f"MODEL must be {', '.join(MODELS)}, a run folder or a .keras file; got {model!r}."
        )
    start_backend()
    from keras_ae import checkpoints

    found = checkpoints.find_checkpoint(model)
    say(f"using {found.path} ({found.origin})")
    return checkpoints.load_model(found.path), found


def check_free(path, force):
    """Refuse to overwrite a file unasked, before the work that would be lost."""
    path = Path(path)
    if path.is_dir():
        raise click.ClickException(f"{path} is a folder; give a file.")
    if path.exists() and not force:
        raise click.ClickException(f"{path} exists; --force replaces it.")


def write(path, save):
    """Write a file whole, or say why not: `save` is given the temporary path."""
    from keras_ae import checkpoints

    try:
        with checkpoints.atomic(path) as temporary:
            save(temporary)
    except OSError as error:
        raise click.ClickException(f"Cannot write {path}: {error.strerror or error}.") from error
    say(f"wrote {path}")


def print_json(value):
    """One JSON object on stdout. What is no finite number becomes null, as JSON has no NaN."""

    def plain(v):
        if isinstance(v, dict):
            return {str(k): plain(x) for k, x in v.items()}
        if isinstance(v, (list, tuple)):
            return [plain(x) for x in v]
        if isinstance(v, float) and (v != v or v in (float("inf"), float("-inf"))):
            return None
        return v

    click.echo(json.dumps(plain(value)))


def stdout_to_stderr(function):
    """Keras prints its progress on stdout, which is for data: send it to stderr."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with contextlib.redirect_stdout(sys.stderr):
            return function(*args, **kwargs)

    return wrapped


def check_images(model, images):
    """Refuse a dataset (`keras_ae.data.ImageData`) whose images or labels the model cannot take."""
    shape = tuple(images.images.shape[1:])
    if shape != tuple(model.image_shape):
        raise click.ClickException(
            f"This model takes images of {model.image_shape}; those of {images.name} are {shape}."
        )
    if model.num_classes and images.labels is None:
        raise click.ClickException(f"This model needs labels, and {images.name} has none.")
    if model.num_classes and images.labels.max(initial=0) >= model.num_classes:
        raise click.ClickException(
            f"This model has {model.num_classes} classes; {images.name} has labels beyond that."
        )

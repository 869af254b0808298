"""What goes in and out of a command: messages, models and images that it is asked for, files that it writes."""

import contextlib
import ctypes
import difflib
import functools
import gc
import itertools
import json
import os
import shlex
import sys
import time
import warnings
from pathlib import Path

import click

from keras_ae import settings
from keras_ae.errors import need, printable

# What each backend needs beside Keras.
BACKENDS = {
    "torch": ("torch",),
    "jax": ("jax",),
    "tensorflow": ("tensorflow",),
    "numpy": ("jax", "scipy"),
    "openvino": ("openvino", "scipy"),
}
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of mallopt, in malloc.h
TRAINING = ("torch", "jax", "tensorflow")


def echo(message, nl=True, err=False):
    """Print what may hold a name or a path of anybody's making, which a terminal must not obey."""
    click.echo(printable(message, keep="\n\t"), nl=nl, err=err)


def say(message):
    """A message for the person who waits, on stderr."""
    echo(message, err=True)


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
    need(f"KERAS_BACKEND={name}", *BACKENDS[name])
    if "keras" not in sys.modules:
        # What an import makes stays: looking for garbage in it would take 0.4 of 2.8 s, and as much again
        # in what is done then.
        enabled = gc.isenabled()
        gc.disable()
        try:
            import keras  # noqa: F401

            gc.freeze()
        finally:
            if enabled:
                gc.enable()


@functools.cache
def keep_memory():
    """Have glibc keep freed memory for the next step.

    By default it gives large arrays back to the system at once, which clears each page anew when the next
    step asks for it: 110 of 200 ms of a step of the default CVAE on tensorflow, 20 of 265 ms on jax, 1.7 of
    14 ms of the mlp on torch. The setting is the whole process's, which does not shrink again but for what
    lies free above 1 GiB at the end of its heap. Does nothing with other C libraries.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(TRIM_THRESHOLD, 1 << 30)
        mallopt(MMAP_MAX, 0)


def check_clock():
    """Refuse to train or export for nothing: a zip, which a model file is, knows these years only."""
    year = time.localtime().tm_year
    if not 1980 <= year <= 2107:
        raise click.ClickException(
            f"The clock of this machine says {year}, and model files know the years 1980 to 2107: set it."
        )


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
    if not path.exists() and path.suffix != ".keras" and path.name == model:
        known = settings.checkpoint_names("checkpoints")
        if model not in known and not Path("checkpoints", model).is_dir():
            raise click.UsageError(
                f"MODEL must be {', '.join(known)}, a run folder or a .keras file; got {model!r}."
            )
    start_backend()
    from keras_ae.checkpoints import find_checkpoint, load_model

    found = find_checkpoint(model)
    say(f"using {found.path}{whence(found, model)}")
    trusted = bool(click.get_current_context().find_root().params.get("modules"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that do not fit: the error says it
        return load_model(found.path, trusted), found


def whence(found, name):
    """Where a checkpoint that was asked for by its name comes from, and where the other one of that name is."""
    if found.origin == "path":
        return ""
    other = settings.released(name)
    if found.origin != "trained here" or not (other / "model.keras").is_file():
        return f" ({found.origin})"
    here = Path.cwd()
    other = other.relative_to(here) if other.is_relative_to(here) else other
    return f" ({found.origin}; the released weights are {other})"


def tell_prior(network, checkpoint):
    """Say that what is drawn next comes from N(0, I), where no prior was fitted."""
    from keras_ae.priors import StandardNormal

    if type(getattr(network, "prior", None)) is StandardNormal:
        why = " yet: the run is not finished" if checkpoint.run.get("finished") is False else ""
        say(f"no prior was fitted to this model{why}; latents are drawn from N(0, I)")


def hint(*arguments):
    """A command to be typed next, as a shell takes it, with what this one was told for all commands."""
    modules = click.get_current_context().find_root().params.get("modules") or ()
    imports = [part for module in modules for part in ("--import", module)]
    return shlex.join(["kae", *imports, *map(str, arguments)])


def elsewhere(data_dir):
    """The option that has the next command find a dataset where this one did."""
    return ["--data-dir", data_dir] if data_dir else []


def check_free(path, force):
    """Refuse to overwrite a file unasked, before the work that would be lost."""
    path = Path(path)
    if path.is_dir():
        raise click.ClickException(f"{path} is a folder; give a file.")
    if path.exists() and not force:
        raise click.ClickException(f"{path} exists; --force replaces it.")


def target_of(out, default, suffixes, force):
    """The file to write: `out`, checked; else the default name, or with -2, -3, … where that is taken."""
    if out is None:
        return Path(default) if force else free_name(Path(default))
    if out.suffix not in suffixes:
        raise click.UsageError(f"--out must end in {' or '.join(suffixes)}; got {out}.")
    check_free(out, force)
    return out


def free_name(path):
    """A path, or the first of path-2, path-3, … at which nothing is."""
    candidates = (path.with_stem(f"{path.stem}-{i}") for i in itertools.count(2))
    return path if not path.exists() else next(p for p in candidates if not p.exists())


def stem_of(model):
    """What a default name begins with: the name of a run folder or of a model file."""
    path = Path(model)
    if path.is_dir():
        return path.resolve().name
    return path.stem if path.suffix == ".keras" else path.name


def save_images(target, images, picture):
    """Write .npy as uint8 (N, H, W, C), anything else as a picture, which `picture` makes."""
    import numpy as np

    from keras_ae.pictures import to_uint8

    if target.suffix == ".npy":
        write(target, lambda path: np.save(path, to_uint8(images)))
    else:
        write(target, picture().save)


def write(path, save, echoed=True):
    """Write a file whole, or say why not: `save` is given the temporary path.

    Where the command goes on to echo the path on stdout, a terminal is not told of it twice.
    """
    from keras_ae.files import atomic

    try:
        with atomic(path) as temporary:
            save(temporary)
    except OSError as error:
        raise click.ClickException(f"Cannot write {path}: {error.strerror or error}.") from error
    if not (echoed and sys.stdout.isatty()):
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

    echo(json.dumps(plain(value)))


@contextlib.contextmanager
def progress(what, total):
    """A function to be told how many more are done: a bar for who watches, else a line every 10 s."""
    if sys.stderr.isatty():
        with click.progressbar(length=total, label=what, file=sys.stderr) as bar:
            yield bar.update
        return
    done, said = 0, time.monotonic()

    def advance(count):
        nonlocal done, said
        done += count
        if time.monotonic() - said >= 10 and done < total:
            say(f"{what}: {done:,} of {total:,}")
            said = time.monotonic()

    yield advance


def stdout_to_stderr(function):
    """Keras prints its progress on stdout, which is for data: send it to stderr."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with contextlib.redirect_stdout(sys.stderr):
            return function(*args, **kwargs)

    return wrapped


def class_index(network, label):
    """The class that a label names, by its number or by its name."""
    for asked, names in (
        (label, network.names),
        (label.lower(), [name.lower() for name in network.names]),  # "a" may not be "A"
    ):
        if asked in names:
            return names.index(asked)
    if label.isdecimal() and int(label) < network.num_classes:
        return int(label)
    numbers = [str(y) for y in range(network.num_classes)]
    named = f" ({', '.join(network.names)})" if list(network.names) != numbers else ""
    raise click.UsageError(f"LABEL must be 0 to {network.num_classes - 1}{named}; got {label!r}.")


def names_of(images):
    """The class name of each image of an `ImageData`, None where there are no classes."""
    if images.labels is None:
        return None
    return [images.class_names[label] for label in images.labels]


def find_files(files):
    """Image files, and those in folders, in order; says how many others lie there."""
    from keras_ae import data

    found, others = data.find_files(files)
    if others:
        say(f"left out {others:,} files whose names are no image's")
    return found


def classes_of(network, files, labels):
    """The class of each image file for a CVAE, an index; None for other models.

    It is that of --label, given once or for each file; without it, that of the folder which the file is in.
    """
    if not network.num_classes:
        if labels:
            raise click.UsageError("This model has no classes: leave --label out.")
        return None
    folders = [Path(path).absolute().parent.name for path in files]
    if not labels and set(folders) <= set(network.names):
        return [network.names.index(folder) for folder in folders]
    if len(labels) not in (1, len(files)):
        raise click.UsageError(
            f"A cvae needs the class of each image: give --label once for all, or {len(files)} times, or "
            f"files in folders called as the classes; got {len(labels)}."
        )
    classes = [class_index(network, label) for label in labels]
    return classes * len(files) if len(classes) == 1 else classes


def load_files(network, files, labels, crop, invert):
    """Image files as an `ImageData` that the model can take, with their labels for a CVAE."""
    return read_files(network, files, classes_of(network, files, labels), crop, invert)


def read_files(network, files, classes, crop, invert):
    """As `load_files`, of files whose classes are known."""
    import numpy as np

    from keras_ae import data

    return data.ImageData(
        "files",
        "",
        "",
        data.read_files(files, network.image_shape, crop, invert, network.preparation),
        np.array(classes, "int64") if network.num_classes else None,
        network.names if network.num_classes else None,
    )


def dataset_of(checkpoint, data_dir):
    """The name of the dataset that a model was trained on, where it is prepared here.

    A run may be anybody's: no folder that it names is read unasked, and nothing is downloaded.
    """
    from keras_ae import data

    name = checkpoint.settings.get("dataset", "mnist")
    if name != "mnist" and not data.is_prepared(name, data_dir):
        where = "a folder" if "/" in name and Path(name).is_dir() else "not prepared here"
        raise click.UsageError(
            f"The run names {name} as its dataset, which is {where}: say --dataset {name}, or its folder, if you "
            "want it."
        )
    return name


def load_test(network, checkpoint, dataset, data_dir, limit=None):
    """The test images of a dataset, of the model's own by default, as an `ImageData`."""
    from keras_ae import data

    dataset = dataset or dataset_of(checkpoint, data_dir)
    _, test = data.load_splits(dataset, data_dir=data_dir, limit=limit, progress=say)
    network.check_data(test)
    return test

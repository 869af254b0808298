"""Input and output of the commands: messages, models and images that they load, files that they write."""

import contextlib
import ctypes
import difflib
import functools
import gc
import itertools
import json
import math
import os
import shlex
import sys
import time
import traceback
import warnings
from pathlib import Path

import click

from kae import lean
from keras_ae import settings
from keras_ae.errors import need, printable

# The packages that each backend needs besides Keras.
BACKENDS = {
    "torch": ("torch",),
    "jax": ("jax",),
    "tensorflow": ("tensorflow",),
    "numpy": ("jax", "scipy"),
    "openvino": ("openvino", "scipy"),
}
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # parameters of mallopt, from malloc.h
TRAINING = ("torch", "jax", "tensorflow")


def echo(message, nl=True, err=False):
    """Print a message. Names and paths in it may come from anybody, so control characters are escaped."""
    click.echo(printable(message, keep="\n\t"), nl=nl, err=err)


def echo_rows(text):
    """Print rows of a csv on stdout, as a file would hold them; for a terminal, they are escaped."""
    if sys.stdout.isatty():
        echo(text, nl=False)
    else:
        click.echo(text.encode("utf-8", "backslashreplace"), nl=False)


class Rows:
    """A file for `csv.writer` that ends rows in LF. The writer itself would then leave a carriage return unquoted."""

    def __init__(self, file):
        self.file = file

    def write(self, row):
        self.file.write(row.removesuffix("\r\n") + "\n")


def say(message):
    """Print a message for the user on stderr."""
    echo(message, err=True)


def start_backend(training=False, whole=False):
    """Check KERAS_BACKEND and import Keras; explain in one line if it is misspelt or not installed.

    Without `whole`, it is without what no command uses of it, see `kae.lean`.
    """
    name = os.environ.get("KERAS_BACKEND", "torch")
    if name not in BACKENDS:
        raise click.UsageError(
            f"KERAS_BACKEND={name} is no backend; choose one of {', '.join(BACKENDS)}.{meant(name, BACKENDS)}"
        )
    if training and name not in TRAINING:
        raise click.UsageError(
            f"Keras cannot train on {name}. Set KERAS_BACKEND to one of {', '.join(TRAINING)}."
        )
    need(f"KERAS_BACKEND={name}", *BACKENDS[name])
    if "keras" not in sys.modules:
        if whole:
            from keras_ae import pictures

            pictures.check_matplotlibrc()
        # The objects of an import are never garbage. To search them for garbage would take 0.4 of 2.8 s,
        # and as much again later.
        enabled = gc.isenabled()
        gc.disable()
        if name == "jax":  # on a GPU, one seed gives one result; on a CPU it always does
            flags = os.environ.get("XLA_FLAGS", "").strip()
            if not flags or flags.startswith("-"):  # else it is the name of a file of flags
                os.environ["XLA_FLAGS"] = f"--xla_gpu_deterministic_ops=true {flags}".strip()
        try:
            with contextlib.nullcontext() if whole else lean.imports(needed=BACKENDS[name]):
                import keras

            # keras.json is not asked: Keras writes it by itself, and models are made for these two.
            keras.config.set_floatx("float32")
            keras.config.set_image_data_format("channels_last")
            # Of and to the device that the environment asks for: torch's "meta" has no numbers.
            keras.ops.convert_to_numpy(keras.ops.zeros(1))
            if name == "jax":
                # Keras does not keep the strict rules that JAX's variables may ask for.
                import jax

                jax.config.update("jax_numpy_dtype_promotion", "standard")
                jax.config.update("jax_numpy_rank_promotion", "allow")
            gc.freeze()
        except ModuleNotFoundError:
            raise
        except Exception as error:  # a broken keras.json, or a device that is not there
            why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            look = (
                "look at its settings in ~/.keras/keras.json and at the variables of the environment that choose a "
                "device"
            )
            # Packages that Keras imports import matplotlib, which reads a matplotlibrc in the working folder.
            frames = traceback.extract_tb(error.__traceback__)
            if any("matplotlib" in Path(frame.filename).parts for frame in frames):
                look = "look at the matplotlibrc in this folder, and at MPLBACKEND"
            raise click.ClickException(f"Keras cannot start on {name} ({why}): {look}.") from error
        finally:
            if enabled:
                gc.enable()


@functools.cache
def keep_memory():
    """Make glibc keep freed memory for the next step.

    By default, glibc returns the memory of large arrays to the system at once, and the system clears each
    page again for the next step. That takes 110 of 200 ms of a step of the default CVAE on tensorflow, 20 of
    265 ms on jax, and 1.7 of 14 ms of the mlp on torch. The setting is for the whole process. It then only
    returns memory if more than 1 GiB is free at the end of its heap. Does nothing with other C libraries.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(TRIM_THRESHOLD, 1 << 30)
        mallopt(MMAP_MAX, 0)


def check_clock():
    """Refuse to train or export in a year that a model file, which is a zip file, cannot store."""
    year = time.localtime().tm_year
    if not 1980 <= year <= 2107:
        raise click.ClickException(
            f"The clock of this machine says {year}, and model files know the years 1980 to 2107: set it."
        )


@contextlib.contextmanager
def usage_errors():
    """Turn ValueErrors of the library into usage errors: one line, exit code 2."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def check_name(model, what="MODEL"):
    """Refuse a MODEL that is neither a path nor a known name, before the imports that take seconds."""
    path = Path(model)
    if not model or not path.exists() and path.suffix != ".keras" and path.name == model:
        known = settings.checkpoint_names("checkpoints")
        if not model or model not in known and not Path("checkpoints", model).is_dir():
            raise click.UsageError(
                f"{what} must be {', '.join(known)}, a run folder or a .keras file; got {model!r}.{meant(model, known)}"
            )


def meant(name, names):
    """Ask whether the nearest of the names was meant; "" if none is near."""
    close = difflib.get_close_matches(name, names, 1)
    return f" Did you mean {close[0]}?" if close else ""


def load(model):
    """Find and load MODEL, and print which file is used. Returns (model, checkpoint)."""
    check_name(model)
    start_backend()
    from keras_ae.checkpoints import find_checkpoint, load_model

    found = find_checkpoint(model)
    say_used(found, model)
    trusted = bool(click.get_current_context().find_root().params.get("modules"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # if weights do not fit, the error already says so
        return load_model(found.path, trusted), found


def say_used(found, name):
    """Print which file is used; of one given by name also where it comes from, and where another of that name is."""
    whence = f" ({found.origin})"
    other = settings.released(name)
    if found.origin == "path":
        whence = ""
    elif found.origin == "trained here" and (other / "model.keras").is_file():
        here = Path.cwd()
        other = other.relative_to(here) if other.is_relative_to(here) else other
        whence = f" ({found.origin}; the released weights are {other})"
    say(f"using {printable(found.path)}{whence}")


def tell_prior(network, checkpoint):
    """If no prior was fitted, print that latents are drawn from N(0, I), or perhaps from that of the run's start."""
    from keras_ae.priors import StandardNormal

    unfinished = checkpoint.run.get("finished") is False
    if type(getattr(network, "prior", None)) is StandardNormal:
        why = " yet: the run is not finished" if unfinished else ""
        say(f"no prior was fitted to this model{why}; latents are drawn from N(0, I)")
    elif unfinished and checkpoint.run.get("from") and hasattr(network, "prior"):
        say("note: the run is not finished: its prior may be that of the model it started from")


def hint(*arguments):
    """A command line for the user to type next, quoted for a shell, with the --import of this command."""
    modules = click.get_current_context().find_root().params.get("modules") or ()
    imports = [part for module in modules for part in ("--import", module)]
    return shlex.join(["kae", *imports, *map(str, arguments)])


def elsewhere(data_dir):
    """The option that lets the next command find a dataset in the same directory as this command."""
    return ["--data-dir", data_dir] if data_dir else []


def check_free(path, force):
    """Refuse to overwrite a file without --force, before any work is done that would be lost."""
    path = Path(path)
    if path.is_dir():
        raise click.ClickException(f"{path} is a folder; give a file.")
    if path.exists() and not path.is_file():
        raise click.ClickException(f"{path} is no regular file; give another.")
    if os.path.lexists(path) and not force:  # also a link to nothing
        raise click.ClickException(f"{path} exists; --force replaces it.")


def target_of(out, default, suffixes, force):
    """The file to write: `out`, checked; else the default name, with -2, -3, … if that name is taken."""
    if out is None:
        return Path(default) if force else free_name(Path(default))
    if out.suffix not in suffixes:
        raise click.UsageError(f"--out must end in {' or '.join(suffixes)}; got {out}.")
    check_free(out, force)
    return out


def check_no_input(files, *outputs):
    """Refuse to write over an image file that is read."""
    for output in filter(Path.exists, outputs):
        if any(file.exists() and output.samefile(file) for file in files):
            raise click.UsageError(f"{output} is one of the files to read: --out writes elsewhere.")


def free_name(path):
    """A path, or the first of path-2, path-3, … that does not exist."""
    candidates = (path.with_stem(f"{path.stem}-{i}") for i in itertools.count(2))
    return next(p for p in itertools.chain([path], candidates) if not os.path.lexists(p))


def stem_of(model):
    """The beginning of a default name: the name of a run folder or of a model file."""
    path = Path(model)
    if path.is_dir():
        return os.path.basename(os.path.realpath(path)) or "model"  # of the folder /
    return path.stem if path.suffix == ".keras" else path.name


def check_number(network, n, target):
    """Refuse more images than memory holds, before any is made; an .npy file needs no picture of them."""
    from keras_ae.inference import check_memory
    from keras_ae.pictures import memory_of_grid

    images = 4 * n * (math.prod(network.image_shape) + network.latent_dim)
    picture = 0 if target.suffix == ".npy" else memory_of_grid(n, network.image_shape)
    check_memory(images + picture, f"{n:,} images")


def save_images(target, images, picture, force):
    """Write images: .npy as uint8 (N, H, W, C), any other file as the picture that `picture` makes.

    Returns the path, see `write`.
    """
    import numpy as np

    from keras_ae.pictures import to_uint8

    if target.suffix == ".npy":
        return write(target, lambda path: np.save(path, to_uint8(images)), force)
    return write(target, picture().save, force)


def write(path, save, force, echoed=True, quiet=False):
    """Write a file completely, or explain why that fails. `save` writes to a temporary path.

    Returns the path. Without `force` it is a free name if another command has taken this one by now.

    If the command is `quiet`, or later prints the path on stdout (`echoed`) and that is a terminal, no message
    is printed here.
    """
    from keras_ae.files import atomic, sweep

    try:
        sweep(path.parent)
        try:
            with atomic(path, force) as temporary:
                save(temporary)
        except FileExistsError:
            if not path.is_file():
                raise
            return write(free_name(path), save, force, echoed, quiet)
    except OSError as error:
        raise click.ClickException(f"Cannot write {path}: {error.strerror or error}.") from error
    if not quiet and not (echoed and sys.stdout.isatty()):
        say(f"wrote {printable(path)}")
    return path


def print_json(value):
    """Print one JSON object on stdout. NaN and infinity become null, because JSON has neither."""

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
    """Yield a function to call with how many more are done. It shows a bar in a terminal, else prints a
    line every 10 s."""
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
    """Wrap a function so that its stdout, such as Keras' progress, goes to stderr; stdout is for data."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with contextlib.redirect_stdout(sys.stderr):
            return function(*args, **kwargs)

    return wrapped


def whole_number(text):
    """The number that a text of decimal digits says; infinity for any other text, and for more digits than
    Python reads."""
    try:
        return int(text) if text.isdecimal() else math.inf
    except ValueError:
        return math.inf


def class_index(network, label):
    """The index of the class of a model that a label gives by number or by name."""
    if (found := find_class(network.names, label)) is not None:
        return found
    allowed = f"0 to {network.num_classes - 1}"
    if others_by_number(network.names):
        allowed = f"one of {', '.join(network.names)}"
    elif list(network.names) != list(map(str, range(network.num_classes))):
        allowed += f" ({', '.join(network.names)})"
    raise click.UsageError(f"LABEL must be {allowed}; got {label!r}.")


def find_class(names, label):
    """The index of the class that a label gives by number or by name, among all names; None if there is none.

    If the names are other whole numbers, the label is a name: of the classes 1, 2 and 3, "1" is the first.
    """
    for asked, called in (
        (label, list(names)),
        # Only if no exact name matches.
        (label.lower(), [name.lower() for name in names]),
    ):
        if asked in called:
            return called.index(asked)
    number = whole_number(label)
    if others_by_number(names):  # 00, 01 and 02 may be given as 0, 1 and 2
        return next((i for i, name in enumerate(names) if whole_number(name) == number), None)
    return number if number < len(names) else None


def others_by_number(names):
    """Whether all classes are called by whole numbers, but not by those that they have: 1, 2, 3."""
    numbers = all(name.isdecimal() for name in names)
    return numbers and list(names) != list(map(str, range(len(names))))


def names_of(images):
    """The class name of each image of an `ImageData`; None if it has no classes."""
    if images.labels is None:
        return None
    return [images.class_names[label] for label in images.labels]


def find_files(files):
    """Find image files, also in folders, in order; print how many other files the folders hold."""
    from keras_ae import data

    found, others = data.find_files(files)
    if others:
        say(f"left out, without the suffix of an image: {others:,} of the files")
    return found


def check_file_options(labels, crop, invert):
    """Refuse the options of image files where there are none, instead of leaving them without effect."""
    for option, given in (("--label", labels), ("--crop", crop), ("--invert", invert)):
        if given:
            raise click.UsageError(f"{option} is for image files, and none is given.")


def check_test_options(*options):
    """Refuse the options of test images, pairs of (name, value), where files are given in their place."""
    for option, given in options:
        if given:
            raise click.UsageError(f"{option} is for test images: leave it out, or the files.")


def classes_of(network, files, labels):
    """The class index of each image file for a CVAE; None for other models.

    --label gives it once for all files, or once for each. Without --label, a file's folder gives it.
    """
    if not network.num_classes:
        if labels:
            raise click.UsageError("This model has no classes: leave --label out.")
        return None
    folders = [Path(path).absolute().parent.name for path in files]
    if not labels and set(folders) <= set(network.names):
        return [network.names.index(folder) for folder in folders]
    if len(labels) not in (1, len(files)):
        each = f" for all, or {len(files)} times" if len(files) > 1 else ""
        raise click.UsageError(
            f"A cvae needs the class of each image: give --label once{each}, or "
            f"files in folders called as the classes; got {len(labels)}."
        )
    classes = [class_index(network, label) for label in labels]
    return classes * len(files) if len(classes) == 1 else classes


def load_files(network, files, labels, crop, invert):
    """Load image files as an `ImageData` that the model can take, for a CVAE with their labels."""
    return read_files(network, files, classes_of(network, files, labels), crop, invert)


def read_files(network, files, classes, crop, invert):
    """Do the same as `load_files`, for files whose class indices are known."""
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
    """The name of the dataset that a model was trained on, if it is prepared on this machine.

    A run may come from anybody: a folder that it names is not read unless the user asks for it, and
    nothing is downloaded.
    """
    if "dataset" not in checkpoint.settings:
        say(
            f"no run says what {checkpoint.path.name} was trained on: mnist is taken; --dataset names another"
        )
    return dataset_named(checkpoint.settings.get("dataset", "mnist"), data_dir)


def has_dataset(checkpoint, data_dir):
    """Whether a run names the dataset of a model, and it is prepared on this machine."""
    from keras_ae import data

    name = checkpoint.settings.get("dataset")
    return name is not None and (name == "mnist" or data.is_prepared(name, data_dir))


def dataset_named(name, data_dir):
    """The name of a dataset that a run names: see `dataset_of`."""
    from keras_ae import data

    if name != "mnist" and not data.is_prepared(name, data_dir):
        if name == "arrays":
            raise click.UsageError(
                "The run was trained on arrays, which are not kept: say --dataset, a dataset of such images."
            )
        where = "a folder" if os.path.isabs(name) or Path(name).is_dir() else "not prepared here"
        raise click.UsageError(
            f"The run names {name} as its dataset, which is {where}: say --dataset {shlex.quote(name)}, or its folder, if you "
            "want it, its data directory (--data-dir, KAE_DATA_DIR) if it is in another, or name another dataset of such images."
        )
    return name


def load_splits(network, checkpoint, dataset, data_dir, limit=None):
    """Load the training and test images of a dataset, by default the model's own: two `ImageData`."""
    from keras_ae import data

    dataset = dataset or dataset_of(checkpoint, data_dir)
    train, test = data.load_splits(dataset, data_dir=data_dir, progress=say)
    tell_changes(checkpoint, train, test)
    if limit is not None:
        train, test = train.select(slice(limit)), test.select(slice(limit))
    network.check_data(test)
    if network.num_classes and test.class_names and network.names != tuple(test.class_names):
        theirs, ours = map(first_few, (test.class_names, network.names))
        say(
            f"note: the classes of {test.name} are {theirs}, those of the model {ours}; they go by their numbers"
        )
    return train, test


def tell_changes(checkpoint, train, test):
    """Print that a dataset of the name of the model's own is another one, by its version or its images."""
    from keras_ae.provenance import data_facts

    before = checkpoint.run.get("data", {})
    if before.get("name") != train.name:
        return
    if before.get("version") not in (None, train.version):
        say(
            f"note: {train.name} is of version {train.version} now; the model was trained on {before['version']}"
        )
        return
    # Of a run with a limit, what it noted is of its first images.
    if checkpoint.settings.get("limit") is None and any(
        before.get(key) not in (None, value) for key, value in data_facts(train, test).items()
    ):
        say(
            f"note: the images of {train.name} {train.version} are not those that the model was trained on"
        )


def first_few(names, most=5):
    """The first names of a list, for a message."""
    return ", ".join(map(printable, names[:most])) + (" …" if len(names) > most else "")


def load_test(*args, **kwargs):
    """The test images alone: see `load_splits`."""
    return load_splits(*args, **kwargs)[1]

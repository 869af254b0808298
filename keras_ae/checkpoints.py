"""Files of a run: only this module knows their layout. Every file is written whole or not at all.

checkpoints/cvae/
  model.keras        architecture, weights and fitted prior, without the optimizer
  run.json           settings, data, versions, final figures
  history.csv        one row per epoch
  epochs/001.png     pictures, one per epoch
  tensorboard/       with --tensorboard: the event files that TensorBoard reads
  backup/            the state that --resume needs; removed when the run is finished:
    state.npz          weights, optimizer and progress
    dataset            the folder of the dataset, if it has no name in the data directory
    start.keras        the model that a run with --from started from
  .next/             the files of a new run that will replace this one after its first epoch
"""

import contextlib
import csv
import dataclasses
import errno
import io
import json
import math
import os
import re
import shlex
import tempfile
import time
import zipfile
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

import keras
import numpy as np

from keras_ae import model_file
from keras_ae.backbones import zero_weights
from keras_ae.data.disk import VERSION, is_damage
from keras_ae.data.images import opened
from keras_ae.errors import UserError
from keras_ae.files import (
    DIRECTORY,
    atomic,
    keep_mode,
    open_file,
    open_zip,
    read_json,
    read_text,
    sweep,
    write_bytes,
)
from keras_ae.inference import check_memory
from keras_ae.settings import Settings, checkpoint_names, models, released, unknown_name

ROOT = "checkpoints"  # the folder of a user's runs
MNIST = Settings("vae").dataset
TENSORBOARD = "tensorboard"
NEXT = ".next"
ALWAYS = ("model.keras", "run.json", "history.csv")  # files of every run
START = "backup/start.keras"  # the model that a run with --from started from
BACKUP = ("backup/state.npz", "backup/dataset", START)  # files of an unfinished run
KINDS = {  # types of the entries of run.json
    "finished": bool,
    "settings": dict,
    "own": dict,
    "data": dict,
    "environment": dict,
    "earlier_environments": list,
    "from": dict,
    "prior": dict,
    "final": dict,
}
DEPTH = 100  # most levels of lists and dicts in run.json
FORMAT = 1  # of run.json and of the backup; a newer one is refused
MEMBERS = 8  # most arrays in a backup for each of the model's; Adam has three, with a running average four
ENTRY = 200  # most bytes of an entry in the directory of its zip


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or not from keras-ae."""


def save_model(model, path):
    """Write a model's architecture, weights and prior, without its optimizer, to a .keras file.

    The file holds a float32 model, whatever precision this one computes in.

    Raises:
        CheckpointError: a user's encoder or decoder cannot be rebuilt from its config, or the clock shows a
            year that the file cannot store.
    """
    check_clock()
    # Save a copy that was never compiled: Keras has no other way to leave the optimizer out.
    bare = float32_copy(model)
    with atomic(path) as temporary:
        bare.save(temporary)


def float32_copy(model):
    """A float32 copy of a model with its weights and prior, which was never compiled.

    Raises:
        CheckpointError: a class, or an encoder or decoder, of the user's own cannot be rebuilt from its config, or
            has other weights then.
    """
    try:
        with zero_weights():
            bare = type(model).from_config({**model.get_config(), "dtype": "float32"})
    except (TypeError, ValueError) as error:
        if not model.custom_networks:
            raise CheckpointError(
                f"A {type(model).__name__} cannot be made again from its config ({_reason(error)[:200]}): a class of your "
                "own needs a get_config with all its arguments, and @keras.saving.register_keras_serializable()."
            ) from error
        why = str(error).rpartition("Exception encountered: ")[2].partition(". ")[0]
        raise CheckpointError(
            f"The {' and the '.join(model.custom_networks)} of your own cannot be saved ({why}): it must have a "
            "get_config, and a class of your own @keras.saving.register_keras_serializable()."
        ) from error
    try:
        bare.set_weights(model.get_weights())
    except ValueError as error:
        raise CheckpointError(
            f"A {type(model).__name__} made again from its config has other weights: save and load it by its own `save` "
            "and keras_ae.load_model first, which merges LoRA; an encoder and a decoder share no layer."
        ) from error
    if hasattr(model, "set_prior"):
        bare.set_prior(model.prior)
    return bare


def check_clock():
    """Check that the clock shows a year that a zip file, and so a model file, can store.

    Raises:
        CheckpointError: the year is before 1980 or after 2107.
    """
    year = time.localtime().tm_year
    if not 1980 <= year <= 2107:
        raise CheckpointError(
            f"The clock of this machine says {year}, and model files know the years 1980 to 2107: set it."
        )


def load_model(path, trusted=False):
    """Load a model on the running backend, without its optimizer.

    No code from the file is run, and everything in it is checked: see `keras_ae.model_file`.

    Args:
        path: a .keras file, a run folder, or a name, see `find_checkpoint`.
        trusted: True if you trust the maker of the file. Then Keras, in its safe mode, may rebuild the
            maker's own networks in it, whose sizes are not checked.

    Raises:
        CheckpointError: the file is missing, damaged, or not from keras-ae.
    """
    if Path(path).suffix == ".keras" and not Path(path).is_file():
        raise CheckpointError(f"There is no file {path}.")
    path = find_checkpoint(path).path
    try:
        return _load(path, trusted)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be loaded: {_reason(error)}.") from error


def _load(path, trusted):
    cls, config, weights = model_file.read(path, trusted)
    with zero_weights(), tempfile.TemporaryDirectory() as folder:
        model = cls.from_config(config)
        # Load the bytes that were checked, even if the file has been changed since.
        copy = Path(folder, "model.weights.h5")
        copy.write_bytes(weights)
        model.load_weights(copy)
    check_weights(model)
    return model


def _reason(error):
    """The first line of an error, without a full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def check_kept(model):
    """Check that a model of the user's own can be read again from the file that a run would keep.

    Raises:
        CheckpointError: it cannot be saved or loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        try:
            save_model(model, path)
            _load(path, trusted=True)
        except (OSError, MemoryError, CheckpointError):
            raise
        except Exception as error:
            why = _reason(error).partition(". Full object config")[0]
            raise CheckpointError(
                f"The model cannot be kept in a file: {why}. (A class or function of your own in it needs "
                "@keras.saving.register_keras_serializable(), a class a get_config with all its arguments.)"
            ) from error


def check_weights(model):
    """Check that the weights and the prior are finite, and the weight of the KL term and the likelihood's scale not negative.

    Raises:
        ValueError: some numbers are not.
    """
    for variable, array in zip(model.weights, model.get_weights(), strict=True):
        if not np.isfinite(array).all():
            raise ValueError(f"its {variable.path} has what is no finite number")
        if variable.name in ("kl_weight", "likelihood_scale") and (array < 0).any():
            raise ValueError(f"its {variable.path} is negative")
    if hasattr(model, "prior"):
        model.prior.check()


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model file and the contents of the run.json beside it.

    Attributes:
        path: the .keras file.
        run: the contents of run.json, or {} without one.
        origin: "path", "trained here" or "released with keras-ae".
    """

    path: Path
    run: dict
    origin: str

    @property
    def of_a_run(self):
        """Whether it is the model of the run in its folder, and not another file there."""
        return self.path.name == "model.keras"

    def history(self):
        """The rows of the run's history, see `read_history`; [] if the file is of no run."""
        return read_history(self.path.parent) if self.of_a_run else []

    def epochs(self):
        """The pictures of the run's epochs, see `read_epochs`; [] if the file is of no run."""
        return read_epochs(self.path.parent) if self.of_a_run else []

    @property
    def settings(self):
        """The settings of the run, or {} if they are not known."""
        return self.run.get("settings", {})

    @property
    def described(self):
        """The settings for people to read: with the user's own model and reconstruction by their names."""
        return {**self.settings, **self.run.get("own", {})}

    @property
    def name(self):
        """The name of the run's folder, or else that of the file; for pages that users send to others."""
        if self.run and self.path.name == "model.keras":
            return os.path.basename(os.path.realpath(self.path.parent))
        return self.path.name


def dataset_name(dataset):
    """The name of a dataset that is given by its name or by its folder."""
    if os.path.isabs(dataset) or dataset.startswith((".", "~")):
        folder = Path(dataset)  # perhaps one that is named after a version
        return folder.parent.name if VERSION.fullmatch(folder.name) else folder.name
    return dataset


def default_folder(settings, root=ROOT):
    """The default folder of a run: ROOT/vae for mnist, and for another dataset, such as emoji, ROOT/vae-emoji."""
    dataset = dataset_name(settings.dataset).partition(":")[0].replace("/", "-")
    return Path(root, settings.model if dataset == MNIST else f"{settings.model}-{dataset}")


def find_checkpoint(model, root=ROOT):
    """Find the checkpoint MODEL: try a path first, then `checkpoints/<name>/`, then the released weights.

    The names of the models, such as "vae", are never taken for a path.

    Args:
        model: "ae", "vae" or "cvae", the name of a run in `root` or of released weights, or the path of a run
            folder or a .keras file.
        root: the folder of the user's runs.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    path, origin = Path(model), "path"
    by_name = path.name == str(model) and str(model) not in ("", "..")
    try:
        path.is_dir()
    except OSError as error:  # such as too long a name
        raise CheckpointError(
            f"There is no checkpoint {str(model)[:60]} ({error.strerror})."
        ) from error
    if path.is_dir() and str(model):
        path = path / "model.keras"
    if model in models() or (by_name and not path.is_file()):
        mine, theirs = Path(root, model), released(model)
        if (mine / "model.keras").is_file():
            path, origin = mine / "model.keras", "trained here"
        elif any(
            (mine / left).is_file()
            for left in ("run.json", "history.csv", BACKUP[0], f"{NEXT}/run.json")
        ):
            run = model if model in models() else f"MODEL --out {shlex.quote(str(mine))}"
            if can_resume(mine):
                way = f"it has not ended an epoch, or is broken. Go on with it (`kae fit {run} --resume`)"
            elif is_finished(mine) is False and died_early(mine):
                way = "it was killed before it began. Give the command that began it again"
            else:
                way = "it is broken. Put that file back"
            released_ones = " for the released weights" if theirs.is_dir() else ""
            raise CheckpointError(
                f"{mine} holds a run without a model.keras: {way}, or move that folder away{released_ones}."
            )
        elif (theirs / "run.json").is_file():
            # Hidden files, as of a file manager, are no run.
            shown = not mine.is_dir() or any(name[0] != "." for name in os.listdir(mine))
            if os.path.lexists(mine) and shown:
                raise CheckpointError(f"{mine} is no run: move it away for the released weights.")
            path, origin = theirs / "model.keras", "released with keras-ae"
        elif model in models():
            raise CheckpointError(
                f"There is no checkpoint of {model} yet: train one with `kae fit {model}`."
            )
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint {path}. Give {', '.join(checkpoint_names(root))}, a run folder or a .keras file."
        )
    found = Checkpoint(path, {}, origin)
    return dataclasses.replace(found, run=read_run(path.parent)) if found.of_a_run else found


def read_run(folder):
    """The contents of a folder's run.json, or {} if there is none.

    Raises:
        CheckpointError: it is damaged or of a newer format.
    """
    path = Path(folder) / "run.json"
    try:
        run = read_json(path)
        check_depth(run)
        version = run.get("format", 0)
        if isinstance(version, int) and version <= FORMAT:
            if unknown := unknown_name(run.get("settings", {})):
                field, name = unknown
                raise CheckpointError(
                    f"{path} names the {field} {name[:40]!r}, which is not known here: import the module that "
                    "registers it, `kae --import MODULE …` on the command line."
                )
            Settings.from_dict({"model": "vae", **run.get("settings", {})})
            for key, kind in KINDS.items():
                if not isinstance(run.get(key, kind()), kind):
                    raise ValueError(f"its {key} is no {kind.__name__}")
            if not all(isinstance(name, str) for name in run.get("own", {}).values()):
                raise ValueError("what is of the user's own has no names")
            if not isinstance(run.get("environment", {}).get("versions", {}), dict):
                raise ValueError("its versions are no dict")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is damaged: {reason}") from error
    if not isinstance(version, int) or version > FORMAT:
        raise CheckpointError(
            f"{path} is of format {version}, this version reads up to {FORMAT}: upgrade keras-ae."
        )
    return run


def check_depth(value):
    """Check that lists and dicts are not nested so deeply that it takes all of Python's stack to show them.

    Raises:
        ValueError: they are.
    """
    level = [value]
    for _ in range(DEPTH):
        inner = [
            v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)
        ]
        if not (level := [v for values in inner for v in values]):
            return
    raise ValueError("nested too deeply")


def settings_of(run, folder):
    """The `Settings` in the run.json of a folder, which `read_run` has read.

    Raises:
        CheckpointError: it names no model.
    """
    if "model" not in run.get("settings", {}):
        raise CheckpointError(
            f"{Path(folder) / 'run.json'} is damaged: its settings lack the model"
        )
    return Settings.from_dict(run["settings"])


def write_run(folder, run):
    """Write a folder's run.json."""
    write_bytes(Path(folder) / "run.json", json.dumps({"format": FORMAT, **run}, indent=2) + "\n")


def write_history(folder, rows):
    """Write a folder's history.csv, one row for each dict."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(Path(folder) / "history.csv", text.getvalue())


def write_source(folder, source):
    """Store the folder of a run's dataset until the run is finished. None means that the dataset has a name."""
    path = Path(folder) / "backup" / "dataset"
    if source is None:
        path.unlink(missing_ok=True)
    else:
        write_bytes(path, os.fsencode(source))


def read_source(folder):
    """The folder that `write_source` stored, or None."""
    try:
        with open_file(Path(folder) / "backup" / "dataset") as file:
            source = os.fsdecode(file.read(4096))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{folder}/backup/dataset cannot be read: {error}") from error
    if "\0" in source:
        raise CheckpointError(f"{folder}/backup/dataset is damaged: it names no folder")
    return source or None


def read_history(folder):
    """The rows of a folder's history.csv, a dict of numbers for each epoch; [] if there is no such file.

    Raises:
        CheckpointError: it is damaged.
    """
    path = Path(folder) / "history.csv"
    try:
        file = io.StringIO(read_text(path), newline="")
        rows = []
        for texts in csv.DictReader(file):
            row = {name: float(text) for name, text in texts.items()}
            rows.append({**row, "epoch": int(row["epoch"]), "seconds": row["seconds"]})
            if rows[-1]["epoch"] != len(rows):  # at once: a small file may have millions of rows
                raise ValueError("its epochs are not 1, 2 and so on")
        return rows
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, OverflowError, csv.Error) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{path} is damaged: {why}") from error


def read_epochs(folder):
    """The pictures of a run's epochs, in order: Pillow images.

    Raises:
        DataError: a picture cannot be read.
        UserError: together they would take more memory than may be.
    """
    frames, size = [], 0
    for path in sorted(filter(_epoch_of, _entries(Path(folder) / "epochs")), key=_epoch_of):
        with opened(path) as image:
            size += image.width * image.height * len(image.getbands())
            check_memory(size, "the pictures of the epochs")
            image.load()
            frames.append(image)
    return frames


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        history: a dict for each whole epoch.
        epochs: number of whole epochs done.
        batches: number of steps done in the epoch after these.
        seconds: time that these steps took.
        metrics: running means over these steps: `model.metrics_variables` as arrays.
        ended: whether the training is over, maybe before its last epoch.
        changed: whether its end changed the weights after the last epoch, as to restore the best ones.
    """

    history: list
    epochs: int = 0
    batches: int = 0
    seconds: float = 0.0
    metrics: list = dataclasses.field(default_factory=list)
    ended: bool = False
    changed: bool = False


def write_backup(folder, model, progress):
    """Write everything that a run needs to continue from here: weights, optimizer, progress."""
    optimizer = {}
    model.optimizer.save_own_variables(optimizer)
    arrays = {f"model/{i}": w for i, w in enumerate(model.get_weights())}
    arrays |= {f"optimizer/{name}": np.asarray(value) for name, value in optimizer.items()}
    arrays |= {f"metrics/{i}": value for i, value in enumerate(progress.metrics)}
    seeds = map(keras.ops.convert_to_numpy, seeds_of(model))
    arrays |= {f"seeds/{i}": state for i, state in enumerate(seeds)}
    about = {
        "format": FORMAT,
        "optimizer": type(model.optimizer).__name__,
        "epochs_done": progress.epochs,
        "batches_done": progress.batches,
        "seconds": progress.seconds,
        "history": progress.history,
        "ended": bool(progress.ended),
        "changed": bool(progress.changed),
    }
    with atomic(Path(folder) / "backup" / "state.npz") as temporary:
        np.savez(temporary, about=json.dumps(about), **arrays)


def seeds_of(model):
    """The states of a model's random numbers: of the noise of its posterior, and of random layers such as Dropout."""
    known = {id(weight) for weight in model.weights}
    return [variable for variable in model.variables if id(variable) not in known]


def save_start(folder, model):
    """Store the model that a run starts from, for `--resume`."""
    save_model(model, Path(folder) / START)


def has_start(folder):
    """Whether the model that a run started from is there."""
    return (Path(folder) / START).is_file()


def load_start(folder, trusted=False):
    """The model that the unfinished run in a folder started from.

    Raises:
        CheckpointError: it is missing, damaged, or not from keras-ae.
    """
    return load_model(Path(folder) / START, trusted)


@contextlib.contextmanager
def _opened_backup(path, most=DIRECTORY):
    """The zip of a backup, see `open_zip`. Raises ValueError if it is compressed."""
    with open_zip(path, most) as archive:
        members = archive.infolist()
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("it is compressed, and may unpack to any size")
        yield archive


def _array_in(archive, member):
    with archive.open(member) as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError("an array is larger than the file")
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


class _Older(CheckpointError):
    """A backup lacks what this version needs."""


def read_backup(folder, model):
    """Load a run's last backup into a compiled model, and return the `Progress` of the run at that time.

    Without a backup, the run is at its start: it was killed before its first step.

    Raises:
        CheckpointError: the backup is damaged or of another model.
    """
    path = Path(folder) / "backup" / "state.npz"
    try:
        most = MEMBERS * (1 + len(model.variables))
        with _opened_backup(path, max(DIRECTORY, most * ENTRY)) as archive:
            members = archive.infolist()
            if len(members) > most:
                raise ValueError("it has more arrays than this model")
            arrays = {m.filename.removesuffix(".npy"): _array_in(archive, m) for m in members}
        about = json.loads(str(arrays["about"]))
        if about["format"] > FORMAT:
            raise ValueError(f"it is of format {about['format']}")

        def part(name):
            start = f"{name}/"
            return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}

        weights, optimizer, metrics = (part(name) for name in ("model", "optimizer", "metrics"))
        model.set_weights([weights[str(i)] for i in range(len(model.weights))])
        seeds, states = seeds_of(model), part("seeds")
        if seeds and not states:
            raise _Older(
                f"{path} was written by an earlier version of keras-ae: finish the run there, or start over with --force."
            )
        for variable, state in zip(seeds, states.values(), strict=True):
            variable.assign(state)
        model.optimizer.build(model.trainable_variables)
        # If the number of variables differs, Keras would only warn, and load nothing.
        other = len(optimizer) != len(model.optimizer.variables)
        if other or about["optimizer"] != type(model.optimizer).__name__:
            raise ValueError("it is of another optimizer")
        model.optimizer.load_own_variables(optimizer)
        counts = about["epochs_done"], about["batches_done"]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"it was made after {counts}")
        epochs = [row["epoch"] for row in about["history"]]
        if len(epochs) != counts[0] or epochs != list(range(1, counts[0] + 1)):
            raise ValueError("its history is of other epochs")
        for row in about["history"]:
            numbers = all(
                type(value) is float or type(value) is int and abs(value) < 2**63
                for value in row.values()
            )
            if (
                not numbers
                or not {"loss", "val_loss", "seconds"} <= row.keys() == about["history"][0].keys()
            ):
                raise ValueError("its history is not of figures")
        means = [np.asarray(metrics[str(i)], "float32") for i in range(len(metrics))]
        end = about.get("ended") is True, about.get("changed") is True
        return Progress(about["history"], *counts, float(about["seconds"]), means, *end)
    except FileNotFoundError:
        return Progress([])
    except Exception as error:  # NumPy, JSON and Keras may raise anything for a damaged file
        if isinstance(error, MemoryError | _Older):
            raise
        for cause in (error, error.__context__):  # zipfile says that a file it cannot read is none
            # (A zip whose numbers are damaged is read from where nothing is: EINVAL.)
            if not is_damage(cause) and cause.errno != errno.EINVAL:
                raise CheckpointError(f"{path} cannot be read: {cause.strerror}.") from error
        raise CheckpointError(f"{path} is damaged or of another model: {way_on(folder)}") from error


def way_on(folder):
    """What to do about the run in a folder that cannot be resumed."""
    over = "--force starts over."
    model = Path(folder) / "model.keras"
    if not model.is_file():
        return over
    with contextlib.suppress(CheckpointError):
        own = (read_run(folder).get("own") or {}).keys()
        trusted = ", trusted=True" if own & {"encoder", "decoder"} else ""
        if trusted or "model" in own:
            trust = "if you trust its maker, " if trusted else ""
            return (
                f"in Python, {trust}keras_ae.fit(settings, another_folder, model=keras_ae.load_model({str(model)!r}{trusted})) "
                f"goes on from its model, with the settings of its run.json, {over}"
            )
    return f"--from {shlex.quote(str(folder))} goes on from its model, {over}"


def has_backup(folder):
    """Whether the run in a folder has a backup, as it has from before its first step on."""
    return Path(folder, BACKUP[0]).exists()


def has_trained(folder):
    """Whether the run in a folder wrote a model, a history or a picture, as it does at the end of its first epoch."""
    return any(
        path.name in ("model.keras", "history.csv") or _epoch_of(path) for path in files_of(folder)
    )


def lost_backup(folder):
    """Whether the run that `resume` would continue has trained, and has no backup any more."""
    if place_of(folder) != Path(folder) or not has_trained(folder):
        return False
    return not (has_backup(folder) or unsettled(folder))


def can_resume(folder):
    """Whether there is an unfinished run in a folder, whose run.json is not damaged and whose other files are there."""
    place = place_of(folder)
    try:
        record = read_run(place)
    except CheckpointError:
        return False
    if not record or record.get("finished") or lost_backup(folder):
        return False
    started = has_start(place) or unsettled(folder)
    return record.get("from") is None or started


def died_early(folder):
    """Whether the run in a folder was killed before its first step: it may be begun anew."""
    backed = has_backup(folder) or has_backup(place_of(folder))
    return not (is_finished(folder) or backed or has_trained(folder))


class RunLock:
    """Keeps other processes from writing to a run folder, from `acquire` until the context ends.

    It is a lock of the operating system on the folder itself. It leaves no file behind, and the system
    frees it at once when its process is killed. Entering the context locks the folder if it exists. On a
    system (Windows) or a file system (some network drives) without such locks, nothing is locked.

    Raises:
        CheckpointError: another process has the lock.
    """

    def __init__(self, folder):
        self.folder, self._handle = Path(folder), None

    def __enter__(self):
        if self.folder.is_dir():
            self.acquire()
        return self

    def acquire(self):
        """Lock the folder, if it is not locked yet."""
        if fcntl is None or self._handle is not None:
            return
        self._handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.__exit__()
            raise CheckpointError(
                f"Another `kae fit` is writing to {self.folder}: wait for it, or give another --out."
            ) from error
        except OSError:  # this file system has no locks
            pass

    def __exit__(self, *error):
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def files_of(folder):
    """The files in a folder that its run wrote, judged by its run.json. Another run replaces only these.

    Links, and files in folders behind links, are left out. A damaged run.json only shows that there was a
    run; then the pictures of its epochs and its curves are left out too. One without settings, or without the word
    whether it is finished, is of another program.
    """
    folder = Path(folder)
    run, epochs, curves = folder / "run.json", 0, []
    if not run.is_file():
        return []
    # Read plainly: a run of another version, or of names that are not registered here, has epochs as well.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        record = read_json(run)
        settings = record.get("settings")
        if not isinstance(settings, dict) or type(record.get("finished")) is not bool:
            return []
        said = settings.get("epochs")
        epochs = said if type(said) is int else 0
        curves = curves_of(folder) if record.get("tensorboard") is True else []
    found = [folder / name for name in ALWAYS]
    found += [path for path in _entries(folder / "epochs") if 1 <= _epoch_of(path) <= epochs]
    found += curves
    found += [folder / name for name in BACKUP]
    return [path for path in found if path.is_file()]


def curves_of(folder):
    """The event files of TensorBoard in a run folder."""
    parts = [Path(folder, TENSORBOARD, part) for part in ("train", "validation")]
    found = [path for part in parts for path in _entries(part)]
    return [path for path in found if path.name.startswith("events.out.tfevents.")]


def strangers(folder, epochs):
    """The files in a folder that no run wrote, but that a new run of `epochs` epochs would overwrite."""
    folder = Path(folder)
    taken = [folder / name for name in (*ALWAYS, *BACKUP)]
    taken += [path for path in pictures_of(folder) if _epoch_of(path) <= epochs]
    place = folder / NEXT
    if not (folder / "run.json").is_file() and not (place / "run.json").is_file():
        taken += [*_next_files(place), place / "history.csv"]  # no run that was given up left them
    ours = set(files_of(folder))
    return [path for path in taken if os.path.lexists(path) and path not in ours]


def _entries(folder):
    """The files in a folder, sorted, without links; none if the folder is a link."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())


def _epoch_of(picture):
    """The epoch of a picture by its file name, or 0 if the file is no such picture."""
    named = re.fullmatch(r"([0-9]{3,9})\.png", picture.name)
    epoch = int(named[1]) if named else 0
    return epoch if picture.name == f"{epoch:03d}.png" else 0


def pictures_of(folder):
    """All that is called as the picture of an epoch in a run folder, also what is no file."""
    epochs = Path(folder) / "epochs"
    return sorted(filter(_epoch_of, epochs.iterdir())) if epochs.is_dir() else []


def remove(paths):
    """Remove files, and their folders if these are empty then (of backups and TensorBoard only)."""
    for path in paths:
        path.unlink(missing_ok=True)
    for folder in {
        path.parent for path in paths if path.parent.name in ("train", "validation", "backup")
    }:
        _remove_empty(folder)
        if folder.parent.name == TENSORBOARD:
            _remove_empty(folder.parent)


def _remove_empty(folder):
    with contextlib.suppress(OSError):
        folder.rmdir()


def sweep_run(folder):
    """Remove unfinished files that a killed process left in a run folder."""
    folder = Path(folder)
    for part in (
        folder,
        folder / "epochs",
        folder / "backup",
        folder / NEXT,
        folder / NEXT / "epochs",
        folder / NEXT / "backup",
    ):
        if not part.is_symlink():
            sweep(part)


def place_of(folder):
    """The folder with run.json and backup of the run that `--resume` continues: `folder`, or `.next` in it."""
    folder = Path(folder)
    return folder / NEXT if (folder / NEXT / "run.json").is_file() else folder


def take_place(folder, replaced=None):
    """Make the run in `.next`, whose first epoch is written, the run of the folder. If it is killed, `settle` ends it.

    Args:
        replaced: the files of the run before; None for those that its run.json tells, without curves.
    """
    folder = Path(folder)
    place = folder / NEXT
    if (place / "run.json").is_file():  # else the files below are on their way already
        if replaced is None:
            replaced = set(files_of(folder)) - set(curves_of(folder))
        # The old backup in any case, also of no run: `unsettled` looks whether it is gone.
        remove({*replaced, folder / BACKUP[0]} - {folder / name for name in ALWAYS})
        for name in ("model.keras", "run.json"):
            if (place / name).is_file():
                _move(place / name, folder / name)
    for path in [*_next_files(place), place / "history.csv"]:
        if path.is_file():
            _move(path, folder / path.relative_to(place))
    remove_next(folder)


def _move(path, target):
    target.parent.mkdir(exist_ok=True)
    keep_mode(target, path)
    os.replace(path, target)


def settle(folder):
    """End what a kill amid `take_place` left."""
    if unsettled(folder):
        take_place(folder)


def is_finished(folder):
    """Whether the run in a folder is finished; None if there is none, or nothing says so. Its names may be registered
    nowhere."""
    with contextlib.suppress(OSError, ValueError):
        return read_json(Path(folder) / "run.json").get("finished")
    return None


def unsettled(folder):
    """Whether a kill amid `take_place` left files in `.next`, where the history is written last, and moved last."""
    place = Path(folder) / NEXT
    if not (place / "history.csv").is_file():
        return False
    waits = (place / "run.json").is_file()
    if not waits and has_backup(place) and has_backup(folder):
        return False  # the old one's goes first: another run was put there since, as from a copy
    # A run that waits in `.next`, or was moved from there, is not finished.
    return is_finished(place if waits else folder) is False


def remove_next(folder):
    """Remove the run in `.next`, which was to replace the run of the folder."""
    place = Path(folder) / NEXT
    (place / "history.csv").unlink(missing_ok=True)
    # Before the others: from now on nobody goes on with it.
    (place / "run.json").unlink(missing_ok=True)
    remove(_next_files(place))
    _remove_empty(place / "epochs")
    _remove_empty(place)


def _next_files(place):
    """The files of a run in `.next`, but for run.json and history.csv, its backup last; some may not be there."""
    drawn = filter(_epoch_of, _entries(place / "epochs"))
    return [*drawn, *(place / name for name in ("model.keras", *BACKUP))]


def remove_last_backup(folder):
    """Remove what a kill at the very end of a run left: the backup of its last epoch. Another one stays."""
    last = False
    backup = Path(folder) / BACKUP[0]
    with contextlib.suppress(Exception), _opened_backup(backup) as archive:  # it may be damaged
        history = json.loads(str(_array_in(archive, archive.getinfo("about.npy"))))["history"]
        last = history and history == read_history(folder)
    if last:
        remove_backup(folder)


def remove_backup(folder):
    """Remove the files that only an unfinished run needs; without a state.npz, which goes last, they are not a run's."""
    if has_backup(folder):
        remove([Path(folder) / name for name in reversed(BACKUP)])

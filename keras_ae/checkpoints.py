"""Files of a run: the only module that knows their layout. Every file is written whole or not at all.

checkpoints/cvae/
  model.keras        architecture, weights and fitted prior, without the optimizer
  run.json           settings, data, versions, final figures
  history.csv        one row an epoch
  epochs/001.png     pictures, one an epoch
  tensorboard/       with --tensorboard: what it reads
  backup/state.npz   what --resume needs; removed when the run ends
  backup/dataset     the folder of the dataset, where it has no name in the data directory; the same
  backup/start.keras the model that a run with --from started from; the same
  .next/             run.json and backup/ of a run that is to replace this one, until its first epoch is there
"""

import contextlib
import csv
import dataclasses
import io
import json
import os
import re
import tempfile
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

import numpy as np

from keras_ae import model_file
from keras_ae.backbones import zero_weights
from keras_ae.data.disk import VERSION, open_file
from keras_ae.data.images import opened
from keras_ae.errors import UserError
from keras_ae.files import atomic, sweep, write_bytes
from keras_ae.settings import Settings, checkpoint_names, models, released

ROOT = "checkpoints"  # the folder that holds the runs of a user
MNIST = Settings("vae").dataset
TENSORBOARD = "tensorboard"
NEXT = ".next"
ALWAYS = ("model.keras", "run.json", "history.csv")  # files of every run
START = "backup/start.keras"  # the model that a run was given to start from
BACKUP = ("backup/state.npz", "backup/dataset", START)  # files of one that is not finished
KINDS = {  # of what run.json has
    "finished": bool,
    "settings": dict,
    "data": dict,
    "environment": dict,
    "earlier_environments": list,
    "from": dict,
    "prior": dict,
    "final": dict,
}
FORMAT = 1  # of run.json and of the backup; a reader refuses what is newer


class CheckpointError(UserError):
    """A checkpoint that is not there, not whole, or not one of ours."""


def save_model(model, path):
    """Write a model's architecture, weights and prior, without its optimizer, to a .keras file.

    The file holds a float32 model, in whatever precision this one computes.

    Raises:
        CheckpointError: for an encoder or decoder of the user's that cannot be rebuilt from its config, or a
            clock that no file can be dated by.
    """
    check_clock()
    # A copy that was never compiled: Keras has no other way to leave the optimizer out.
    try:
        with zero_weights():
            bare = type(model).from_config({**model.get_config(), "dtype": "float32"})
    except (TypeError, ValueError) as error:
        if not model.custom_networks:
            raise
        why = str(error).rpartition("Exception encountered: ")[2].partition(". ")[0]
        raise CheckpointError(
            f"The {' and the '.join(model.custom_networks)} of your own cannot be saved ({why}): it must have a "
            "get_config, and a class of your own @keras.saving.register_keras_serializable()."
        ) from error
    bare.set_weights(model.get_weights())
    if hasattr(model, "set_prior"):
        bare.set_prior(model.prior)
    with atomic(path) as temporary:
        bare.save(temporary)


def check_clock():
    """Refuse to write a zip, which a model file is, in years that it does not know.

    Raises:
        CheckpointError: the clock is before 1980 or after 2107.
    """
    year = time.localtime().tm_year
    if not 1980 <= year <= 2107:
        raise CheckpointError(
            f"The clock of this machine says {year}, and model files know the years 1980 to 2107: set it."
        )


def load_model(path, trusted=False):
    """Load a model on the running backend, without its optimizer.

    Runs no code from the file, and believes nothing in it: see `keras_ae.model_file`.

    Args:
        path: a .keras file, a run folder, or a name, see `find_checkpoint`.
        trusted: whether you trust who made the file, so that Keras, in its safe mode, may rebuild networks
            of their own in it, whose sizes are not checked.

    Raises:
        CheckpointError: if the file is not there, not whole, or not one of ours.
    """
    if Path(path).suffix == ".keras" and not Path(path).is_file():
        raise CheckpointError(f"There is no file {path}.")
    path = find_checkpoint(path).path
    try:
        cls, config, weights = model_file.read(path, trusted)
        with zero_weights(), tempfile.TemporaryDirectory() as folder:
            model = cls.from_config(config)
            # The very bytes that were checked, whatever becomes of the file meanwhile.
            copy = Path(folder, "model.weights.h5")
            copy.write_bytes(weights)
            model.load_weights(copy)
        check_finite(model)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path} cannot be loaded: {lines[0].rstrip('.')}.") from error
    return model


def check_finite(model):
    """Refuse weights, or a prior, that are no finite numbers: nothing comes of them.

    Raises:
        ValueError: some are not.
    """
    for variable, array in zip(model.weights, model.get_weights(), strict=True):
        if not np.isfinite(array).all():
            raise ValueError(f"its {variable.path} has what is no finite number")
    if hasattr(model, "prior"):
        model.prior.check()


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model file and what its run folder says of it.

    Attributes:
        path: the .keras file.
        run: the contents of run.json beside it, {} without one.
        origin: "path", "trained here" or "released with keras-ae".
    """

    path: Path
    run: dict
    origin: str

    @property
    def settings(self):
        """The settings of the run, {} where they are not known."""
        return self.run.get("settings", {})


def default_folder(settings, root=ROOT):
    """The folder of a run that nobody has named: ROOT/vae, and for another dataset than mnist ROOT/vae-emoji."""
    dataset = settings.dataset
    if os.path.isabs(dataset) or dataset.startswith(
        (".", "~")
    ):  # a folder, perhaps that of a version
        folder = Path(dataset)
        dataset = folder.parent.name if VERSION.fullmatch(folder.name) else folder.name
    dataset = dataset.partition(":")[0].replace("/", "-")
    return Path(root, settings.model if dataset == MNIST else f"{settings.model}-{dataset}")


def find_checkpoint(model, root=ROOT):
    """Find what MODEL names: a path first, then `checkpoints/<name>/`, then the released weights.

    The names of the models, such as "vae", are never taken for a path.

    Args:
        model: "ae", "vae" or "cvae", the name of a run in `root` or of released weights, the path of a run
            folder, or of a .keras file.
        root: the folder that holds the runs of this user.

    Raises:
        CheckpointError: if there is no such checkpoint.
    """
    path, origin = Path(model), "path"
    by_name = path.name == str(model)
    if path.is_dir():
        path = path / "model.keras"
    if model in models() or (by_name and not path.is_file()):
        mine, theirs = Path(root, model), released(model)
        if (mine / "model.keras").is_file():
            path, origin = mine / "model.keras", "trained here"
        elif any((mine / left).is_file() for left in ("run.json", "history.csv", BACKUP[0])):
            kind = next((kind for kind in models() if kind == model), f"MODEL --out {mine}")
            raise CheckpointError(
                f"{mine} holds a run without a model.keras: it has not ended an epoch, or is broken. Go on with it "
                f"(`kae fit {kind} --resume`), or move that folder away"
                + (" for the released weights." if theirs.is_dir() else ".")
            )
        elif (theirs / "run.json").is_file():
            path, origin = theirs / "model.keras", "released with keras-ae"
        elif model in models():
            raise CheckpointError(
                f"There is no checkpoint of {model} yet: train one with `kae fit {model}`."
            )
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint {path}. Give {', '.join(checkpoint_names(root))}, a run folder or a .keras file."
        )
    return Checkpoint(path, read_run(path.parent), origin)


def read_run(folder):
    """The contents of a folder's run.json, {} where there is none.

    Raises:
        CheckpointError: if it is damaged or of a newer format.
    """
    path = Path(folder) / "run.json"
    try:
        run = json.loads(path.read_text())
        version = run.get("format", 0)
        if isinstance(version, int) and version <= FORMAT:
            Settings.from_dict({"model": "vae", **run.get("settings", {})})
            for key, kind in KINDS.items():
                if not isinstance(run.get(key, kind()), kind):
                    raise ValueError(f"its {key} is no {kind.__name__}")
            if not isinstance(run.get("environment", {}).get("versions", {}), dict):
                raise ValueError("its versions are no dict")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is damaged: {reason}") from error
    if not isinstance(version, int) or version > FORMAT:
        raise CheckpointError(
            f"{path} is of format {version}, this version reads up to {FORMAT}: upgrade keras-ae."
        )
    return run


def write_run(folder, run):
    """Write a folder's run.json."""
    write_bytes(Path(folder) / "run.json", json.dumps({"format": FORMAT, **run}, indent=2) + "\n")


def write_history(folder, rows):
    """Write a folder's history.csv, a row for each dict."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(Path(folder) / "history.csv", text.getvalue())


def write_source(folder, source):
    """Keep where the dataset of a run lies, None for a dataset that has a name. It goes when the run is finished."""
    path = Path(folder) / "backup" / "dataset"
    if source is None:
        path.unlink(missing_ok=True)
    else:
        write_bytes(path, os.fsencode(source))


def read_source(folder):
    """What `write_source` kept, None for nothing."""
    try:
        with open_file(Path(folder) / "backup" / "dataset") as file:
            return os.fsdecode(file.read(4096)) or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{folder}/backup/dataset cannot be read: {error}") from error


def read_history(folder):
    """The rows of a folder's history.csv, a dict of numbers for each epoch; [] where there is none.

    Raises:
        CheckpointError: if it is damaged.
    """
    path = Path(folder) / "history.csv"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
        rows = [{**row, "epoch": int(row["epoch"]), "seconds": row["seconds"]} for row in rows]
        if [row["epoch"] for row in rows] != list(range(1, len(rows) + 1)):
            raise ValueError("its epochs are not 1, 2 and so on")
        return rows
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, OverflowError, csv.Error) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{path} is damaged: {why}") from error


def read_epochs(folder):
    """The pictures of a run's epochs, in order: Pillow images."""
    frames = []
    for path in sorted((Path(folder) / "epochs").glob("[0-9]*.png")):
        with opened(path) as image:
            image.load()
            frames.append(image)
    return frames


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        history: a dict for each whole epoch.
        epochs: whole epochs done.
        batches: steps done of the epoch after these.
        seconds: that these steps took.
        metrics: the running means of these steps, `model.metrics_variables` as arrays.
    """

    history: list
    epochs: int = 0
    batches: int = 0
    seconds: float = 0.0
    metrics: list = dataclasses.field(default_factory=list)


def write_backup(folder, model, progress):
    """Write all that a run needs to go on from here: weights, optimizer, progress."""
    optimizer = {}
    model.optimizer.save_own_variables(optimizer)
    arrays = {f"model/{i}": w for i, w in enumerate(model.get_weights())}
    arrays |= {f"optimizer/{name}": np.asarray(value) for name, value in optimizer.items()}
    arrays |= {f"metrics/{i}": value for i, value in enumerate(progress.metrics)}
    about = {
        "format": FORMAT,
        "optimizer": type(model.optimizer).__name__,
        "epochs_done": progress.epochs,
        "batches_done": progress.batches,
        "seconds": progress.seconds,
        "history": progress.history,
    }
    with atomic(Path(folder) / "backup" / "state.npz") as temporary:
        np.savez(temporary, about=json.dumps(about), **arrays)


def save_start(folder, model):
    """Keep the model that a run starts from, for one that goes on with the run."""
    save_model(model, Path(folder) / START)


def load_start(folder, trusted=False):
    """The model that the unfinished run in a folder started from.

    Raises:
        CheckpointError: it is not there, not whole, or not one of ours.
    """
    return load_model(Path(folder) / START, trusted)


def read_backup(folder, model):
    """Put a run's last backup into a compiled model, and return the `Progress` that it was made at.

    A run that was stopped before its first backup is at its start.

    Raises:
        CheckpointError: if the backup is damaged or of another model.
    """
    path = Path(folder) / "backup" / "state.npz"
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        about = json.loads(str(arrays["about"]))
        if about["format"] > FORMAT:
            raise ValueError(f"it is of format {about['format']}")

        def part(name):
            start = f"{name}/"
            return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}

        weights, optimizer, metrics = (part(name) for name in ("model", "optimizer", "metrics"))
        model.set_weights([weights[str(i)] for i in range(len(model.weights))])
        model.optimizer.build(model.trainable_variables)
        # Of another size, Keras would warn and load none.
        other = len(optimizer) != len(model.optimizer.variables)
        if other or about["optimizer"] != type(model.optimizer).__name__:
            raise ValueError("it is of another optimizer")
        model.optimizer.load_own_variables(optimizer)
        counts = about["epochs_done"], about["batches_done"]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"it was made after {counts}")
        if [row["epoch"] for row in about["history"]] != list(range(1, counts[0] + 1)):
            raise ValueError("its history is of other epochs")
        for row in about["history"]:
            numbers = all(type(value) in (int, float) for value in row.values())
            if (
                not numbers
                or not {"val_loss", "seconds"} <= row.keys() == about["history"][0].keys()
            ):
                raise ValueError("its history is not of figures")
        means = [np.asarray(metrics[str(i)], "float32") for i in range(len(metrics))]
        if counts[1] and [m.shape for m in means] != [v.shape for v in model.metrics_variables]:
            raise ValueError("its metrics are others")
        return Progress(about["history"], *counts, float(about["seconds"]), means)
    except FileNotFoundError:
        return Progress([])
    except Exception as error:  # whatever a damaged file makes NumPy, JSON and Keras raise
        raise CheckpointError(
            f"{path} is damaged or of another model; start over with --force."
        ) from error


class RunLock:
    """Keeps other processes from writing to a run folder, from `acquire` on until the context ends.

    The lock is the system's, on the folder itself: it leaves no file behind, and that of a process that
    was killed is free at once. Entering the context takes it where the folder is there already. On a
    system without such locks (Windows), or a file system (some network drives), there is none.

    Raises:
        CheckpointError: if another process has it.
    """

    def __init__(self, folder):
        self.folder, self._handle = Path(folder), None

    def __enter__(self):
        if self.folder.is_dir():
            self.acquire()
        return self

    def acquire(self):
        """Lock the folder, if this is not done yet."""
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
        except OSError:  # no locks here
            pass

    def __exit__(self, *error):
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def files_of(folder):
    """The files in a folder that its run wrote, by its run.json: those alone are replaced by another run.

    Of what is a link, and of folders behind links, there are none. A run.json that is damaged tells only that
    there was a run.
    """
    folder = Path(folder)
    run, epochs = folder / "run.json", 0
    if not run.is_file():
        return []
    with contextlib.suppress(CheckpointError):
        epochs = read_run(folder).get("settings", {}).get("epochs") or 0
    found = [folder / name for name in ALWAYS]
    found += [path for path in _entries(folder / "epochs") if 1 <= _epoch_of(path) <= epochs]
    for part in ("train", "validation"):
        events = _entries(folder / TENSORBOARD / part)
        found += [path for path in events if path.name.startswith("events.out.tfevents.")]
    found += [folder / name for name in BACKUP]
    return [path for path in found if path.is_file()]


def strangers(folder, epochs):
    """The files in a folder that no run there wrote, and that a run of so many epochs would replace."""
    folder = Path(folder)
    taken = [folder / name for name in (*ALWAYS, *BACKUP)]
    taken += [path for path in _entries(folder / "epochs") if 1 <= _epoch_of(path) <= epochs]
    ours = set(files_of(folder))
    return [path for path in taken if os.path.lexists(path) and path not in ours]


def _entries(folder):
    """The files in a folder, in order; none where it is a link."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())


def _epoch_of(picture):
    """The epoch that a file is the picture of, 0 for none."""
    named = re.fullmatch(r"(\d{3,9})\.png", picture.name)
    return int(named[1]) if named else 0


def remove(paths):
    """Remove files, and the folders that held nothing else."""
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
    """Remove the halves of files that a kill left in a run folder."""
    folder = Path(folder)
    for part in (
        folder,
        folder / "epochs",
        folder / "backup",
        folder / NEXT,
        folder / NEXT / "backup",
    ):
        if not part.is_symlink():
            sweep(part)


def place_of(folder):
    """Where the run that `--resume` goes on with keeps run.json and backup: the folder itself, or `.next` in it."""
    folder = Path(folder)
    return folder / NEXT if (folder / NEXT / "run.json").is_file() else folder


def take_place(folder, replaced=()):
    """Have the run in `.next`, whose first epoch has just been written, be that of the folder.

    Args:
        replaced: what is left of the run before.
    """
    folder = Path(folder)
    written = [folder / name for name in (*ALWAYS, *BACKUP)]
    source = read_source(folder / NEXT)
    remove([path for path in replaced if path not in written])
    write_source(folder, source)
    if (start := folder / NEXT / START).is_file():
        write_bytes(folder / START, start.read_bytes())
    else:
        remove([path for path in replaced if path == folder / START])
    os.replace(folder / NEXT / "run.json", folder / "run.json")
    remove_next(folder)


def remove_next(folder):
    """Remove a run that was to replace that of the folder."""
    place = Path(folder) / NEXT
    remove_backup(place)
    (place / "run.json").unlink(missing_ok=True)
    _remove_empty(place)


def remove_backup(folder):
    """Remove what only an unfinished run needs."""
    remove([Path(folder) / name for name in BACKUP])

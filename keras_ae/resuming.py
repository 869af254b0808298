"""What may be done in a run folder: begin a run, resume it or replace it; and where a resumed run goes on."""

import dataclasses
import os
import tempfile
from pathlib import Path

import keras

from keras_ae import checkpoints
from keras_ae.errors import RunError
from keras_ae.models import AE
from keras_ae.settings import Settings


def check_folder(folder, epochs, resume, force):
    """Check that a run of `epochs` epochs may be written to a folder. Returns its run.json, {} for a new run."""
    if resume and force:
        raise RunError("resume goes on with a run, and force replaces it: give one of them.")
    if os.path.basename(os.path.realpath(folder)) == checkpoints.NEXT:
        raise RunError(
            f"{folder} is where a run that replaces another one begins: name another folder (--out)."
        )
    _check_kinds(folder)
    if checkpoints.is_finished(folder / checkpoints.NEXT):
        raise RunError(
            f"{folder / checkpoints.NEXT} holds a finished run, and a run that replaces another one begins there: move it "
            "elsewhere."
        )
    checkpoints.settle(folder)
    place = checkpoints.place_of(folder)
    record = {} if force else checkpoints.read_run(place if resume else folder)
    if resume and not record:
        raise RunError(f"There is no run in {folder} to resume.")
    if record and not record.get("finished") and checkpoints.lost_backup(folder):
        raise RunError(
            f"The backup of the unfinished run in {folder}, which --resume needs, is missing: "
            + checkpoints.way_on(folder)
        )
    if not resume and record and checkpoints.died_early(folder):
        record, place = {}, folder  # it is begun anew
    begun = (
        ""
        if place == folder
        else ", and the beginning of its successor, which --resume goes on with"
    )
    if record.get("finished"):
        if (place == folder or not resume) and (folder / "model.keras").is_file():
            checkpoints.remove_last_backup(folder)
        if resume:
            raise RunError(f"The run in {folder} is finished: nothing is left to resume.")
        raise RunError(
            f"{folder} holds a finished run{begun}; --force replaces it, --out writes elsewhere."
        )
    if not resume and (record or not force and place != folder):
        if record and begun:
            before = "go on with" if checkpoints.has_backup(folder) else "keep"
            raise RunError(
                f"{folder} holds an unfinished run{begun}, and which replaces it after its first epoch: move {place} away to "
                f"{before} the run before; --force begins another successor, --out writes elsewhere."
            )
        raise RunError(
            f"{folder} holds an unfinished run; --resume goes on with it, --force replaces it."
        )
    if not record and not force and (taken := checkpoints.strangers(folder, epochs)):
        name = taken[0].relative_to(folder)
        raise RunError(
            f"{folder} holds a {name} that no run there wrote; --out writes elsewhere, --force replaces it."
        )
    return record


def _check_kinds(folder):
    """Refuse a run folder with links or files where a run has folders, or with folders where it has files."""
    place = folder / checkpoints.NEXT
    ours = [part / name for part in (folder, place) for name in ("backup", "epochs")] + [place]
    curves = [folder / "tensorboard" / name for name in (".", "train", "validation")]
    for path in [*ours, *curves]:
        if path.is_symlink():  # files of another run, or of nobody's, may lie behind it
            raise RunError(f"{path} is a link: remove it, or --out writes elsewhere.")
    for path in ours:
        if path.exists() and not path.is_dir():
            raise RunError(
                f"{path} is no folder, and a run has one there: move it away, or --out writes elsewhere."
            )
    names = (*checkpoints.ALWAYS, *checkpoints.BACKUP)
    files = [part / name for part in (folder, place) for name in names]
    for path in [*files, *checkpoints.pictures_of(folder)]:
        if path.is_dir():
            raise RunError(
                f"{path} is a folder, and a run has a file there: move it away, or --out writes elsewhere."
            )


def make_folder(folder):
    """Make a run folder, and check that it can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RunError(f"Cannot write to {folder}: {error.strerror}.") from error


def stored_settings(folder):
    """The settings of the run that `resume` would continue. A dataset without a name is given by its folder.

    Raises:
        RunError: there is no run.
    """
    place = checkpoints.place_of(folder)
    record = checkpoints.read_run(place)
    if not record:
        raise RunError(f"There is no run in {folder} to resume.")
    settings = checkpoints.settings_of(record, place)
    source = checkpoints.read_source(place)
    if source is None and checkpoints.unsettled(folder):
        source = checkpoints.read_source(Path(folder) / checkpoints.NEXT)
    return settings if source is None else dataclasses.replace(settings, dataset=source)


def differences(settings, other):
    """Names of the fields in which two settings differ."""
    return [
        field.name
        for field in dataclasses.fields(Settings)
        if getattr(settings, field.name) != getattr(other, field.name)
    ]


def read_progress(folder, model, steps):
    """As `checkpoints.read_backup`, and check that the backup fits epochs of `steps` steps."""
    done = checkpoints.read_backup(folder, model)
    step = done.epochs * steps + done.batches
    counted = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
    # A train_step or compile of the user's own may count otherwise, and a callback may end an epoch early.
    own = model.overridden("train_step") or type(model).compile is not AE.compile
    if done.batches >= steps or counted != step and not (own or done.ended):
        raise RunError(
            f"The backup in {folder} was made at no step of this run: {checkpoints.way_on(folder)}"
        )
    return done


def remaining_fits(done, epochs):
    """The calls of Keras' `fit` that remain: (first epoch, epoch after the last, first batch).

    Keras asks only once per `fit` how many batches an epoch has, so the rest of a stopped epoch needs its own
    `fit`.
    """
    first = done.epochs
    if done.ended:
        return
    if done.batches:
        yield first, first + 1, done.batches
        first += 1
    if first < epochs:
        yield first, epochs, 0

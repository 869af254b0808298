"""What goes wrong around a run: full, read-only and vanished folders, a second run, readers meanwhile."""

import contextlib
import dataclasses
import errno
import fcntl
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from kae.main import cli
from test_fitting import assert_same_run, contents, fit, history, small

from keras_ae import VAE, callbacks, checkpoints, files, fitting, provenance, resuming
from keras_ae.checkpoints import CheckpointError
from keras_ae.errors import RunError

pytestmark = [pytest.mark.usefixtures("mnist_env"), pytest.mark.long]


@pytest.fixture(scope="module")
def whole(mnist_dir, tmp_path_factory):
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    fit(small("vae"), folder, data_dir=mnist_dir)
    return folder


def assert_readable(folder):
    """Whatever there is of a run is whole, and nothing half written is left."""
    assert not list(folder.rglob(f"{files.UNFINISHED}*"))
    if (folder / "model.keras").exists():
        checkpoints.load_model(folder / "model.keras")
    if (folder / "history.csv").exists():
        assert all(float(row["loss"]) > 0 for row in history(folder))
    if (folder / "run.json").exists():
        assert checkpoints.read_run(folder)["settings"]["model"] == "vae"
    if (folder / "backup" / "state.npz").exists():
        with np.load(folder / "backup" / "state.npz") as backup:
            assert all(np.isfinite(backup[name]).all() for name in backup if "/" in name)


def resume(folder):
    """Go on with the run in a folder, or begin it, where it never began."""
    fit(small("vae"), folder, resume=checkpoints.can_resume(folder))


def fill_disk(patch, write):
    """The disk is full at the so manieth write, and has room again after it."""
    left, sync = [write], os.fsync

    def full(handle):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    patch.setattr(files, "_sync_folder", lambda folder: None)
    patch.setattr(os, "fsync", full)


@pytest.mark.parametrize("write", [2, 3, 4, 5, 6, 7, 9, 12, 17])
def test_a_disk_that_is_full_at_any_write(write, whole, tmp_path, monkeypatch):
    """One write after the other fails, as on a full disk; there is a backup a step."""
    monkeypatch.setattr(callbacks, "BACKUP_SECONDS", 0.0)
    monkeypatch.setattr(fitting, "steps_per_execution", lambda *_: 1)
    with monkeypatch.context() as patch:
        fill_disk(patch, write)
        with pytest.raises(OSError, match="No space left"):
            fit(small("vae"), tmp_path)
    assert_readable(tmp_path)
    resume(tmp_path)
    assert_same_run(whole, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("write", range(1, 9))
def test_a_disk_that_is_full_as_a_run_replaces_another(write, whole, tmp_path, monkeypatch):
    """Up to its second epoch there are a run.json, a backup a step and an epoch."""
    monkeypatch.setattr(callbacks, "BACKUP_SECONDS", 0.0)
    monkeypatch.setattr(fitting, "steps_per_execution", lambda *_: 2)
    fit(small("vae", seed=8, epochs=4), tmp_path)
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        fill_disk(patch, write + 1)  # the first is of the check that the folder can be written to
        with pytest.raises(OSError, match="No space left"):
            fit(small("vae"), tmp_path, force=True)
    assert_readable(tmp_path)
    if checkpoints.read_run(tmp_path)["settings"]["seed"] == 8:
        now = contents(tmp_path)
        assert {name: now[name] for name in now if not name.startswith(".next")} == before
    if checkpoints.can_resume(tmp_path):
        fit(small("vae"), tmp_path, resume=True)
    else:
        assert write == 1  # it never began: the old run is what it was
        assert checkpoints.read_run(tmp_path)["settings"]["seed"] == 8
        fit(small("vae"), tmp_path, force=True)
    assert_same_run(whole, tmp_path)


@contextlib.contextmanager
def limited(size):
    """Files of this process end at a size, as they do at a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("size", "epoch"), [(20_000, 0), (150_000, 0), (1_000, 1), (150_000, 1)])
def test_files_that_may_not_grow(size, epoch, whole, tmp_path, monkeypatch):
    """The first file that is too large ends the run: the first backup, or the picture or backup of a later epoch."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with limited(soft if epoch else size), pytest.raises((OSError, RunError)):
        at_epoch_end(
            monkeypatch, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard)), epoch
        )
        fit(small("vae"), tmp_path)
    monkeypatch.undo()
    assert_readable(tmp_path)
    assert len(checkpoints.read_history(tmp_path)) >= epoch
    resume(tmp_path)
    assert_same_run(whole, tmp_path)


def kae(*arguments):
    """`kae` in this process: (exit code, stdout, stderr)."""
    done = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


OPTIONS = ["--backbone", "mlp", "--hidden", "16,8", "--latent-dim", 3, "--limit", 50, "--batch-size", 16, "--epochs", 3]  # fmt: skip


@pytest.mark.parametrize("free", [3, 90, 300, 360, 500, 700])
def test_a_small_disk(free, whole, small_disk):
    """A disk of so many KiB, of which the first backup takes some 310; then there is room again."""
    disk = small_disk("2m")
    (disk / "filler").write_bytes(bytes((2048 - free) * 1024))
    code, out, err = kae("fit", "vae", *OPTIONS, "--out", disk / "run", "--quiet")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1 and "No space left on device" in err, err
    assert_readable(disk / "run")
    assert checkpoints.has_backup(disk / "run") == (free > 310)
    (disk / "filler").unlink()
    resume(disk / "run")
    assert_same_run(whole, disk / "run")


def test_a_disk_that_becomes_read_only(whole, small_disk, monkeypatch):
    disk = small_disk("4m")
    at_epoch_end(monkeypatch, lambda: remount("ro"), 1)

    def remount(how):
        subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)

    code, _, err = kae("fit", "vae", *OPTIONS, "--out", disk / "run", "--quiet")
    assert code == 1 and err.count("\n") == 1 and "Read-only file system" in err
    assert_readable(disk / "run")
    code, _, err = kae("fit", "vae", "--resume", "--out", disk / "run", "--quiet")
    assert code == 1 and err.count("\n") == 1 and "Cannot write to" in err
    remount("rw")
    resume(disk / "run")
    assert_same_run(whole, disk / "run")


def at_epoch_end(monkeypatch, act, epoch):
    """Do something at the end of the steps of an epoch, from 0, of the next runs; once."""
    done = []

    class Stopwatch(callbacks.Stopwatch):
        def on_epoch_end(self, now, logs=None):
            if now == epoch and not done:
                done.append(act())

    monkeypatch.setattr(fitting, "Stopwatch", Stopwatch)


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_folder_that_vanishes_does_not_come_back(epoch, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    at_epoch_end(monkeypatch, lambda: folder.rename(tmp_path / "elsewhere"), epoch)
    with pytest.raises(RunError, match="is gone"):
        fit(small("vae"), folder)
    assert not folder.exists()
    assert_readable(tmp_path / "elsewhere")


def test_a_run_that_takes_the_place_of_one_that_was_moved_is_left_alone(
    whole, tmp_path, monkeypatch
):
    def swap():
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        shutil.copytree(whole, tmp_path / "run")

    at_epoch_end(monkeypatch, swap, 1)
    with pytest.raises(RunError, match="is gone"):
        fit(small("vae"), tmp_path / "run")
    for file in ("model.keras", "history.csv", "run.json"):
        assert (tmp_path / "run" / file).read_bytes() == (whole / file).read_bytes()


def test_lines_are_appended_where_there_are_no_locks(tmp_path, monkeypatch):
    def flock(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    files.append_lines(tmp_path / "a.csv", "h\n", io.StringIO("1\n"))
    assert (tmp_path / "a.csv").read_text() == "h\n1\n"


def test_lines_go_to_the_file_that_takes_the_place_meanwhile(tmp_path, monkeypatch):
    """Another process replaces the file while this one waits for the lock."""
    table, other = tmp_path / "a.csv", tmp_path / "b.csv"
    table.write_text("h\nold\n")
    other.write_text("h\nnew\n")
    flock = fcntl.flock

    def wait(*arguments):
        if other.exists():
            os.replace(other, table)
        flock(*arguments)

    monkeypatch.setattr(files.fcntl, "flock", wait)
    files.append_lines(table, "h\n", io.StringIO("1\n"))
    assert table.read_text() == "h\nnew\n1\n"


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch, links):
    def replaced(*arguments):
        raise KeyboardInterrupt

    path = tmp_path / "a.csv"
    if links:  # nothing is put in its place first
        monkeypatch.setattr(os, "replace", replaced)
    else:

        def link(*arguments):
            raise PermissionError(errno.EPERM, "no links")

        monkeypatch.setattr(os, "link", link)
    with files.atomic(path, replace=False) as temporary:
        Path(temporary).write_text("new")
    assert path.read_text() == "new" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(FileExistsError), files.atomic(path, replace=False) as temporary:
        Path(temporary).write_text("newer")
    assert path.read_text() == "new" and len(list(tmp_path.iterdir())) == 1


def test_lines_are_appended_all_or_none(tmp_path):
    def lines():
        yield "new,1\n" * 10
        raise OSError(errno.ENOSPC, "no space")

    class Rows:
        def __init__(self):
            self.parts = lines()

        def read(self, size):
            return next(self.parts)

    table = tmp_path / "codes.csv"
    table.write_text("file,z0\nold,0\n")
    with pytest.raises(OSError, match="no space"):
        files.append_lines(table, "file,z0\n", Rows())
    assert table.read_text() == "file,z0\nold,0\n"


def test_a_folder_that_was_moved_goes_on_where_it_is(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(RunError):
        at_epoch_end(patch, lambda: (tmp_path / "a").rename(tmp_path / "b"), 1)
        fit(small("vae"), tmp_path / "a")
    resume(tmp_path / "b")
    assert_same_run(whole, tmp_path / "b")


def test_what_a_kill_left_half_written_is_swept(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_epoch_end(patch, lambda: signal.raise_signal(signal.SIGTERM), 0)
        fit(small("vae"), tmp_path)
    halves = [tmp_path / f"{files.UNFINISHED}model-0123456789abcdef.keras"]
    halves += [tmp_path / folder / halves[0].name for folder in ("epochs", "backup")]
    for half in halves:
        half.write_text("half")
    resume(tmp_path)
    assert_readable(tmp_path)
    assert_same_run(whole, tmp_path)


def test_what_others_are_writing_is_not_swept(tmp_path):
    """A run in a folder of this one, and a command that writes beside it."""
    with files.atomic(tmp_path / "run" / "model.keras"), files.atomic(tmp_path / "x.png") as mine:
        dead = tmp_path / f"{files.UNFINISHED}model-0123456789abcdef.keras"
        dead.touch()
        fit(small("vae", epochs=1), tmp_path)
        assert not dead.exists() and os.path.exists(mine)


def test_a_new_file_has_the_rights_that_the_umask_gives(tmp_path, monkeypatch):
    """And the umask, which is the process's, is not touched: other threads would make files with it."""
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", pytest.fail)
            files.write_bytes(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_dataset_that_moved_is_named_at_resume(whole, mnist_dir, tmp_path, monkeypatch):
    """A folder is in run.json by the name of what is in it; where it lay goes when the run is finished."""
    run, there, moved = (tmp_path / name for name in ("run", "there", "moved"))
    there.symlink_to(mnist_dir / "mnist" / "3.0.1")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_epoch_end(patch, lambda: signal.raise_signal(signal.SIGTERM), 0)
        fit(small("vae", dataset=str(there)), run)
    assert checkpoints.read_run(run)["settings"]["dataset"] == "mnist"
    assert str(tmp_path) not in (run / "run.json").read_text()
    assert resuming.stored_settings(run).dataset == str(there)
    there.rename(moved)
    code, _, err = kae("fit", "vae", "--resume", "--out", run, "-q")
    assert code == 2 and f"{there} as its dataset, which is a folder: say --dataset" in err
    code, _, err = kae("fit", "vae", "--resume", "--out", run, "--dataset", there, "-q")
    assert code != 0 and "Traceback" not in err
    monkeypatch.chdir(tmp_path)
    code, _, err = kae("fit", "vae", "--resume", "--out", run, "--dataset", "./moved", "-q")
    assert code == 0, err
    assert_same_run(whole, run)
    left = [path for path in run.rglob("*") if path.is_file()]
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in left)
    assert not (run / "backup").exists()


def test_a_run_that_goes_on_elsewhere_says_where_it_was(tmp_path, monkeypatch):
    about = fitting.environment_of
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_epoch_end(patch, lambda: signal.raise_signal(signal.SIGTERM), 1)
        patch.setattr(fitting, "environment_of", lambda model: {**about(model), "backend": "other"})
        fit(small("vae"), tmp_path)
    resume(tmp_path)
    record = checkpoints.read_run(tmp_path)
    assert record["environment"]["backend"] != "other"
    (earlier,) = record["earlier_environments"]
    assert earlier["backend"] == "other" and earlier["epochs"] == 2


@pytest.mark.parametrize("codes", ["no numbers", "far apart"])
def test_a_run_whose_codes_diverge(codes, tmp_path, monkeypatch):
    """Its losses may be numbers all the same. At every `resume` it is told again."""
    codes = {
        "no numbers": np.full((50, 3), np.nan, "float32"),
        "far apart": np.random.default_rng(0).normal(size=(50, 3)).astype("float32"),
    }[codes]
    codes[49] *= 1e30
    monkeypatch.setattr(VAE, "posterior", lambda self, inputs: (codes, np.full_like(codes, -30)))
    for how in ({}, {"resume": True}):
        with pytest.raises(
            RunError, match="A prior cannot be fitted .*diverged.*lower --learning-rate"
        ):
            fit(small("vae", epochs=1), tmp_path, **how)
    fit(small("ae", epochs=1), tmp_path, force=True)


def test_a_dataset_that_changed_is_not_resumed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_epoch_end(patch, lambda: signal.raise_signal(signal.SIGTERM), 0)
        fit(small("vae"), tmp_path)
    load = fitting.data.load_splits

    def changed(*args, **kwargs):
        train, test = load(*args, **kwargs)
        train.images[3, 3, 3] += 1
        return train, test

    with monkeypatch.context() as patch:
        patch.setattr(fitting.data, "load_splits", changed)
        with pytest.raises(RunError, match="mnist is not what the run .* began with .* --force"):
            resume(tmp_path)

    def imported_again(*args, **kwargs):
        return [dataclasses.replace(split, version="3.0.2") for split in load(*args, **kwargs)]

    monkeypatch.setattr(fitting.data, "load_splits", imported_again)
    resume(tmp_path)
    splits = imported_again("mnist")
    facts = provenance.data_facts(*splits)
    assert provenance.same_data({**facts, "version": "3.0.1"}, facts, *splits)
    monkeypatch.setattr(provenance, "WINDOW", 1000)  # then the checksum leaves images out
    assert not provenance.same_data({**facts, "version": "3.0.1"}, facts, *splits)


@pytest.fixture
def running(mnist_dir, shared_tmp, tmp_path):
    """A real `kae fit` at work: (process, its run folder)."""
    environment = {
        **os.environ,
        "KAE_DATA_DIR": str(mnist_dir),
        "KAE_CACHE": str(shared_tmp / "cache"),
    }
    command = [sys.executable, "-m", "kae", "fit", "vae", *map(str, OPTIONS[:-2])]
    process = subprocess.Popen(
        [*command, "--epochs", "25", "--out", "run", "--json"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 120
    while not (tmp_path / "run" / "run.json").exists() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    yield process, tmp_path / "run"
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_a_reader_never_fails_and_a_second_run_is_refused(running):
    process, folder = running
    settings = small("vae", epochs=25)
    for how in ({}, {"resume": True}, {"force": True}):
        with pytest.raises(CheckpointError, match="Another `kae fit` is writing to"):
            fit(settings, folder, **how)
    seen, reads = set(), 0
    while process.poll() is None:
        if (folder / "model.keras").exists():
            model = checkpoints.load_model(folder / "model.keras")
            seen.add(float(model.kl_weight))
            reads += 1
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert len(json.loads(out)["history"]) == 25
    assert reads >= len(seen) >= 3, "the reader came too late to see anything"


@pytest.mark.long
def test_a_terminal_that_is_closed(mnist_dir, shared_tmp, tmp_path):
    """As by a dropped ssh: the run is told by SIGHUP, amid an epoch, and nothing that it says is shown any more."""
    master, slave = os.openpty()
    environment = {"KAE_DATA_DIR": str(mnist_dir), "KAE_CACHE": str(shared_tmp / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-m", "kae", "fit", "vae", *map(str, OPTIONS[:-2]), "--limit", "60000"],
        cwd=tmp_path,
        env={**os.environ, **environment},
        stdin=slave, stdout=slave, stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(slave)
    os.set_blocking(master, False)
    end, said = time.monotonic() + 120, b""
    while b"reconstruction" not in said:  # of the progress bar of the first epoch
        assert time.monotonic() < end and process.poll() is None, said
        with contextlib.suppress(BlockingIOError):
            said += os.read(master, 65536)
        time.sleep(0.01)
    os.close(master)
    assert process.wait(60) == 1
    folder = tmp_path / "checkpoints" / "vae"
    with np.load(folder / "backup" / "state.npz") as backup:
        about = json.loads(str(backup["about"]))
    assert about["epochs_done"] == 0 and about["batches_done"] > 0
    assert checkpoints.can_resume(folder)


def test_the_lock_of_a_killed_run_is_free(running):
    process, folder = running
    process.kill()
    process.wait()
    with checkpoints.RunLock(folder):
        pass


class TestLock:
    def test_one_at_a_time(self, tmp_path):
        with checkpoints.RunLock(tmp_path) as lock:
            lock.acquire()  # again: it has it
            with pytest.raises(CheckpointError), checkpoints.RunLock(tmp_path):
                pass
        with checkpoints.RunLock(tmp_path):
            pass

    def test_a_folder_that_is_not_there_yet(self, tmp_path):
        with checkpoints.RunLock(tmp_path / "new") as lock:
            (tmp_path / "new").mkdir()
            lock.acquire()
            with pytest.raises(CheckpointError), checkpoints.RunLock(tmp_path / "new"):
                pass

    def test_nothing_is_left_behind(self, tmp_path):
        with checkpoints.RunLock(tmp_path):
            assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("missing", ["no module", "no locks"])
    def test_where_there_are_no_locks_runs_go_on(self, missing, tmp_path, monkeypatch):
        if missing == "no module":
            monkeypatch.setattr(checkpoints, "fcntl", None)
        else:

            def flock(handle, how):
                raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

            monkeypatch.setattr(checkpoints.fcntl, "flock", flock)
        with checkpoints.RunLock(tmp_path), checkpoints.RunLock(tmp_path):
            pass


@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_a_file_that_replaces_another_has_its_rights(mode, tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "a").chmod(mode)
    with files.atomic(tmp_path / "a") as temporary:
        assert os.stat(temporary).st_mode & 0o777 == mode
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode

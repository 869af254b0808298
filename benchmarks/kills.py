"""Kills a run again and again at random moments, and compares what comes of it with a run left alone.

    KERAS_BACKEND=jax python benchmarks/kills.py --kills 100

A run of a small VAE is resumed after each kill until it is finished, and another one begun until there
were enough kills. Each has to end with the weights, history and pictures of the run left alone, bit
for bit. A life of a run is a process of its own, forked where all is imported, so that a kill takes a
second and not ten. Between lives, whatever model.keras there is has to load. With --over, each run replaces
another one, which has to stay whole until the new one has its first epoch. With --processes 2, on torch, a
run is one of two processes, as torchrun starts them, and a signal is for both or for one of them.
"""

import argparse
import contextlib
import csv
import importlib
import json
import mmap
import os
import random
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
from pathlib import Path

import keras
import numpy as np

from keras_ae import callbacks, checkpoints, distributed, fitting
from keras_ae.settings import Settings

SETTINGS = Settings(
    "vae", backbone="mlp", hidden=(32, 16), latent_dim=3, limit=800, batch_size=16, epochs=4
)
OLD = Settings("vae", backbone="mlp", hidden=(8,), latent_dim=3, limit=100, epochs=6, seed=9)
SIGNALS = {
    name: getattr(signal, f"SIG{name}") for name in ("KILL", *(n[3:] for n in callbacks.STOPPING))
}


STEP = mmap.mmap(-1, 8)  # steps that the life of a run under way has come to: shared with it


def live(folder, seconds, settings=SETTINGS, count=1):
    """One life of a run, in so many processes of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    return [_process(folder, seconds, settings, count, rank, place) for rank in range(count)]


def _process(folder, seconds, settings, count, rank, place):
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.dup2(2, 1)
        resume = checkpoints.can_resume(folder)
        force = not resume and bool(checkpoints.read_run(folder))
        if count > 1:
            os.environ.update(place, WORLD_SIZE=str(count), RANK=str(rank), LOCAL_RANK=str(rank))
            distributed.start()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        callbacks.BACKUP_SECONDS = seconds

        class Callbacks(callbacks.Callbacks):
            def on_train_batch_end(self, batch, logs=None):
                step = self.feed.epoch * self.feed.steps + self.feed.first + batch + 1
                if rank == 0:
                    STEP[:] = struct.pack("q", step)
                super().on_train_batch_end(batch, logs)

        fitting.Callbacks = Callbacks
        fitting.fit(
            settings, folder, resume=resume, force=force, verbose=0, report=lambda line: None
        )
        code = 0
    except (KeyboardInterrupt, distributed.LostWorker):
        pass
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def lives(processes):
    """Whether all of these children run; they are left to be waited for."""
    how = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return all(os.waitid(os.P_PID, process, how) is None for process in processes)


def ended(processes):
    """Wait for the end of them all. Whether it was a good one."""
    return not any([os.waitpid(process, 0)[1] for process in processes])


def reached():
    """The step that the life under way has come to."""
    return struct.unpack("q", STEP[:])[0]


def saved(folder):
    """The step that a backup was made after, 0 without one."""
    try:
        with np.load(checkpoints.place_of(folder) / "backup" / "state.npz") as backup:
            about = json.loads(str(backup["about"]))
    except FileNotFoundError:
        return 0
    per_epoch = -(-SETTINGS.limit // SETTINGS.batch_size)
    return about["epochs_done"] * per_epoch + about["batches_done"]


def contents(folder, count):
    """What two runs are compared by: weights, history but for the seconds, pictures.

    Of the means over the training images, a backup has those of the first process.
    """
    with np.load(folder / "weights.npz") as archive:
        weights = {name: archive[name] for name in archive}
    rows = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    pictures = {p.name: p.read_bytes() for p in (folder / "epochs").iterdir()}
    names = [k for k in rows[0] if k != "seconds" and (count == 1 or k.startswith("val_"))]
    return weights, [{name: row[name] for name in names} for row in rows], pictures


def finished(folder):
    """Whether the run in a folder is the new one, and done."""
    record = checkpoints.read_run(folder)
    return record.get("finished", False) and record["settings"]["seed"] == SETTINGS.seed


def read(folder):
    """Load model.keras, as any reader would, in a process of its own; keep its weights."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            model = checkpoints.load_model(folder / "model.keras")
            weights = {w.path: keras.ops.convert_to_numpy(w) for w in model.weights}
            np.savez(folder / "weights.npz", **weights)
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(process, 0)[1] == 0


def unlike(one, other):
    """What two runs differ in."""
    (a, *rest), (b, *others) = one, other
    arrays = a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
    same = [arrays, *(x == y for x, y in zip(rest, others))]
    return [name for name, equal in zip(("weights", "history", "pictures"), same) if not equal]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.1, help="between backups")
    parser.add_argument("--signals", default="KILL", help=f"of {', '.join(SIGNALS)}, with commas")
    parser.add_argument("--over", action="store_true", help="runs replace another one")
    parser.add_argument("--processes", type=int, default=1, help="of a run; more than one on torch")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    names, count = arguments.signals.split(","), arguments.processes
    with contextlib.suppress(ImportError):
        importlib.import_module("tensorflow")  # Keras does, at each save
    facts = {
        "backend": keras.backend.backend(),
        "processes": count,
        "kills": 0,
        "runs": 0,
        "before_training": 0,
    }
    lost = []
    with tempfile.TemporaryDirectory() as parent:
        if facts["backend"] == "jax":
            import jax

            jax.config.update("jax_compilation_cache_dir", f"{parent}/compiled")
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        alone = Path(parent, "alone")
        start = time.monotonic()
        assert ended(live(alone, 60.0, count=count)), "the run left alone failed"
        whole = time.monotonic() - start
        assert read(alone)
        expected = contents(alone, count)
        if arguments.over:
            assert ended(live(Path(parent, "old"), 60.0, OLD))
        while facts["kills"] < arguments.kills or not facts["runs"]:
            folder, seen = Path(parent, f"run-{facts['runs']}"), None
            if arguments.over:
                shutil.copytree(Path(parent, "old"), folder)
            while not finished(folder):
                before = saved(folder)
                STEP[:] = struct.pack("q", before)
                processes = live(folder, arguments.seconds, count=count)
                if facts["kills"] < arguments.kills:
                    if draw.random() < 0.8:  # once it trains; else anywhere
                        while reached() == before and lives(processes):
                            time.sleep(0.001)
                    time.sleep(draw.uniform(0, 0.5))
                    name = draw.choice(names)
                    for process in draw.choice([processes, *([one] for one in processes)]):
                        os.kill(process, SIGNALS[name])
                if not ended(processes):
                    assert facts["kills"] < arguments.kills, "a resumed run failed"
                    facts["kills"] += 1
                    facts["before_training"] += reached() == before
                    # (A run that was killed between its end and that of its process has no backup.)
                    lost.append(0 if finished(folder) else reached() - saved(folder))
                model = folder / "model.keras"
                if model.exists() and model.stat().st_mtime_ns != seen:
                    seen = model.stat().st_mtime_ns
                    assert read(folder), "model.keras does not load"
            facts["runs"] += 1
            found = unlike(expected, contents(folder, count))
            assert not found, f"run {facts['runs']} differs in {', '.join(found)}"
            left = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
            pictures = {f"epochs/{i + 1:03d}.png" for i in range(SETTINGS.epochs)}
            left -= {*checkpoints.ALWAYS, *pictures, "weights.npz"}
            assert not left, f"left behind: {left}"
    facts["identical_runs"] = facts["runs"]
    facts["steps_lost"] = {"median": float(np.median(lost)), "most": max(lost)} if lost else None
    facts["steps_of_the_run"] = SETTINGS.epochs * -(-SETTINGS.limit // SETTINGS.batch_size)
    facts["seconds_of_the_run_alone"] = round(whole, 1)
    print(json.dumps(facts))


if __name__ == "__main__":
    sys.exit(main())

"""Kills a run again and again at random moments, and compares what comes of it with a run left alone.

    KERAS_BACKEND=jax python benchmarks/kills.py --kills 100

A run of a small VAE is resumed after each kill until it is finished, and another one begun until there
were enough kills. Each has to end with the weights, history and pictures of the run left alone, bit
for bit. A life of a run is a process of its own, forked where all is imported, so that a kill takes a
second and not ten. Between lives, whatever model.keras there is has to load. With --over, each run replaces
another one, which has to stay whole until the new one has its first epoch.
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
import struct
import sys
import tempfile
import time
import traceback
from pathlib import Path

import keras
import numpy as np

from keras_ae import callbacks, checkpoints, fitting
from keras_ae.settings import Settings

SETTINGS = Settings(
    "vae", backbone="mlp", hidden=(32, 16), latent_dim=3, limit=800, batch_size=16, epochs=4
)
OLD = Settings("vae", backbone="mlp", hidden=(8,), latent_dim=3, limit=100, epochs=6, seed=9)
SIGNALS = {
    name: getattr(signal, f"SIG{name}") for name in ("KILL", *(n[3:] for n in callbacks.STOPPING))
}


STEP = mmap.mmap(-1, 8)  # steps that the life of a run under way has come to: shared with it


def live(folder, seconds, settings=SETTINGS):
    """One life of a run, in a process of its own."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.dup2(2, 1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        callbacks.BACKUP_SECONDS = seconds

        class Callbacks(callbacks.Callbacks):
            def on_train_batch_end(self, batch, logs=None):
                step = self.feed.epoch * self.feed.steps + self.feed.first + batch + 1
                STEP[:] = struct.pack("q", step)
                super().on_train_batch_end(batch, logs)

        fitting.Callbacks = Callbacks
        resume = fitting.can_resume(folder)
        force = not resume and bool(checkpoints.read_run(folder))
        fitting.fit(
            settings, folder, resume=resume, force=force, verbose=0, report=lambda line: None
        )
        code = 0
    except KeyboardInterrupt:
        pass
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def lives(process):
    """Whether a child runs; it is left to be waited for."""
    ended = os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return ended is None


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


def contents(folder):
    """What two runs are compared by: weights, history but for the seconds, pictures."""
    with np.load(folder / "weights.npz") as archive:
        weights = {name: archive[name] for name in archive}
    rows = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    pictures = {p.name: p.read_bytes() for p in (folder / "epochs").iterdir()}
    return weights, [{**row, "seconds": None} for row in rows], pictures


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


def identical(one, other):
    (a, rows, pictures), (b, *rest) = one, other
    arrays = a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
    return arrays and [rows, pictures] == rest


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.1, help="between backups")
    parser.add_argument("--signals", default="KILL", help=f"of {', '.join(SIGNALS)}, with commas")
    parser.add_argument("--over", action="store_true", help="runs replace another one")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    names = arguments.signals.split(",")
    with contextlib.suppress(ImportError):
        importlib.import_module("tensorflow")  # Keras does, at each save
    facts = {"backend": keras.backend.backend(), "kills": 0, "runs": 0, "before_training": 0}
    lost = []
    with tempfile.TemporaryDirectory() as parent:
        if facts["backend"] == "jax":
            import jax

            jax.config.update("jax_compilation_cache_dir", f"{parent}/compiled")
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        alone = Path(parent, "alone")
        start = time.monotonic()
        assert os.waitpid(live(alone, 60.0), 0)[1] == 0, "the run left alone failed"
        whole = time.monotonic() - start
        assert read(alone)
        expected = contents(alone)
        if arguments.over:
            assert os.waitpid(live(Path(parent, "old"), 60.0, OLD), 0)[1] == 0
        while facts["kills"] < arguments.kills or not facts["runs"]:
            folder, seen = Path(parent, f"run-{facts['runs']}"), None
            if arguments.over:
                shutil.copytree(Path(parent, "old"), folder)
            while not finished(folder):
                before = saved(folder)
                STEP[:] = struct.pack("q", before)
                process = live(folder, arguments.seconds)
                if facts["kills"] < arguments.kills:
                    if draw.random() < 0.8:  # once it trains; else anywhere
                        while reached() == before and lives(process):
                            time.sleep(0.001)
                    time.sleep(draw.uniform(0, 0.5))
                    name = draw.choice(names)
                    os.kill(process, SIGNALS[name])
                _, status = os.waitpid(process, 0)
                if status:
                    assert facts["kills"] < arguments.kills, "a resumed run failed"
                    facts["kills"] += 1
                    facts["before_training"] += reached() == before
                    lost.append(reached() - saved(folder))
                model = folder / "model.keras"
                if model.exists() and model.stat().st_mtime_ns != seen:
                    seen = model.stat().st_mtime_ns
                    assert read(folder), "model.keras does not load"
            facts["runs"] += 1
            assert identical(expected, contents(folder)), f"run {facts['runs']} differs"
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

"""Kills a command before each of its file operations in turn, and looks at what is there then and comes of it.

    python benchmarks/kills_at.py --scene import

strace (Linux) counts the calls that make, rename, link or remove a file or folder, and kills the process by SIGKILL at
the nth. What is there has to be whole: a model that loads, the dataset of before or of after, an export that loads.
Then the command is given again (a run goes on by --resume where it can), and has to end as if it had never been killed,
with nothing left behind.

    fit       a run, its prior included          over      a run that replaces another one
    import    a dataset that replaces another    prepare   MNIST
    onnx, saved_model    an export that replaces another one
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from keras_ae import checkpoints, data

CALLS = "mkdir,mkdirat,rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir"
KILLED = -9, 137
SMALL = ["--backbone", "mlp", "--hidden", "8", "--latent-dim", "2", "--limit", "64", "-q"]
FIT = ["fit", "vae", *SMALL, "--epochs", "2", "--out", "run"]
OLD = ["fit", "vae", *SMALL, "--epochs", "3", "--seed", "9", "--out", "run"]


def kae(folder, *arguments, kill=None):
    """`kae` in a folder, killed before its file operation of this number. Returns its exit code."""
    command = [sys.executable, "-m", "kae", *arguments]
    if kill is not None:
        inject = f"inject={CALLS}:signal=KILL:when={kill}"
        command = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={CALLS}", "-e", inject, *command]  # fmt: skip
    return subprocess.run(command, cwd=folder, capture_output=True).returncode


class Fit:
    command = FIT

    def begin(self, folder):
        """Make what is there before the command."""

    def whole(self, folder):
        """Check what a kill left."""
        if (folder / "run" / "model.keras").exists():
            checkpoints.load_model(folder / "run" / "model.keras")

    def again(self, folder):
        """The command that is given after a kill."""
        run = folder / "run"
        return [*FIT, "--resume"] if run.exists() and checkpoints.can_resume(run) else self.command

    def result(self, folder):
        """What comes of the command, to compare."""
        run = folder / "run"
        rows = csv.DictReader((run / "history.csv").read_text().splitlines())
        model = checkpoints.load_model(run / "model.keras")
        files = sorted(p.relative_to(run).as_posix() for p in run.rglob("*"))
        figures = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
        weights = [weight.tobytes() for weight in model.get_weights()]
        pictures = [p.read_bytes() for p in sorted((run / "epochs").iterdir())]
        return files, figures, weights, pictures


class Over(Fit):
    command = [*FIT, "--force"]

    def begin(self, folder):
        assert kae(folder, *OLD) == 0

    def again(self, folder):
        # A kill at the very end leaves nothing to do.
        record = checkpoints.read_run(folder / "run")
        done = record.get("finished") and record["settings"]["seed"] == 0
        return ["info", "run"] if done else super().again(folder)


class Import:
    command = ["data", "import", "mine", "new", "--data-dir", "data", "--force"]

    def begin(self, folder):
        for name, count in (("old", 6), ("new", 9)):
            for i in range(count):
                path = folder / name / "ab"[i % 2] / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((8, 8), 10 * i, np.uint8)).save(path)
        assert kae(folder, "data", "import", "mine", "old", "--data-dir", "data") == 0

    def whole(self, folder):
        assert sum(self.counts(folder)) in (6, 9)

    def counts(self, folder):
        return [len(split.images) for split in data.load_splits("mine", folder / "data")]

    def again(self, folder):
        return self.command

    def result(self, folder):
        left = [p.name for p in (folder / "data" / "mine").iterdir() if "incomplete" in p.name]
        return self.counts(folder), left


class Prepare:
    command = ["data", "prepare", "mnist", "--data-dir", "data"]

    def begin(self, folder):
        """There is nothing."""

    def whole(self, folder):
        if data.is_prepared("mnist", folder / "data"):
            assert data.verify("mnist", folder / "data")

    def again(self, folder):
        return self.command

    def result(self, folder):
        data.verify("mnist", folder / "data")
        return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if "cache" not in str(p))  # fmt: skip


class Export:
    def __init__(self, name):
        self.target = f"model.{name}" if name == "onnx" else "model"
        self.command = ["export", "run", "--format", name, "--out", self.target, "--force"]

    def begin(self, folder):
        assert kae(folder, *OLD) == 0 and kae(folder, *self.command) == 0

    def whole(self, folder):
        target = folder / self.target
        if self.target == "model":
            import tensorflow as tf

            tf.saved_model.load(str(target))
        else:
            import onnxruntime

            onnxruntime.InferenceSession(target)

    def again(self, folder):
        return self.command

    def result(self, folder):
        self.whole(folder)
        # The empty folder of a kill at the very beginning is swept after a minute.
        return sorted(p.name for p in folder.iterdir() if p.is_file() or any(p.iterdir()))


SCENES = {
    "fit": Fit(),
    "over": Over(),
    "import": Import(),
    "prepare": Prepare(),
    "onnx": Export("onnx"),
    "saved_model": Export("saved_model"),
}


def kill_at_each(scene, parent, every):
    """Returns the number of kills, one at each file operation of the command."""
    first = parent / "first"
    first.mkdir()
    scene.begin(first)
    alone = shutil.copytree(first, parent / "alone")
    assert kae(alone, *scene.command) == 0
    expected, kills, number = scene.result(alone), 0, 1
    while True:
        folder = shutil.copytree(first, parent / f"{number}")
        code = kae(folder, *scene.command, kill=number)
        if code not in KILLED:
            assert code == 0, f"ended with {code}, not killed at operation {number}"
            return kills
        kills += 1
        scene.whole(folder)
        code = kae(folder, *scene.again(folder))
        assert code == 0, f"killed at operation {number}, then ended with {code}"
        assert scene.result(folder) == expected, f"killed at operation {number}: it differs"
        shutil.rmtree(folder)
        number += every


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scene", choices=SCENES, required=True)
    parser.add_argument("--every", type=int, default=1, help="kill at each nth operation alone")
    arguments = parser.parse_args()
    if shutil.which("strace") is None:
        sys.exit("strace is not installed.")
    with tempfile.TemporaryDirectory() as parent:
        kills = kill_at_each(SCENES[arguments.scene], Path(parent), arguments.every)
    facts = {
        "scene": arguments.scene,
        "backend": os.environ.get("KERAS_BACKEND", "torch"),
        "kills": kills,
    }
    print(json.dumps({**facts, "lost": 0}))


if __name__ == "__main__":
    main()

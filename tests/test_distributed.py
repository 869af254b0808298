"""Several real processes, and several devices of one, make the run of one process."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from keras_ae import distributed
from keras_ae.errors import UserError

# 100 images in batches of 24, 24, 24, 24 and 4, the test images in one of 100.
SMALL = ["--limit", "100", "--batch-size", "24", "--latent-dim", "3", "--epochs", "2", "--quiet"]
CONV = [*SMALL, "--hidden", "4,8,16"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "kae"]


@pytest.fixture
def start(mnist_dir, shared_tmp, tmp_path):
    """A function that starts `python -m …` in a folder of this test."""
    kept = {k: v for k, v in os.environ.items() if k not in ("KERAS_BACKEND", "TFDS_DATA_DIR")}
    paths = {"KAE_DATA_DIR": str(mnist_dir), "KAE_CACHE": str(shared_tmp / "cache")}

    def popen(*arguments, **environment):
        return subprocess.Popen(
            [sys.executable, "-m", *map(str, arguments)],
            cwd=tmp_path,
            env={**kept, **paths, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return popen


@pytest.fixture
def run(start):
    """A function that runs `python -m …`: its exit code, stdout, and the lines that are an error's."""

    def finished(*arguments, **environment):
        process = start(*arguments, **environment)
        out, err = process.communicate(timeout=200)
        errors = [line for line in err.splitlines() if line.startswith("Error: ")]
        assert process.returncode or not errors, err
        return process.returncode, out, errors

    return finished


def figures(folder):
    """The history of a run as an array, without the seconds."""
    rows = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    return np.array([[float(v) for k, v in row.items() if k != "seconds"] for row in rows])


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "options", "tolerance"),
    [
        ("cvae", [*SMALL, "--backbone", "mlp", "--hidden", "16,8"], 1e-5),
        ("vae", [*SMALL, "--backbone", "mlp", "--hidden", "16,8", "--binarize"], 1e-5),
        ("vae", [*SMALL, "--backbone", "mlp", "--hidden", "16,8", "--kl-weight", "auto"], 1e-5),
        # Batch statistics from sums over two processes are rounded otherwise.
        ("cvae", CONV, 2e-3),
    ],
    ids=["mlp", "binarize", "auto", "conv"],
)
def test_two_processes_make_the_run_of_one(run, tmp_path, model, options, tolerance):
    assert run("kae", "fit", model, *options, "--out", "one")[0] == 0
    code, out, _ = run(*TORCHRUN, "fit", model, *options, "--out", "two", "--json")
    assert code == 0
    assert json.loads(out)["epochs"] == 2 and out.count("\n") == 1  # one process speaks
    np.testing.assert_allclose(figures(tmp_path / "two"), figures(tmp_path / "one"), rtol=tolerance)
    files = {p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*")}
    assert {p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*")} == files
    about = json.loads((tmp_path / "two" / "run.json").read_text())
    assert about["finished"] and about["environment"]["processes"] == 2
    pictures = [
        np.array(Image.open(tmp_path / n / "epochs/002.png"), float) for n in ("one", "two")
    ]
    assert np.abs(pictures[0] - pictures[1]).mean() < 1.0


@pytest.mark.long
def test_a_lost_worker_ends_the_run_with_one_line_and_a_backup(start, run, tmp_path):
    options = ["fit", "cvae", *CONV[:-3], "--quiet", "--hidden", "4,8,16", "--out", "run"]
    options[options.index("--epochs") + 1] = "300"
    torchrun = start(*TORCHRUN, *options)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "epochs" / "002.png").exists():
        assert torchrun.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text()
    for child in map(int, children.split()):
        if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes():
            os.kill(child, signal.SIGKILL)
    _, err = torchrun.communicate(timeout=120)
    assert torchrun.returncode == 1
    errors = [line for line in err.splitlines() if line.startswith("Error: ")]
    # Once in many runs gloo does not notice, and torchrun kills.
    if "forcefully exiting" not in err:
        assert len(errors) == 1 and "--resume" in errors[0] and "encountered" not in errors[0], err
    assert "kae/" not in err  # no traceback of ours
    # What is left can be gone on with, by one process as well.
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    settings["settings"]["epochs"] = len(list((tmp_path / "run" / "epochs").glob("*.png"))) + 1
    (tmp_path / "run" / "run.json").write_text(json.dumps(settings))
    code, _, errors = run("kae", "fit", "cvae", "--resume", "--out", "run", "--quiet")
    assert code == 0, errors
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"]


@pytest.mark.long
def test_what_the_first_process_refuses_is_said_once(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, errors = run(*TORCHRUN, "fit", "vae", *SMALL, "--out", "file/run")
    assert (code, out) == (1, "") and len(errors) == 1 and "file/run" in errors[0]


@pytest.mark.long
def test_two_devices_of_jax_make_the_run_of_one(run, tmp_path):
    """100 images in batches of 24, and of 4; 99 test images would not divide, nor do 25 an epoch."""
    for name, flags in (("one", ""), ("two", "--xla_force_host_platform_device_count=2")):
        code, _, errors = run(
            "kae", "fit", "cvae", *CONV, "--out", name, KERAS_BACKEND="jax", XLA_FLAGS=flags
        )
        assert code == 0, errors
    np.testing.assert_allclose(figures(tmp_path / "two"), figures(tmp_path / "one"), rtol=2e-3)
    about = [json.loads((tmp_path / n / "run.json").read_text()) for n in ("one", "two")]
    assert [a["environment"]["devices"] for a in about] == [1, 2]


@pytest.mark.long
def test_batches_that_do_not_divide_by_the_devices(run, tmp_path):
    options = [
        "--limit",
        "33",
        "--batch-size",
        "9",
        "--backbone",
        "mlp",
        "--hidden",
        "8",
        "--quiet",
    ]
    flags = {"KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    code, _, errors = run("kae", "fit", "vae", *options, "--epochs", 1, "--out", "odd", **flags)
    assert code == 0, errors


MIRRORED = """
import contextlib, json, os, signal, sys
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
import keras_ae, keras
for folder, several, arguments in json.loads(sys.argv[1]):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]) if several else None
    with strategy.scope() if several else contextlib.nullcontext():
        keras_ae.fit(keras_ae.Settings(**arguments), folder, verbose=0, report=lambda line: None)
settings, again = keras_ae.Settings(**arguments), {"verbose": 0, "report": lambda line: None}
class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        os.kill(os.getpid(), signal.SIGTERM)
with strategy.scope():
    with contextlib.suppress(KeyboardInterrupt):
        keras_ae.fit(settings, "stopped", callbacks=[Stop()], **again)
    keras_ae.fit(settings, "stopped", resume=True, **again)
    vae = keras_ae.VAE((8, 8, 1), 2, "mlp", (4,))
    auto = keras_ae.VAE((28, 28, 1), 2, "mlp", (4,), kl_weight="auto")
    auto.compile(keras_ae.Adam(1e-3))
    auto.fit(keras_ae.data.load_splits("mnist", limit=64)[0].images, batch_size=8, verbose=0)
one, other = map(float, strategy.experimental_local_results(auto.likelihood_scale.value))
assert one == other > 0
assert vae.sample(5).shape == (5, 8, 8, 1)  # not five of each device
"""


@pytest.mark.long
def test_two_devices_of_tensorflow_by_mirrored_strategy(mnist_env, tmp_path):
    """100 images in batches of 24 and 4; then 25 in batches of 8 and 1, which is filled up to 2."""
    small = {"model": "vae", "backbone": "mlp", "hidden": [16, 8], "latent_dim": 3, "epochs": 2}
    sizes = {
        "even": {"limit": 100, "batch_size": 24},
        "odd": {"limit": 25, "batch_size": 8},
    }
    runs = [(f"{name}{n}", n == 2, small | sizes[name]) for name in sizes for n in (1, 2)]
    subprocess.run(
        [sys.executable, "-c", MIRRORED, json.dumps(runs)],
        cwd=tmp_path, env={**os.environ, "KERAS_BACKEND": "tensorflow"}, check=True, timeout=200,
    )  # fmt: skip
    for name in sizes:
        folders = [tmp_path / f"{name}{n}" for n in (1, 2)]
        with open(folders[0] / "history.csv") as file:
            columns = [c for c in next(csv.reader(file)) if c != "seconds"]
        for column, one, two in zip(columns, *(figures(folder).T for folder in folders)):
            # An image that is taken twice is one with other noise.
            tolerance = 1e-5 if "kl_weight" in column else 1e-3 if name == "even" else 5e-2
            np.testing.assert_allclose(two, one, rtol=tolerance, err_msg=f"{name} {column}")
        sizes_of = [Image.open(folder / "epochs/002.png").size for folder in folders]
        assert sizes_of[0] == sizes_of[1]
    whole, resumed = (figures(tmp_path / name) for name in ("odd2", "stopped"))
    np.testing.assert_allclose(resumed, whole, rtol=1e-5)
    about = json.loads((tmp_path / "odd2" / "run.json").read_text())
    assert about["finished"] and about["environment"]["devices"] == 2


@pytest.mark.long
def test_torchrun_is_for_torch(run):
    code, _, errors = run(
        "kae", "fit", "vae", *SMALL, KERAS_BACKEND="jax", WORLD_SIZE="2", RANK="0"
    )
    assert code == 1 and "torchrun is for KERAS_BACKEND=torch" in errors[0]


def test_alone_nothing_is_shared():
    assert (distributed.size(), distributed.rank(), distributed.devices()) == (1, 0, 1)
    assert np.arange(5)[distributed.local_rows(5, 1)].tolist() == [0, 1, 2, 3, 4]
    assert distributed.total_over_processes(7) == 7 and distributed.on_first(lambda: 3) == 3
    assert distributed.first_to_speak()


@pytest.mark.parametrize("n", [1, 2, 3, 7, 24])
def test_the_shares_of_all_are_the_batch(monkeypatch, n):
    monkeypatch.setattr(distributed, "size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(distributed.local_rows(n, 1))
    if n < 3:  # too few for all: all take the same
        assert all(share.tolist() == list(range(n)) for share in shares)
    else:
        assert sorted(np.concatenate(shares)) == list(range(n))


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="torchrun is for torch")
def test_more_processes_than_gpus_and_processes_that_do_not_meet(monkeypatch):
    import torch

    monkeypatch.setenv("LOCAL_RANK", "1")
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        with pytest.raises(UserError, match="process 1 on this machine, which has 1 GPUs"):
            distributed.start()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def fail(backend):
        raise RuntimeError("The client socket has timed out\nat line 7")

    monkeypatch.setattr(torch.distributed, "init_process_group", fail)
    with pytest.raises(UserError, match="cannot connect to each other: The client socket has"):
        distributed.start()

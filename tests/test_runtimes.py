"""One checkpoint on every backend: the same pictures and codes, and runs that change the backend."""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_ae import CVAE, Adam, Settings, building, checkpoints, fitting

BACKEND = keras.backend.backend()
TRAINING = ("torch", "jax", "tensorflow")
NEEDS = {
    "torch": ["torch"],
    "jax": ["jax"],
    "tensorflow": ["tensorflow"],
    "numpy": ["jax", "scipy"],
    "openvino": ["openvino", "scipy"],
}
ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.long

# On another backend than these two, runs as if torch and tensorflow were not installed.
EVERYTHING = """
import os, sys

class NotInstalled:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ("torch", "tensorflow"):
            raise ModuleNotFoundError(name)

if os.environ["KERAS_BACKEND"] not in ("torch", "tensorflow"):
    sys.meta_path.insert(0, NotInstalled)
import numpy as np
from kae.main import cli
cli(["sample", "cvae.keras", "5", "--seed", "7", "-n", "9", "--out", sys.argv[1] + ".npy"],
    standalone_mode=False)
from keras_ae import checkpoints
model = checkpoints.load_model("cvae.keras")
images, labels = np.load("images.npy"), np.load("labels.npy")
np.savez(sys.argv[1] + ".npz", reconstruction=model.reconstruct((images, labels)),
         code=model.encode((images, labels)))
"""


def run(backend, *command, cwd=None):
    environment = os.environ | {"KERAS_BACKEND": backend}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def installed(backend):
    if not all(map(importlib.util.find_spec, NEEDS[backend])):
        pytest.skip(f"{' and '.join(NEEDS[backend])} are not installed")


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """A folder with a CVAE trained here on a few digits, and what this backend makes of it."""
    images, labels = digits[0][:600], digits[1][:600]
    model = CVAE(latent_dim=8, hidden=(8, 8, 32))
    if BACKEND in TRAINING:
        model.compile(Adam(2e-3))
        model.fit((images, labels), epochs=1, verbose=0)
    model.fit_prior((images, labels))
    folder = tmp_path_factory.mktemp("trained")
    checkpoints.save_model(model, folder / "cvae.keras")
    np.save(folder / "images.npy", images[:10])
    np.save(folder / "labels.npy", labels[:10])
    return folder, model


@pytest.mark.parametrize("backend", NEEDS)
def test_every_backend_makes_the_same_of_a_checkpoint(trained, backend):
    installed(backend)
    folder, model = trained
    run(backend, "-c", EVERYTHING, backend, cwd=folder)
    pictures = np.load(folder / f"{backend}.npy").astype(float)
    assert pictures.shape == (9, 28, 28, 1) and pictures.std() > 1
    expected = model.sample(9, 5, seed=7) * 255
    assert abs(pictures - expected).max() <= 1
    inputs = np.load(folder / "images.npy"), np.load(folder / "labels.npy")
    made = np.load(folder / f"{backend}.npz")
    np.testing.assert_allclose(made["reconstruction"], model.reconstruct(inputs), atol=1e-4)
    np.testing.assert_allclose(made["code"], model.encode(inputs), atol=1e-4, rtol=1e-4)


def test_a_newer_format_is_refused_in_one_line(trained, tmp_path):
    folder, _ = trained
    path = tmp_path / "newer.keras"
    with zipfile.ZipFile(folder / "cvae.keras") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                assert config["config"]["format"] == 2
                config["config"]["format"] = 3
                content = json.dumps(config)
            new.writestr(name, content)
    with pytest.raises(checkpoints.CheckpointError, match="of format 3.* upgrade") as caught:
        checkpoints.load_model(path)
    assert "\n" not in str(caught.value)


COPY_BACKUP = """
import sys
from keras_ae import building, checkpoints, data, resuming
settings = resuming.stored_settings(sys.argv[1])
train, _ = data.load_splits("mnist", limit=settings.limit)
model = building.build_model(settings, train)
model.compile(building.build_optimizer(settings, 6))
checkpoints.write_backup(sys.argv[2], model, checkpoints.read_backup(sys.argv[1], model))
"""


@pytest.mark.skipif(BACKEND not in TRAINING, reason="Keras cannot train on this backend")
@pytest.mark.parametrize("backend", TRAINING)
def test_a_run_goes_on_on_another_backend(mnist_env, tmp_path, monkeypatch, backend):
    installed(backend)
    if backend == BACKEND:
        pytest.skip("is this backend")
    settings = Settings("vae", hidden=(4, 4, 16), latent_dim=3, epochs=2, limit=300)
    write = checkpoints.write_backup

    def write_and_stop(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "write_backup", write_and_stop)
    with pytest.raises(KeyboardInterrupt):
        fitting.fit(settings, tmp_path / "run", verbose=0)

    # Weights, averages, optimizer and history carry over to the last bit.
    run(backend, "-c", COPY_BACKUP, tmp_path / "run", tmp_path / "copy")
    one, other = (np.load(tmp_path / name / "backup" / "state.npz") for name in ("run", "copy"))
    assert set(one.files) == set(other.files)
    for name in one.files:
        np.testing.assert_array_equal(one[name], other[name])

    run(backend, "-m", "kae", "fit", "vae", "--resume", "--quiet", "--out", tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["finished"] and about["environment"]["backend"] == backend
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 3


@pytest.mark.skipif(BACKEND not in TRAINING, reason="Keras cannot train on this backend")
@pytest.mark.parametrize("name", ["ae", "cvae"])
def test_mixed_precision_trains_and_saves_float32(digits, tmp_path, name):
    from types import SimpleNamespace

    images, labels = digits[0][:200], digits[1][:200]
    train = SimpleNamespace(images=images, labels=labels, num_classes=10, class_names=None)
    settings = Settings(name, latent_dim=3, hidden=(4, 4, 16), dtype="mixed_bfloat16")
    model = building.build_model(settings, train)
    assert keras.config.dtype_policy().name == "float32"
    layer = model.encoder.get_layer("dense_0")
    assert layer.compute_dtype == "bfloat16" and layer.kernel.dtype == "float32"
    model.compile(Adam(1e-3))
    inputs = (images, labels) if name == "cvae" else images
    history = model.fit(inputs, epochs=2, batch_size=50, verbose=0).history
    assert history["loss"][1] < history["loss"][0]
    codes = model.encode(inputs)
    assert codes.dtype == np.float32 and model.reconstruct(inputs).dtype == np.float32

    checkpoints.save_model(model, tmp_path / "model.keras")
    loaded = checkpoints.load_model(tmp_path / "model.keras")
    assert loaded.compute_dtype == loaded.encoder.get_layer("dense_0").compute_dtype == "float32"
    assert {w.dtype for w in loaded.weights} == {"float32"}
    np.testing.assert_allclose(loaded.encode(inputs), codes, atol=0.1 * codes.std() + 0.02)


@pytest.mark.skipif("CI" not in os.environ, reason="installs packages: in CI only")
def test_the_slim_installation_samples(trained, tmp_path):
    folder, model = trained
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "slim"], check=True)
    pip = [tmp_path / "slim" / "bin" / "python", "-m", "pip", "install", "-q"]
    constraints = ["-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, *constraints, "-r", ROOT / "requirements-slim.txt"], check=True)
    subprocess.run([*pip, "--no-deps", ROOT], check=True)
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    command = [tmp_path / "slim" / "bin" / "kae", "sample", folder / "cvae.keras", "5"]
    out = ["-n", "9", "--seed", "7", "--out", tmp_path / "fives.npy"]
    subprocess.run([*command, *out], check=True, env=environment)
    assert abs(np.load(tmp_path / "fives.npy") - model.sample(9, 5, seed=7) * 255).max() <= 1

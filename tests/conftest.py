"""Real digits for every test, in any image shape, and real MNIST, prepared once per session."""

import fcntl
import lzma
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; two workers share the cores
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest

import keras_ae

# A background job ignores Ctrl-C and SIGQUIT, and a job of nohup ignores SIGHUP. The processes that the tests
# send these signals to would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("SIGQUIT", "SIGHUP", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU"):
    if hasattr(signal, name):
        signal.signal(getattr(signal, name), signal.SIG_DFL)

MNIST = Path(keras_ae.__file__).parent / "data" / "mnist"


def embedded(name):
    """Reads the array in one of the package's IDX files."""
    raw = lzma.decompress((MNIST / f"{name}.xz").read_bytes())
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">i4", dimensions, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


@pytest.fixture(scope="session")
def digits():
    """The 10,000 test images of MNIST, uint8 (N, 28, 28, 1), and their labels (N,)."""
    images, labels = embedded("t10k-images-idx3-ubyte"), embedded("t10k-labels-idx1-ubyte")
    return images[..., None].copy(), labels.astype("int64")


@pytest.fixture(scope="session")
def images_of(digits):
    """A function that returns the first n digits in an image shape up to 32 x 32, cropped or padded."""

    def make(shape, n):
        height, width, channels = shape
        large = np.pad(digits[0][: n + channels, ..., 0], ((0, 0), (2, 2), (2, 2)))
        top, left = (32 - height) // 2, (32 - width) // 2
        cropped = large[:, top : top + height, left : left + width]
        return np.stack([cropped[c : n + c] for c in range(channels)], axis=-1)

    return make


@pytest.fixture(scope="session")
def shared_tmp(tmp_path_factory):
    """A folder of this session. All workers of xdist share it."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def once(shared_tmp):
    """A function that runs `make(folder)` when a worker is the first one to ask for a name.

    It returns the folder. The other workers wait until the first one is done.
    """

    def get(name, make):
        folder = shared_tmp / name
        with open(shared_tmp / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (shared_tmp / f"{name}.done").exists():
                folder.mkdir(exist_ok=True)
                make(folder)
                (shared_tmp / f"{name}.done").touch()
        return folder

    return get


@pytest.fixture(scope="session")
def mnist_dir(once, shared_tmp):
    """A data directory with real MNIST, which is also in the cache in the folder `cache`."""
    environment = {**os.environ, "KAE_CACHE": str(shared_tmp / "cache")}
    script = "import sys; from keras_ae import data; data.load_splits('mnist', sys.argv[1])"

    def prepare(folder):
        subprocess.run([sys.executable, "-c", script, str(folder)], env=environment, check=True)

    return once("mnist-of-the-suite", prepare)


@pytest.fixture
def mnist_env(mnist_dir, shared_tmp, monkeypatch):
    """Makes `keras_ae.data` use real MNIST in this process and its children."""
    monkeypatch.setenv("KAE_DATA_DIR", str(mnist_dir))
    monkeypatch.setenv("KAE_CACHE", str(shared_tmp / "cache"))


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a file system of a given size; skips the test if that is not allowed."""
    mounted = []

    def mount(size):
        folder = tmp_path / "small"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("nothing can be mounted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)

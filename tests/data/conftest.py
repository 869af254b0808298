"""Real MNIST, prepared once a session, and a maker of small datasets in every shape."""

import fcntl
import gzip
import hashlib
import io
import json
import lzma
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_ae import data
from keras_ae.data import builders

PREPARE = """
import json, sys, time
from keras_ae import data
lines = []
data.prepare("mnist", sys.argv[1], progress=lines.append)
cpu = time.process_time()
memory = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
modules = [m for m in ("tensorflow", "keras", "torch", "jax") if m in sys.modules]
mib = int(memory.split()[1]) / 1024
json.dump(dict(cpu=cpu, mib=mib, modules=modules, lines=lines), sys.stderr)
"""


@pytest.fixture(scope="session")
def shared_tmp(tmp_path_factory):
    """A folder of this session; one for all workers under xdist."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(autouse=True)
def own_places(tmp_path, shared_tmp, monkeypatch):
    """No test touches the data directory or the cache of whoever runs it, or uses a proxy."""
    monkeypatch.setenv("KAE_CACHE", str(shared_tmp / "cache"))
    monkeypatch.setenv("KAE_DATA_DIR", str(tmp_path / "data"))
    for name in (
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def mnist(shared_tmp):
    """(data directory with real MNIST, what preparing it in a process of its own took)."""
    data_dir, report = shared_tmp / "mnist-data", shared_tmp / "mnist-report.json"
    with open(shared_tmp / "mnist-lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one xdist worker prepares, the others wait
        if not report.exists():
            command = [sys.executable, "-c", PREPARE, str(data_dir)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            assert done.stdout == ""
            report.write_text(done.stderr)  # nothing but the report may be on stderr
    return data_dir, json.loads(report.read_text())


@pytest.fixture
def run_python():
    """Runs a script in a process of its own and returns its CompletedProcess."""

    def run(script, *args, **env):
        command = [sys.executable, "-c", script, *map(str, args)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, env={**os.environ, **env}
        )

    return run


def png(array):
    """uint8 or uint16 (H, W, C) as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def encode():
    return png


@pytest.fixture
def repeat_scan():
    """A function: a JPEG whose last scan comes so many times more."""

    def repeat(content, times):
        start = content.rindex(b"\xff\xda")
        return content[:start] + content[start:-2] * times + content[start:]

    return repeat


@pytest.fixture
def make_dataset(tmp_path):
    """Prepares a small dataset with the stock writer of TFDS and returns its data.Prepared.

    `splits` maps a split to (images, labels); without `features`, images are arrays of one shape.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    def make(
        splits,
        name="toy",
        features=None,
        supervised_keys=None,
        shards=None,
        tfrecord=False,
        data_dir=None,
    ):
        if features is None:
            images, labels = next(iter(splits.values()))
            features = {"image": tfds.features.Image(shape=images[0].shape)}
            if labels is not None:
                features["label"] = tfds.features.ClassLabel(names=["cat", "dog", "owl"])

        def info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=supervised_keys,
                disable_shuffling=True,  # records in the order given, so that tests can compare
            )

        def generate(self, images, labels):
            for key, image in enumerate(images):
                example = image if isinstance(image, dict) else {"image": image}
                if isinstance(image, np.ndarray):
                    example = {"image": png(image)}
                if labels is not None:
                    example["label"] = labels[key]
                yield key, example

        members = {
            "VERSION": tfds.core.Version("3.0.1"),
            "name": name,
            "_info": info,
            "_generate_examples": generate,
            "_split_generators": lambda self, dl: {
                split: self._generate_examples(*content) for split, content in splits.items()
            },
        }
        data_dir = data_dir or tmp_path / "data"
        with registered.skip_registration():
            builder = type("Toy", (tfds.core.GeneratorBasedBuilder,), members)(
                data_dir=data_dir, file_format="array_record"
            )
        config = tfds.download.DownloadConfig(num_shards=shards, try_download_gcs=False)
        builder.download_and_prepare(download_dir=tmp_path / "downloads", download_config=config)
        prepared = next(p for p in data.available(data_dir) if p.name == name)
        return as_tfrecord(prepared) if tfrecord else prepared

    return make


def as_tfrecord(prepared):
    """Writes the records again as TFRecord files, with an implementation of its own."""
    from array_record.python.array_record_module import ArrayRecordReader

    for old in prepared.path.glob("*.array_record-*"):
        with open(str(old).replace("array_record", "tfrecord"), "wb") as file:
            for record in ArrayRecordReader(str(old)).read_all():
                header = struct.pack("<Q", len(record))
                file.write(header + struct.pack("<I", masked_crc(header)))
                file.write(record + struct.pack("<I", masked_crc(record)))
        old.unlink()
    info = prepared.path / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    return data.available(prepared.path.parents[1])[0]


def masked_crc(content):
    """The masked CRC-32C of a record of TFRecord, by its definition."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
IDX_NAMES += ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture
def idx(tmp_path, monkeypatch):
    """Small IDX files that pass for those of mnist: (folder writer, contents by name).

    `write(suffix)` writes them plain ("") or packed (".gz", ".xz") and returns the folder.
    """
    rng = np.random.default_rng(1)
    contents = {}
    for prefix, count in (("train", 60), ("t10k", 20)):
        for kind, shape in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
            body = rng.integers(0, 256 if len(shape) == 3 else 10, shape, np.uint8)
            contents[f"{prefix}-{kind}-ubyte"] = header + body.tobytes()
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(builders.MNIST, "content_sha256", hashes)
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}

    def write(suffix=".gz", folder=tmp_path / "source"):
        folder.mkdir(exist_ok=True)
        for name, content in contents.items():
            (folder / f"{name}{suffix}").write_bytes(pack[suffix](content))
        return Path(folder)

    return write, contents


def idx_images(content):
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28, 1)


@pytest.fixture
def same_images():
    """Whether images are those of an IDX file, in any order: TFDS shuffles what it writes."""

    def same(images, content):
        expected = idx_images(content)
        return sorted(i.tobytes() for i in images) == sorted(i.tobytes() for i in expected)

    return same


@pytest.fixture
def reference_crc():
    """The checksum of a record by its definition, a bit at a time."""
    return masked_crc

"""Every way a dataset gets on disk, and every way it fails to."""

import functools
import gzip
import hashlib
import http.server
import io
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from keras_ae import data
from keras_ae.data import builders, preparing


def one_line(error):
    text = str(error.value)
    assert text and "\n" not in text and "Traceback" not in text
    return text


def nothing_left(data_dir):
    return not data_dir.exists() or not [
        p for p in data_dir.rglob("*") if "downloads" not in str(p)
    ]


# From a folder


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_from_a_folder(idx, suffix, tmp_path, same_images):
    write, contents = idx
    prepared = data.prepare("mnist", source=write(suffix))
    assert prepared.splits == {"train": 60, "test": 20}
    assert prepared.path == tmp_path / "data" / "mnist" / "3.0.1"
    assert same_images(data.load("mnist", "train").images, contents["train-images-idx3-ubyte"])
    labels = np.frombuffer(contents["t10k-labels-idx1-ubyte"], np.uint8, offset=8)
    assert sorted(data.load("mnist", "test").labels) == sorted(labels)
    assert not list(tmp_path.rglob("downloads"))


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_flipped_byte_is_refused(idx, suffix, name, tmp_path):
    path = idx[0](suffix) / f"{name}{suffix}"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(data.DataError) as error:
        data.prepare("mnist", source=path.parent)
    assert str(path) in one_line(error) and "get the file again" in str(error.value)
    assert nothing_left(tmp_path / "data")


def test_a_cut_file_is_refused(idx, tmp_path):
    path = idx[0](".gz") / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(data.DataError, match="cannot be unpacked"):
        data.prepare("mnist", source=path.parent)
    assert nothing_left(tmp_path / "data")


def test_a_missing_file_and_a_missing_folder(idx, tmp_path):
    source = idx[0](".gz")
    (source / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(data.DataError, match="has no t10k-labels-idx1-ubyte"):
        data.prepare("mnist", source=source)
    with pytest.raises(data.DataError, match="there is no folder"):
        data.prepare("mnist", source=tmp_path / "nowhere")
    with pytest.raises(data.DataError, match="cifar10 cannot be prepared from a folder"):
        data.prepare("cifar10", source=source)


def test_files_of_another_dataset_are_refused(idx, monkeypatch):
    """The files of mnist and fashion_mnist have the same names."""
    with pytest.raises(data.DataError, match="not the original train-images.* of fashion_mnist"):
        data.prepare("fashion_mnist", source=idx[0](""))


def test_an_original_download_that_only_its_checksum_is_known_of(idx, monkeypatch):
    source = idx[0](".gz")
    know_downloads(monkeypatch, builders.KMNIST, source)
    data.prepare("kmnist", source=source)
    assert data.load("kmnist", "test").class_names[0] == "o"


def test_a_repacked_file_of_unknown_content_is_refused(idx, monkeypatch):
    source = idx[0](".gz")
    know_downloads(monkeypatch, builders.KMNIST, source)
    path = source / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1, mtime=5))
    with pytest.raises(data.DataError, match="of kmnist, only the unchanged download"):
        data.prepare("kmnist", source=source)


FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.long
@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_real_fashion_mnist():
    data.prepare("fashion_mnist", source=FASHION)
    report = data.verify("fashion_mnist")
    assert report["splits"]["train"]["genuine"] and report["splits"]["test"]["genuine"]


def emnist_archive(folder):
    """A gzip.zip with the config "digits": 3 training images and 2 test images."""
    folder.mkdir()
    images = {"train": np.arange(3 * 784).reshape(3, 28, 28) % 251, "test": np.zeros((2, 28, 28))}
    with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
        for split, pixels in images.items():
            stem = f"gzip/emnist-digits-{split}"
            header = b"\0\0\x08\x03" + struct.pack(">3I", *pixels.shape)
            content = header + pixels.astype(np.uint8).tobytes()
            archive.writestr(f"{stem}-images-idx3-ubyte.gz", gzip.compress(content))
            labels = b"\0\0\x08\x01" + struct.pack(">I", len(pixels)) + bytes(range(len(pixels)))
            archive.writestr(f"{stem}-labels-idx1-ubyte.gz", gzip.compress(labels))
    return images["train"].astype(np.uint8)


def test_emnist_comes_out_upright(tmp_path, monkeypatch):
    stored = emnist_archive(tmp_path / "source")
    know_downloads(monkeypatch, builders.EMNIST, tmp_path / "source")
    prepared = data.prepare("emnist/digits", source=tmp_path / "source")
    assert prepared.name == "emnist/digits"
    train = data.load("emnist/digits", "train")
    for image, label in zip(train.images, train.labels, strict=True):
        assert np.array_equal(image[..., 0], stored[label].T)
    # "emnist" is the default config, which is another one.
    with pytest.raises(data.DataError, match="emnist is not in"):
        offline(monkeypatch)
        data.load("emnist", "train")


def test_a_default_config_is_found_without_the_file_that_names_it(tmp_path, monkeypatch):
    """As in a copy of the folders of its configs alone."""
    emnist_archive(tmp_path / "source")
    know_downloads(monkeypatch, builders.EMNIST, tmp_path / "source")
    data.prepare("emnist/digits", source=tmp_path / "source")
    folder = tmp_path / "data" / "emnist"
    (folder / "digits").rename(folder / "byclass")
    shutil.rmtree(folder / ".config")
    assert data.prepare("emnist").path == folder / "byclass" / "3.1.0"


def test_emnist_needs_its_archive(idx, tmp_path, monkeypatch):
    with pytest.raises(data.DataError, match="has no gzip.zip"):
        data.prepare("emnist/digits", source=idx[0]())
    emnist_archive(tmp_path / "emnist")
    with pytest.raises(data.DataError, match="not the original gzip.zip of emnist"):
        data.prepare("emnist/digits", source=tmp_path / "emnist")
    # Of the configs TFDS notes down which is the default one, and that stays.
    assert [p.name for p in (tmp_path / "data" / "emnist").iterdir()] == [".config"]


# From the network, which here is a server on this machine


def know_downloads(monkeypatch, builder, folder, url=None):
    """Lets the files in `folder` pass for the originals of a dataset, at `url` if given."""
    from tensorflow_datasets.core.download import checksums

    url = url or builder.URL
    infos = {}
    for path in folder.iterdir():
        address = url if url.endswith(path.name) else url + path.name
        infos[address] = checksums.UrlInfo(
            size=path.stat().st_size,
            checksum=hashlib.sha256(path.read_bytes()).hexdigest(),
            filename=path.name,
        )
    monkeypatch.setattr(builder, "url_infos", infos)
    monkeypatch.setattr(builder, "URL", url)


@pytest.fixture
def serve(tmp_path):
    """Serves a folder over HTTP and returns its URL."""
    servers = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    def start(folder):
        handler = functools.partial(Quiet, directory=folder)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_download(idx, monkeypatch, serve, same_images, capfd):
    source = idx[0](".gz")
    know_downloads(monkeypatch, builders.KMNIST, source, serve(source))
    lines = []
    data.prepare("kmnist", progress=lines.append)
    assert lines[0] == "downloading kmnist from 127.0.0.1 …"
    assert lines[1].startswith("preparing kmnist 3.0.1 in ") and len(lines) == 2
    assert same_images(data.load("kmnist", "train").images, idx[1]["train-images-idx3-ubyte"])
    assert capfd.readouterr() == ("", "")


def test_progress_can_print(idx, capsys):
    data.prepare("mnist", source=idx[0](), progress=print)
    assert capsys.readouterr().out.startswith("preparing mnist 3.0.1 in ")


def test_downloads_of_a_family_do_not_mix(idx, tmp_path, monkeypatch, serve, same_images):
    """All of the family call their files alike, and TFDS would reuse what it unpacked."""
    write, contents = idx
    source = write(".gz")
    know_downloads(monkeypatch, builders.KMNIST, source, serve(source))
    data.prepare("kmnist")
    other = tmp_path / "other"
    other.mkdir()
    for name, content in contents.items():
        flipped = (
            content[:16] + bytes(255 - b for b in content[16:]) if "images" in name else content
        )
        (other / f"{name}.gz").write_bytes(gzip.compress(flipped))
        contents[name] = flipped
    monkeypatch.setattr(builders.FashionMNIST, "content_sha256", {})
    know_downloads(monkeypatch, builders.FashionMNIST, other, serve(other))
    data.prepare("fashion_mnist")
    loaded = data.load("fashion_mnist", "train").images
    assert same_images(loaded, contents["train-images-idx3-ubyte"])


def test_a_download_with_the_wrong_checksum(idx, tmp_path, monkeypatch, serve):
    source = idx[0](".gz")
    know_downloads(monkeypatch, builders.KMNIST, source, serve(source))
    (source / "train-labels-idx1-ubyte.gz").write_bytes(b"not it")
    with pytest.raises(data.DataError) as error:
        data.prepare("kmnist")
    assert "wrong checksum" in one_line(error)
    assert nothing_left(tmp_path / "data")


def test_a_file_that_rotted_in_the_download_folder(idx, tmp_path, monkeypatch, serve):
    """TFDS takes what is there without another look."""
    source = idx[0](".gz")
    know_downloads(monkeypatch, builders.KMNIST, source, serve(source))
    prepared = data.prepare("kmnist")
    for path in prepared.path.iterdir():
        path.unlink()
    prepared.path.rmdir()
    (cached,) = (tmp_path / "data" / "downloads" / "kmnist").glob("*train-labels*.gz")
    cached.write_bytes(cached.read_bytes()[:-1] + b"?")
    with pytest.raises(data.DataError, match="not the original train-labels"):
        data.prepare("kmnist")


def test_a_file_that_the_server_does_not_have(idx, monkeypatch, serve):
    source = idx[0](".gz")
    know_downloads(monkeypatch, builders.KMNIST, source, serve(source))
    (source / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(data.DataError) as error:
        data.prepare("kmnist")
    assert "cannot be downloaded" in one_line(error) and "404" in str(error.value)


def test_a_server_that_is_out_of_order(idx, monkeypatch, serve):
    """TFDS alone would try eleven times, for more than three minutes."""
    monkeypatch.setattr(
        http.server.SimpleHTTPRequestHandler, "do_GET", lambda self: self.send_error(503)
    )
    source = idx[0](".gz")
    know_downloads(monkeypatch, builders.KMNIST, source, serve(source))
    start = time.monotonic()
    with pytest.raises(data.DataError) as error:
        data.prepare("kmnist")
    assert time.monotonic() - start < 10
    assert "cannot be downloaded" in one_line(error)


def test_what_was_downloaded_before_needs_no_network(idx, monkeypatch, serve):
    source = idx[0](".gz")
    know_downloads(monkeypatch, builders.KMNIST, source, serve(source))
    prepared = data.prepare("kmnist")
    for path in prepared.path.iterdir():
        path.unlink()
    prepared.path.rmdir()
    offline(monkeypatch)
    assert data.prepare("kmnist").splits == {"train": 60, "test": 20}


# No network


def offline(monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)


@pytest.mark.parametrize("name", ["kmnist", "fashion_mnist", "emnist/balanced"])
def test_no_network(name, tmp_path, monkeypatch):
    offline(monkeypatch)
    start = time.monotonic()
    with pytest.raises(data.DataError) as error:
        data.load_splits(name)
    assert time.monotonic() - start < 10
    text = one_line(error)
    assert "cannot be reached" in text and f"kae data prepare {name} --from DIR" in text
    assert f"copy {name.partition('/')[0]}/" in text and "KAE_DATA_DIR" in text
    assert not (tmp_path / "data").exists()


def test_a_network_that_swallows_everything(monkeypatch):
    done = threading.Event()

    def hang(*args):
        done.wait(60)
        raise OSError("given up")

    monkeypatch.setattr(socket, "create_connection", hang)
    start = time.monotonic()
    with pytest.raises(data.DataError, match="no answer in 4 seconds"):
        data.prepare("kmnist")
    done.set()
    assert time.monotonic() - start < 10


def test_a_dead_proxy_is_named(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    with pytest.raises(data.DataError, match="127.0.0.1 cannot be reached"):
        data.prepare("kmnist")


# Names


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mnst", "there is no dataset 'mnst' (did you mean mnist"),
        ("MNIST", "(did you mean mnist"),
        ("fashion-mnist", "(did you mean fashion_mnist"),
        ("zzzzzz", "there is no dataset 'zzzzzz'"),
        ("", "there is no dataset ''"),
        ("../mnist", "there is no dataset"),
        ("mnist\n", "there is no dataset"),
        (
            "emnist/balence",
            "emnist has no config 'balence' (did you mean balanced?); it has byclass",
        ),
        ("mnist/large", "mnist has no config 'large'"),
        ("mnist:1.0.0", "only version 3.0.1 of mnist can be prepared, not 1.0.0"),
    ],
)
def test_names_that_are_wrong(name, says, tmp_path):
    with pytest.raises(data.DataError) as error:
        data.load(name, "train")
    assert says in one_line(error)
    assert not (tmp_path / "data").exists()


def test_a_dataset_that_needs_tensorflow(monkeypatch):
    monkeypatch.setattr(preparing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(data.DataError) as error:
        data.prepare("cifar10")
    text = one_line(error)
    assert "pip install tensorflow" in text and "copy cifar10/" in text


def test_a_dataset_that_needs_tensorflow_and_a_network(monkeypatch):
    monkeypatch.setattr(preparing.importlib.util, "find_spec", lambda name: True)
    offline(monkeypatch)
    with pytest.raises(data.DataError) as error:
        data.prepare("cifar10")
    text = one_line(error)
    assert "cannot be reached" in text and "copy cifar10/" in text and "--from" not in text


# Places


def test_a_file_in_place_of_the_data_directory(idx, tmp_path):
    (tmp_path / "file").write_text("")
    for data_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(data.DataError) as error:
            data.prepare("mnist", data_dir, source=idx[0]())
        assert "--data-dir or KAE_DATA_DIR" in one_line(error)


def test_a_data_directory_that_may_not_be_read(monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(data.DataError, match="cannot be read .Permission denied."):
        data.load("mnist", "train")


def test_a_full_disk(idx, tmp_path, monkeypatch):
    def full(image):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(builders, "encode_png", full)
    with pytest.raises(data.DataError, match="No space left on device.*--data-dir"):
        data.prepare("mnist", source=idx[0]())
    assert nothing_left(tmp_path / "data")


def test_an_empty_folder_in_place_of_the_dataset(idx, tmp_path):
    """TFDS would say "Reusing dataset"."""
    (tmp_path / "data" / "mnist" / "3.0.1").mkdir(parents=True)
    with pytest.raises(data.DataError, match="is damaged .*move that folder away and run"):
        data.load("mnist", "train")


def test_preparing_twice_does_nothing(idx, tmp_path, monkeypatch):
    first = data.prepare("mnist", source=idx[0]())
    monkeypatch.setattr(preparing, "_find_builder", None)
    assert data.prepare("mnist") == first
    assert data.prepare("mnist:3.0.1") == first


def test_files_for_what_is_there_already(idx):
    """They are not used, and a line says so."""
    source, said = idx[0](), []
    first = data.prepare("mnist", source=source, progress=said.append)
    said.clear()
    assert data.prepare("mnist", progress=said.append) == first and not said
    assert data.prepare("mnist", source="nowhere", progress=said.append) == first
    (line,) = said
    assert f"mnist is in {first.path} already" in line and "nowhere was not used" in line
    assert "move that folder away" in line


# Processes

MEET = """
import sys, time
from pathlib import Path
from keras_ae import data
from keras_ae.data import builders
folder, mine, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
builders.MNIST.content_sha256 = {n: h for n, h in (a.split("=") for a in sys.argv[4:])}
encode = builders.encode_png
def encode_png(image):
    (folder / mine).touch()
    while other and not (folder / other).exists():
        time.sleep(0.01)
    return encode(image)
builders.encode_png = encode_png
print(data.prepare("mnist", folder / "data", source=folder / "source").splits)
"""


def start(tmp_path, mine, other):
    known = [f"{name}={value}" for name, value in builders.MNIST.content_sha256.items()]
    command = [sys.executable, "-c", MEET, str(tmp_path), mine, other, *known]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once(idx, tmp_path, same_images):
    """Each begins to write before the other has finished."""
    idx[0]()
    both = [start(tmp_path, "a", "b"), start(tmp_path, "b", "a")]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert (out, err) == ("{'train': 60, 'test': 20}\n", "")
    assert [p.name for p in (tmp_path / "data" / "mnist").iterdir()] == ["3.0.1"]
    images = data.load("mnist", "train").images
    assert same_images(images, idx[1]["train-images-idx3-ubyte"])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_preparation_leaves_no_dataset(idx, tmp_path, how):
    source = idx[0]()
    process = start(tmp_path, "a", "never")
    while not (tmp_path / "a").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.kill(process.pid, how)
    process.communicate(timeout=60)
    assert data.available() == []
    if how == signal.SIGINT:
        assert nothing_left(tmp_path / "data")
    assert data.prepare("mnist", source=source).splits == {"train": 60, "test": 20}
    assert len(data.load("mnist", "train").images) == 60


@pytest.mark.parametrize("shape", [(28, 28), (5, 9)])
def test_encode_png(shape):
    """Pillow checks the checksums, and raises on whatever it can notice."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with Image.open(io.BytesIO(builders.encode_png(pixels))) as image:
        image.verify()
    with Image.open(io.BytesIO(builders.encode_png(pixels))) as image:
        assert image.mode == "L" and np.array_equal(np.asarray(image), pixels)

"""TFDS builders of the MNIST family that do not need TensorFlow.

The stock builders open files and encode images with TensorFlow. These subclasses read the IDX files
and write PNG with the standard library. They inherit name, version, features, URLs, checksums and
example keys. So they write the stock dataset, and the stock `tfds.builder(name)` opens it.
"""

import contextlib
import gzip
import hashlib
import lzma
import struct
import zipfile
import zlib
from pathlib import Path
from urllib.parse import urljoin

import numpy as np
from tensorflow_datasets.core import registered
from tensorflow_datasets.image_classification import mnist as stock

from keras_ae.data.disk import DataError

EMBEDDED_MNIST = Path(__file__).parent / "mnist"

# SHA-256 of the uncompressed files: the same for a plain, a repacked and an original file.
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


class IdxBuilder:
    """Mixin that comes before a stock builder in the list of base classes.

    `source` is a folder that holds the files; None downloads them. `content_sha256` maps the name
    of a file to the SHA-256 of its uncompressed content, if we know it.
    """

    source: Path | None = None
    content_sha256: dict[str, str] = {}

    def _split_generators(self, dl_manager):
        names = {
            split: [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]
            for split, prefix in (("train", "train"), ("test", "t10k"))
        }
        if self.source is None:
            # `download`, not `download_and_extract`: the datasets of this family use the same file
            # names, and TFDS would reuse the files that it extracted for another dataset.
            urls = {s: [urljoin(self.URL, f"{n}.gz") for n in names[s]] for s in names}
            paths = dl_manager.download(urls)
        else:
            paths = {s: [find_idx(self.source, n) for n in names[s]] for s in names}
        for split in names:
            for name, path in zip(names[split], paths[split], strict=True):
                # Also for downloads: TFDS does not check files that its download folder already has.
                self.check(path, name)
        return {split: self._generate_examples(*paths[split]) for split in names}

    def check(self, path, name):
        """Raises DataError unless `path` has the content of the original file `name`."""
        content_hash = self.content_sha256.get(name)
        if content_hash is None:
            # For the other datasets we only know the checksum of the unchanged download.
            check_download(path, self.url_infos[urljoin(self.URL, f"{name}.gz")], self.name)
            return
        try:
            with open_idx(path) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise DataError(f"{path} cannot be unpacked ({error}): get the file again") from error
        if found != content_hash:
            raise DataError(
                f"{path} is not the original {name} of {self.name}: the SHA-256 of its content is "
                f"{found}, not {content_hash}; get the file again"
            )

    def _generate_examples(self, images, labels):
        with open_idx(images) as image_file, open_idx(labels) as label_file:
            count, height, width = read_idx_shape(image_file)
            read_idx_shape(label_file)
            for key in range(count):  # the stock builder's keys, which set the order of the records
                pixels = np.frombuffer(image_file.read(height * width), np.uint8)
                png = encode_png(pixels.reshape(height, width))
                yield key, {"image": png, "label": label_file.read(1)[0]}


# TFDS has already registered the stock classes under these names.
with registered.skip_registration():

    class MNIST(IdxBuilder, stock.MNIST):
        name = "mnist"
        content_sha256 = MNIST_SHA256
        url_infos = stock.MNIST.url_infos

    class FashionMNIST(IdxBuilder, stock.FashionMNIST):
        name = "fashion_mnist"
        content_sha256 = FASHION_MNIST_SHA256
        url_infos = stock.FashionMNIST.url_infos

    class KMNIST(IdxBuilder, stock.KMNIST):
        name = "kmnist"
        url_infos = stock.KMNIST.url_infos

    class EMNIST(IdxBuilder, stock.EMNIST):
        name = "emnist"
        url_infos = stock.EMNIST.url_infos

        def _split_generators(self, dl_manager):
            if self.source is None:
                archive = dl_manager.download(self.URL)
            else:
                archive = self.source / "gzip.zip"
                if not archive.is_file():
                    raise DataError(f"{self.source} has no gzip.zip, the file behind {self.URL}")
            check_download(archive, self.url_infos[self.URL], self.name)
            # One archive holds all six configs. They are read from it and not unpacked to disk.
            folder = f"gzip/emnist-{self.builder_config.name}"
            return {
                split: self._generate_examples(
                    zipfile.Path(archive, f"{folder}-{split}-images-idx3-ubyte.gz"),
                    zipfile.Path(archive, f"{folder}-{split}-labels-idx1-ubyte.gz"),
                )
                for split in ("train", "test")
            }


BUILDERS = {builder.name: builder for builder in (MNIST, FashionMNIST, KMNIST, EMNIST)}


def find_idx(folder, name):
    """The path of `folder/name`, plain, .gz or .xz, whichever exists."""
    for suffix in ("", ".gz", ".xz"):
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return path
    raise DataError(f"{folder} has no {name} (plain, .gz or .xz)")


@contextlib.contextmanager
def open_idx(path):
    """Opens a pathlib.Path or zipfile.Path for reading its unpacked content."""
    unpack = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix)
    with path.open("rb") as file:
        yield unpack(file) if unpack else file


def read_idx_shape(file):
    """Reads the header (two zeros, the type, 8 for bytes, the rank, 4 bytes per size); returns the sizes."""
    rank = file.read(4)[3]
    return [int.from_bytes(file.read(4), "big") for _ in range(rank)]


def encode_png(image):
    """Encodes uint8 (H, W) as the bytes of a PNG file. TFDS would use TensorFlow to encode an array.

    Pillow takes five times as long for such small images, and its row filters make the files of
    digits larger.
    """

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    height, width = image.shape
    rows = np.zeros((height, 1 + width), np.uint8)  # each row begins with its filter; 0 is none
    rows[:, 1:] = image
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))  # 8 bits, grey
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def check_download(path, url_info, dataset):
    """Raises DataError unless `path` has the SHA-256 that TFDS lists for this download."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != url_info.checksum:
        raise DataError(
            f"{path} is not the original {url_info.filename} of {dataset}: its SHA-256 is {found}, "
            f"not {url_info.checksum}; get the file again (of {dataset}, only the unchanged "
            f"download can be verified)"
        )

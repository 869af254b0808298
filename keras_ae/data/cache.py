"""Decoded arrays on disk: reading MNIST from its records takes seconds, mapping an array no time.

An entry is three files, `KEY.images.npy`, `KEY.labels.npy` (not for a dataset without classes) and
`KEY.json`, in KAE_CACHE, else XDG_CACHE_HOME/keras-ae, else ~/.cache/keras-ae. Not in the data
directory, which may be read-only or shared. Any of them can be deleted at any time.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import zlib
from pathlib import Path

import numpy as np

from keras_ae.data.disk import DataError, Prepared
from keras_ae.data.reading import ImageData
from keras_ae.data.stored import StoredImages, memory_bound

LAYOUT = 1  # to be raised when the meaning of an entry changes


def cache_dir() -> Path:
    if chosen := os.environ.get("KAE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "keras-ae"


def load(prepared: Prepared, split: str) -> ImageData | None:
    """The arrays of a split, mapped from their files; None if they are not there or not intact.

    Images beyond `memory_bound` are not mapped but `StoredImages`, of which only the size is checked:
    the checksum would take as long as an epoch's reading.
    """
    try:
        stem = _stem(prepared, split)
        entry = json.loads(stem.with_suffix(".json").read_text())
        path = stem.with_suffix(".images.npy")
        large = path.stat().st_size > memory_bound()
        images = StoredImages(path) if large else _map(path, entry["images_crc32"])
        labels = None
        if entry["class_names"] is not None:
            labels = _map(stem.with_suffix(".labels.npy"), entry["labels_crc32"])
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    names = entry["class_names"]
    names = None if names is None else tuple(names)
    return ImageData(prepared.name, prepared.version, split, images, labels, names)


def store(prepared: Prepared, data: ImageData):
    """Writes an entry.

    Raises:
        OSError: it cannot be written. Nothing is lost, only the next start is slower.
    """
    stem = _stem(prepared, data.split)
    stem.parent.mkdir(parents=True, exist_ok=True)
    entry = {"class_names": data.class_names, "images_crc32": _crc32(data.images)}
    if isinstance(data.images, StoredImages):  # where `room` put it
        os.replace(data.images.path, stem.with_suffix(".images.npy"))
        data.images.path = stem.with_suffix(".images.npy")
    else:
        _write(stem.with_suffix(".images.npy"), lambda file: np.save(file, data.images))
    if data.labels is not None:
        entry["labels_crc32"] = _crc32(data.labels)
        _write(stem.with_suffix(".labels.npy"), lambda file: np.save(file, data.labels))
    # Last, so that an entry that can be read is complete.
    _write(stem.with_suffix(".json"), lambda file: file.write(json.dumps(entry).encode()))


@contextlib.contextmanager
def room():
    """A function for `reading.read` that takes arrays from memory, and beyond its bound from the disk.

    What is on disk and was not handed to `store` by the end of the context is removed.
    """
    files = []

    def allocate(shape, dtype):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size <= memory_bound():
            return np.empty(shape, dtype)
        folder = cache_dir() / "arrays"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, path = tempfile.mkstemp(prefix=".decoding.", suffix=".npy", dir=folder)
            os.close(handle)
            files.append(path)
            return StoredImages.create(path, shape, dtype)
        except OSError as error:
            raise DataError(
                f"{size / 2**30:.1f} GiB of images are more than memory should hold (KAE_MEMORY), and "
                f"{folder} cannot be written ({error.strerror}): set KAE_CACHE to a folder that can"
            ) from error

    try:
        yield allocate
    finally:
        for path in files:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def _stem(prepared, split) -> Path:
    """The path of an entry without its suffixes; it changes whenever a file of the dataset does."""
    files = sorted(
        (entry.name, entry.stat().st_size, entry.stat().st_mtime_ns)
        for entry in os.scandir(prepared.path)
        if entry.is_file()
    )
    info = (prepared.path / "dataset_info.json").read_text()
    key = repr((LAYOUT, prepared.name, prepared.version, split, info, files))
    name = f"{prepared.name}-{prepared.version}-{split}".replace("/", "-").replace(".", "_")
    return cache_dir() / "arrays" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _map(path, crc32):
    # "c": copy on write. Torch warns about arrays that cannot be written, and the file stays as it
    # is.
    array = np.load(path, mmap_mode="c").view(np.ndarray)
    if _crc32(array) != crc32:
        raise ValueError(f"{path} is damaged")
    return array


def _crc32(array) -> int:
    """Of the bytes and of what they mean; half a gigabyte a second at the very least."""
    crc = zlib.crc32(f"{array.dtype.str} {array.shape}".encode())
    for start in range(0, len(array), 10_000):
        crc = zlib.crc32(np.ascontiguousarray(array[start : start + 10_000]), crc)
    return crc


def _write(path, write):
    """A reader sees the old file or the new one, complete and on the disk, never a half of it."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise

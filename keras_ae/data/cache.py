"""A cache of decoded arrays on disk: reading MNIST from its records takes seconds, an array no time.

An entry is three files: `KEY.images.npy`, `KEY.labels.npy` (not for a dataset without classes) and
`KEY.json`. They are in KAE_CACHE, else XDG_CACHE_HOME/keras-ae, else ~/.cache/keras-ae, but not in
the data directory, which may be read-only or shared. They can be deleted at any time.

Models are trained on these arrays. So the cache has its own folders, to which no other user may
write, and each entry records which files it was made from.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import zlib
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

import numpy as np

from keras_ae.data.arrays import ImageData, StoredImages, lay_out
from keras_ae.data.disk import DataError, Prepared, expanded
from keras_ae.data.reading import CHUNK
from keras_ae.errors import memory_bound
from keras_ae.files import read_json, shortened

LAYOUT = 2  # increase it when the meaning of an entry changes
UNFINISHED = ".unfinished-"  # prefix of a file's name while the file is being written


def cache_dir() -> Path:
    if chosen := os.environ.get("KAE_CACHE"):
        return expanded(chosen, "KAE_CACHE")
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "KAE_CACHE") / "keras-ae"


def own_folder(name) -> Path:
    """A folder in the cache that belongs to this user; it is made if it does not exist.

    Raises:
        OSError: the folder cannot be made, or another user may have written into it.
    """
    folder = cache_dir() / name
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    for made in (folder.parent, folder):
        made.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "geteuid"):
        link, status = folder.lstat(), folder.stat()
        if not {link.st_uid, status.st_uid} <= {os.geteuid(), 0}:
            raise PermissionError(None, f"{folder} belongs to somebody else")
        if status.st_mode & 0o022:
            raise PermissionError(None, f"others may write to {folder}")
    return folder


def load(prepared: Prepared, split: str) -> ImageData | None:
    """Loads the arrays of a split; None if they are missing or damaged.

    Images above `memory_bound` are `StoredImages`. Only the size of their file is checked: a
    checksum would take as long as reading all images for an epoch.

    Raises:
        UserError: see `memory_bound`.
    """
    bound = memory_bound()
    try:
        key = made_from(prepared, split)
        stem = _stem(prepared, split, key)
        entry = read_json(stem.with_suffix(".json"))
        if entry["made_from"] != key:
            raise ValueError("it was made from something else")
        stored = StoredImages(stem.with_suffix(".images.npy"))
        kind = stored.dtype.str, len(stored.shape), len(stored)
        if kind != ("|u1", 4, prepared.splits[split]):
            raise ValueError("it holds other images")
        large = stored.nbytes > bound
        images = stored if large else _checked(stored, entry["images_crc32"])
        labels, names = None, entry["class_names"]
        if names is not None:
            labels = _checked(StoredImages(stem.with_suffix(".labels.npy")), entry["labels_crc32"])
            if type(names) is not list:
                raise ValueError("its classes are no list")
            names = tuple(names)
            if labels.dtype != np.int32 or labels.shape != (len(images),) or labels.min() < 0:
                raise ValueError("it holds other labels")
            if any(type(name) is not str for name in names) or labels.max() >= len(names):
                raise ValueError("it holds other classes")
    except (OSError, ValueError, KeyError, TypeError, EOFError, DataError):
        return None
    return ImageData(prepared.name, prepared.version, split, images, labels, names)


def store(prepared: Prepared, data: ImageData, key: str):
    """Writes an entry, under the key that `made_from` gave before the dataset was read.

    Raises:
        DataError: the dataset changed since then, or is gone: what was read may be of both states.
        OSError: it cannot be written. No data is lost; only the next start is slower.
    """
    try:
        changed = made_from(prepared, data.split) != key
    except FileNotFoundError:
        changed = True
    if changed:
        raise DataError(f"{prepared.path} changed while it was read: start again")
    stem = _stem(prepared, data.split, key)
    entry = {
        "made_from": key,
        "class_names": data.class_names,
        "images_crc32": _crc32(data.images),
    }
    if isinstance(data.images, StoredImages):  # `bounded_memory` has already written this file
        with open(data.images.path, "rb+") as file:
            os.fsync(file.fileno())  # before the entry that vouches for it
        os.replace(data.images.path, stem.with_suffix(".images.npy"))
        data.images.path = stem.with_suffix(".images.npy")
    else:
        _write(stem.with_suffix(".images.npy"), lambda file: np.save(file, data.images))
    if data.labels is not None:
        entry["labels_crc32"] = _crc32(data.labels)
        _write(stem.with_suffix(".labels.npy"), lambda file: np.save(file, data.labels))
    # Written last: if the JSON file can be read, the entry is complete.
    _write(stem.with_suffix(".json"), lambda file: file.write(json.dumps(entry).encode()))


@contextlib.contextmanager
def bounded_memory():
    """Yields the function `allocate` for `reading.read`: it makes arrays, or files above `memory_bound`.

    At the end of the context, files that were not passed to `store` are removed. At its start, the
    files that killed processes left are removed.
    """
    with contextlib.suppress(OSError):  # for example, the folder is read-only
        sweep(own_folder("arrays"))
    with contextlib.ExitStack() as stack:

        def allocate(shape, dtype):
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            if size <= memory_bound():
                return np.empty(shape, dtype)
            try:
                folder = own_folder("arrays")
                if shutil.disk_usage(folder).free < size:  # before it is filled
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                handle, path = stack.enter_context(_unfinished(folder))
                with os.fdopen(handle, "wb", closefd=False) as file:
                    lay_out(file, shape, dtype)
                return StoredImages(path)
            except OSError as error:
                raise DataError(
                    f"{size / 2**30:.1f} GiB of images are more than memory should hold (KAE_MEMORY), and "
                    f"{cache_dir()} cannot be written ({error.strerror}): set KAE_CACHE to a folder that can"
                ) from error

        yield allocate


def sweep(folder):
    """Removes unfinished files that were left by killed processes."""
    # As mkstemp names them; a file of the user's may begin alike.
    ours = re.compile(re.escape(UNFINISHED) + r"[a-z0-9_]{8}\.npy")
    for path in filter(lambda p: ours.fullmatch(p.name), folder.iterdir()):
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDWR)
            try:  # a file younger than a minute may belong to a process that has yet to lock it
                if lock(handle) and os.fstat(handle).st_mtime < time.time() - 60:
                    os.unlink(path)
            finally:
                os.close(handle)


@contextlib.contextmanager
def _unfinished(folder):
    """Yields a new file, open and locked. At the end it is removed, unless it has been renamed."""
    handle, path = tempfile.mkstemp(prefix=UNFINISHED, suffix=".npy", dir=folder)
    try:
        lock(handle)
        yield handle, path
    finally:
        os.close(handle)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def lock(handle) -> bool:
    """Locks a file for this process without waiting. False if that is not possible."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process holds the lock, or this file system has no locks
        return False
    return True


def made_from(prepared, split) -> str:
    """A hash of everything an entry is made from. It changes whenever a file of the dataset changes."""
    files = sorted(
        (entry.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        for entry in os.scandir(prepared.path)
        if entry.is_file()
        for status in [entry.stat()]
    )
    info = (prepared.path / "dataset_info.json").read_text("utf-8")
    whole = repr((LAYOUT, prepared.name, prepared.version, split, info, files))
    return hashlib.sha256(whole.encode()).hexdigest()


def _stem(prepared, split, key) -> Path:
    """The path of an entry without suffixes."""
    name = f"{prepared.name}-{prepared.version}-{split}".replace("/", "-").replace(".", "_")
    return own_folder("arrays") / f"{shortened(name)}-{key[:16]}"


def _checked(stored, crc32) -> np.ndarray:
    """Reads the array in a file, and raises ValueError if its checksum is not `crc32`."""
    array = stored[:]
    if _crc32(array) != crc32:
        raise ValueError(f"{stored.path} is damaged")
    return array


def _crc32(array) -> int:
    """The CRC-32 of an array's dtype, shape and bytes, at half a gigabyte a second or more."""
    crc = zlib.crc32(f"{array.dtype.str} {array.shape}".encode())
    step = max(1, CHUNK * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), step):
        crc = zlib.crc32(np.ascontiguousarray(array[start : start + step]), crc)
    return crc


def _write(path, write):
    """Replaces a file as a whole: a reader sees the complete old file or the complete new one."""
    with _unfinished(path.parent) as (handle, temporary):
        with os.fdopen(handle, "wb", closefd=False) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

"""Images and labels as arrays: in memory, on disk if they do not fit into memory, or from the user."""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from keras_ae.data.disk import DataError
from keras_ae.data.preparation import Preparation
from keras_ae.errors import LEAST, UserError, memory_bound
from keras_ae.files import open_file
from keras_ae.tensors import to_numpy

LARGEST = 1 << 20  # label of the user's: there is a name for each number up to it


class StoredImages:
    """A .npy file of images (N, H, W, C) that is indexed like an array but stays on disk.

    `images[rows]` reads an array, for a slice, a mask or integers. `images.select(rows)` is another
    `StoredImages` of these rows. The file is not memory-mapped: mapped pages count as memory of the
    process until the system takes them back, and the process would be killed if the file were cut
    short meanwhile.
    """

    def __init__(self, path, rows=None):
        self.path, self._rows = Path(path), rows
        self._file = open_file(path)  # stays open as long as this object exists
        if np.lib.format.read_magic(self._file) != (1, 0):
            raise ValueError(f"{path} is not of version 1.0")
        try:
            shape, fortran, self.dtype = np.lib.format.read_array_header_1_0(self._file)
        except Exception as error:  # NumPy reads it as Python, and raises what that does
            raise ValueError(f"{path} is damaged ({error})") from error
        self._offset, self._shape = self._file.tell(), shape
        size = os.fstat(self._file.fileno()).st_size
        whole = size == self._offset + math.prod(shape) * self.dtype.itemsize
        if fortran or not whole or self.dtype.kind not in "ui" or not shape:
            raise ValueError(f"{path} is damaged")

    @classmethod
    def create(cls, path, shape, dtype="uint8"):
        """Makes a new file for images of this shape (N, H, W, C); `write` fills it.

        Raises:
            FileExistsError: there is such a file.
            ValueError: the images are no whole numbers, or of another kind of shape.
        """
        if np.dtype(dtype).kind not in "ui" or len(shape) != 4 or min(shape) < 0:
            raise ValueError(
                f"Stored images are whole numbers of a shape (N, H, W, C); got {dtype} {shape}."
            )
        with open(path, "xb") as file:
            try:
                lay_out(file, shape, dtype)
            except BaseException:  # a full disk, or a shape that is none
                os.unlink(path)
                raise
        return cls(path)

    def write(self, start, images):
        """Writes images (n, H, W, C) into the file, from row `start` on.

        Raises:
            ValueError: they are not of the file's shape or type, or there are no such rows.
        """
        images = to_numpy(images)
        if images.shape[1:] != self._shape[1:] or not np.can_cast(images.dtype, self.dtype):
            raise ValueError(
                f"{self.path} holds {self.dtype} images {self._shape[1:]}; got {images.dtype} {images.shape[1:]}."
            )
        if not 0 <= start <= start + len(images) <= self._shape[0]:
            raise ValueError(
                f"{self.path} has the rows 0 to {self._shape[0] - 1}; got {len(images)} from row {start} on."
            )
        images = np.ascontiguousarray(images, self.dtype)
        with open(self.path, "rb+") as file:
            file.seek(self._offset + start * self._row_bytes)
            file.write(images)

    @property
    def shape(self):
        return (len(self), *self._shape[1:])

    @property
    def _row_bytes(self):
        return math.prod(self._shape[1:]) * self.dtype.itemsize

    @property
    def nbytes(self):
        return len(self) * self._row_bytes

    @property
    def size(self):
        return math.prod(self.shape)

    def __len__(self):
        return self._shape[0] if self._rows is None else len(self._rows)

    def select(self, rows):
        """`StoredImages` of these rows (a slice, a mask, or integers), without reading them."""
        mine = np.arange(self._shape[0]) if self._rows is None else self._rows
        return StoredImages(self.path, mine[rows])

    def __getitem__(self, rows):
        if isinstance(rows, (int, np.integer)):
            return self[rows : rows + 1 or None][0]
        if isinstance(rows, slice) and self._rows is None:
            rows = range(len(self))[rows]
            if rows.step == 1:
                return self._read(rows.start, max(0, rows.stop - rows.start))
        if isinstance(rows, range):
            rows = np.arange(rows.start, rows.stop, rows.step)
        chosen = np.arange(len(self))[rows] if self._rows is None else self._rows[rows]
        images = np.empty((len(chosen), *self._shape[1:]), self.dtype)
        for image, row in zip(images, chosen.tolist()):
            self._fill(image, row)
        return images

    def _read(self, start, count):
        images = np.empty((count, *self._shape[1:]), self.dtype)
        if count:
            self._fill(images, start)
        return images

    def _fill(self, images, row):
        """Fills `images` from a row on. One read is nearly always enough; more than 2 GiB, or a
        signal, need several."""
        view = memoryview(images).cast("B")
        offset = self._offset + row * self._row_bytes
        while view:
            done = os.preadv(self._file.fileno(), [view], offset)
            if not done:
                raise DataError(
                    f"{self.path} was cut short meanwhile: start again, and it is made anew"
                )
            view, offset = view[done:], offset + done

    def __array__(self, dtype=None, copy=None):
        """All images. Raises UserError if they take more memory than may be."""
        if self.nbytes > (bound := max(memory_bound(), LEAST)):
            raise UserError(
                f"{len(self):,} images would take {self.nbytes / 2**30:,.1f} GiB of memory at once, and may take "
                f"{bound / 2**30:,.1f} (KAE_MEMORY): keras_ae.fit(settings, folder, train=…, test=…) reads them "
                "batch by batch."
            )
        return np.asarray(self[:], dtype)


def lay_out(file, shape, dtype):
    """Makes an empty file, open for writing, the .npy file of an array whose values are to be written."""
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, header)
    file.truncate(file.tell() + math.prod(shape) * np.dtype(dtype).itemsize)


def select(images, rows):
    """`images[rows]` of an array. Of `StoredImages`, an array if it fits into `memory_bound`, else
    `StoredImages` of these rows."""
    if not isinstance(images, StoredImages):
        return images[rows]
    part = images.select(rows)
    return part[:] if part.nbytes <= memory_bound() else part


@dataclass(frozen=True, eq=False)
class ImageData:
    """One split of an image dataset.

    Attributes:
        name: TFDS name with its config, such as "mnist" or "emnist/balanced".
        version: TFDS version, such as "3.0.1".
        split: "train", "test", ... or a description of a part of one.
        images: uint8 (N, H, W, C), 0 to 255, C 1, 3 or 4. Images that are too large for memory are
            `StoredImages`, which read from disk only the rows that are indexed.
        labels: int32 (N,), 0 to num_classes - 1; None for a dataset without classes.
        class_names: one name per class; None for a dataset without classes.
        preparation: what `import_folder` did to the pictures; None for any other dataset.
    """

    name: str
    version: str
    split: str
    images: np.ndarray | StoredImages
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    preparation: Preparation | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for a dataset without classes."""
        return len(self.class_names or ())

    def select(self, rows) -> "ImageData":
        """The images of these rows (a slice, a mask, or integers) with their labels; see `select`."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, images=select(self.images, rows), labels=labels)

    def first(self, n) -> "ImageData":
        """The first n images, read into memory, with their labels."""
        labels = None if self.labels is None else self.labels[:n]
        return replace(self, images=self.images[:n], labels=labels)


def splits_of_arrays(train, test, name):
    """The user's training and test images as a pair of `ImageData`.

    Args:
        train, test: images (N, H, W, C), whole numbers in 0..255 or floats in [0, 1]; or pairs
            (images, labels) with labels (N,) or (N, 1); or `ImageData`, which are returned unchanged.
        name: name of the dataset, for images that are not `ImageData`.

    Raises:
        ValueError: images or labels have another shape, there are no images, labels are no whole numbers from
            0 on, or are more than `LARGEST`, or those of an `ImageData` have no names.
    """
    splits = [_arrays(images, what) for images, what in ((train, "train"), (test, "test"))]
    labels = [split[1] for split in splits if isinstance(split, tuple) and split[1] is not None]
    names = None
    if labels:
        names = tuple(map(str, range(1 + int(max(part.max() for part in labels)))))
    return tuple(
        split
        if isinstance(split, ImageData)
        else ImageData(name, "", what, split[0], split[1], None if split[1] is None else names)
        for split, what in zip(splits, ("train", "test"))
    )


def _arrays(images, what):
    """Checks one set: an `ImageData` is returned as it is, others as arrays (images, labels or None)."""
    if isinstance(images, ImageData):
        stored = isinstance(images.images, StoredImages)
        shown = np.broadcast_to(np.uint8(0), images.images.shape) if stored else images.images
        _, labels = _arrays((shown, images.labels), what)
        if labels is not None and labels.max() >= images.num_classes:
            raise ValueError(
                f"{what} labels go to {labels.max()}, and there are {images.num_classes} class_names."
            )
        return images
    pair = images if isinstance(images, tuple | list) else (images, None)
    if len(pair) != 2:
        raise ValueError(
            f"{what} must be one array of images, or a pair (images, labels); got {len(pair)} parts."
        )
    images, labels = to_numpy(pair[0]), pair[1]
    # No backend takes another order of bytes.
    images = images.astype(images.dtype.newbyteorder("="), copy=False)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"{what} images must be (N, H, W, C); got {images.shape}.")
    if labels is None:
        return images, None
    labels = to_numpy(labels)
    if labels.shape == (len(images), 1):
        labels = labels[:, 0]
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(
            f"{what} labels must be whole numbers from 0 on, one for each of the {len(images)} images; "
            f"got {labels.dtype} {labels.shape}."
        )
    if labels.max() > LARGEST:
        raise ValueError(
            f"{what} labels go to {labels.max()}, and classes are numbered from 0 on: number them anew, as "
            "np.unique(labels, return_inverse=True)[1] does."
        )
    return images, labels.astype("int32")

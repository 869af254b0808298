"""Reads a prepared dataset into arrays: records of array_record or TFRecord, images by Pillow, no TensorFlow.

TFDS itself imports the class of every feature that a folder names, wherever it comes from. Here
`features.json` is data: of it we read the image and the label, and look at nothing else.
"""

import contextlib
import io
import os
import struct
import sys
from dataclasses import dataclass

import numpy as np

from keras_ae.data import disk
from keras_ae.data.arrays import ImageData, StoredImages
from keras_ae.data.disk import DataError, Prepared
from keras_ae.data.preparation import Preparation

PIXELS = 1 << 26  # in an image: a small file can unpack to any size
BATCH = 1024  # records held in memory as bytes at a time, at most,
CHUNK = 1 << 25  # and bytes of them, and of their pixels (or one record, where that is larger)
CLASSES = 1 << 20
LETTERS = 255  # in the name of a class
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels to Pillow's name for them
CODECS = ("PNG", "JPEG", "BMP", "GIF")  # what TFDS stores; Pillow knows many more, and trusts them
PREPARATION = "keras_ae_import"  # key in the metadata of a dataset
FEATURES = "tensorflow_datasets.core.features."
DICT = f"{FEATURES}features_dict.FeaturesDict"
IMAGE = f"{FEATURES}image_feature.Image"
LABEL = f"{FEATURES}class_label_feature.ClassLabel"


@dataclass(frozen=True)
class Features:
    """What is read of an example.

    Attributes:
        image, label: their keys; no label is None.
        shape: (height, width, channels) of the images; None is a side that is left open.
        class_names: one name per class; None without a label.
    """

    image: str
    shape: tuple[int | None, int | None, int]
    label: str | None
    class_names: tuple[str, ...] | None


def read(prepared: Prepared, split: str, allocate=np.empty) -> ImageData:
    """Reads and decodes a whole split.

    Args:
        allocate: (shape, dtype) -> the array, or the `StoredImages`, to put the images into.

    Raises:
        DataError: the files are damaged or hold another number of records than the metadata says;
            the format is neither array_record nor tfrecord; there is no image in an example; the
            images are not uint8, or not all of one size.
    """
    with explained(prepared, split):
        features = read_features(prepared)
        images, labels, start = None, [], 0
        for block, marks in blocks(prepared, split, features):
            if images is None:
                images = allocate((prepared.splits[split], *block.shape[1:]), np.uint8)
            if isinstance(images, StoredImages):
                _write(images, start, block)
            else:
                images[start : start + len(block)] = block
            labels.append(marks)
            start += len(block)
        assert images is not None
        marks, class_names = labelled(features, labels)
        return ImageData(prepared.name, prepared.version, split, images, marks, class_names)


def _write(images, start, block):
    try:
        images.write(start, block)
    except OSError as error:
        raise DataError(
            f"its images cannot be decoded to {images.path.parent} ({error.strerror}): make room, or set "
            "KAE_CACHE to a folder that has it"
        ) from error


@contextlib.contextmanager
def explained(prepared, split):
    """One line for whatever reading a split raises."""

    def bomb():  # where Pillow is imported at all, which takes as long as all else of a second start
        return getattr(sys.modules.get("PIL.Image"), "DecompressionBombError", DataError)

    try:
        yield
    except (DataError, bomb()) as error:
        raise DataError(f"{prepared.name} cannot be used: {error}") from error
    except MemoryError as error:
        raise DataError(f"{prepared.name} {split} does not fit into memory: {error}") from error
    except ImportError as error:
        raise DataError(f"{prepared.name} cannot be read: {error}; install it") from error
    except Exception as error:
        if isinstance(error, OSError) and not disk.is_damage(error):
            raise disk.unreadable(prepared.path, prepared.name, error) from error
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise disk.damaged(prepared.path, prepared.name, f"{split}: {why}") from error


def blocks(prepared, split, features):
    """The images and labels of a split, in blocks of uint8 (n, H, W, C) and int32 (n,), -1 where there
    is no label. A block is good until the next one is asked for."""
    readers = {"array_record": _array_records, "tfrecord": _tf_records}
    if prepared.format not in readers:
        # TFDS 4.9.10 drops most rows of what it writes as parquet and promises them all the same.
        raise DataError(
            f"{prepared.path} is stored as {prepared.format}, and only array_record and tfrecord can be "
            f"read: prepare it in another data directory (`kae data prepare {prepared.name} --data-dir DIR`)"
        )
    records = readers[prepared.format](disk.shards(prepared, split))
    transposed = prepared.name.startswith("emnist/")  # as they are stored
    for block, marks in _decode(records, prepared.splits[split], features):
        if transposed:
            block = block.swapaxes(1, 2)
        if prepared.name == "binarized_mnist":
            block *= 255  # it stores 0 and 1
        yield block, marks


def labelled(features, blocks):
    """Blocks of labels as one array, and the names of the classes; (None, None) where some are unknown."""
    if features.label is None:
        return None, None
    labels = np.concatenate(blocks)
    if (labels < 0).any():  # -1 is how TFDS says unknown
        return None, None
    if labels.max() >= len(features.class_names):
        raise ValueError(f"label {labels.max()} of {len(features.class_names)} classes")
    return labels, features.class_names


def read_features(prepared) -> Features:
    """What `features.json` and the files beside it say of image and label.

    The image is the one of the supervised keys, else "image", else the only one; the label likewise.
    """
    root = disk.read_json(prepared.path / "features.json")
    old = "type" in root  # until TFDS 4.3
    kind, parts = (root["type"], root["content"]) if old else _part(root, "featuresDict")
    if not old:
        parts = parts["features"]
    if kind != DICT:
        raise DataError(f"its examples are of the class {str(kind)[:60]!r}, and {DICT} can be read")
    found: dict[str, dict] = {IMAGE: {}, LABEL: {}}
    for key, value in parts.items():
        name = value.get("type" if old else "pythonClassName")
        if name in found and "/" not in key:
            content = value["content"] if old else value["image" if name == IMAGE else "classLabel"]
            found[name][key] = content
    info = disk.read_json(prepared.path / "dataset_info.json")
    supervised = _supervised(info.get("supervisedKeys"))
    images, labels = found[IMAGE], found[LABEL]
    image = next((k for k in (supervised[0], "image") if k in images), None)
    if image is None and len(images) == 1:
        image = next(iter(images))
    if image is None:
        has = f"several ({', '.join(sorted(images))})" if images else "none"
        raise DataError(f"each example must have one image, and it has {has}")
    label = next((k for k in (supervised[1], "label") if k in labels), None)
    names = None if label is None else _class_names(prepared.path, label, labels[label])
    return Features(image, _image_shape(images[image]), label, names)


def read_preparation(prepared) -> Preparation | None:
    """What the metadata of a dataset says of its import; None where it says nothing.

    Raises:
        DataError: it cannot be read.
    """
    path = prepared.path / "metadata.json"  # where TFDS keeps what a builder has to say
    try:
        with explained(prepared, "metadata.json"):
            if not path.exists():
                return None
            found = disk.read_json(path).get(PREPARATION)
            return None if found is None else Preparation.from_dict(found)
    except OSError as error:
        raise disk.unreadable(prepared.path, prepared.name, error) from error


def _part(value, content):
    return value["pythonClassName"], value[content]


def _supervised(keys):
    """The keys of image and label: a pair, or as TFDS until 4.3 wrote it."""
    if not isinstance(keys, dict):
        return None, None
    if "tuple" in keys:
        keys = [item.get("featureKey") for item in keys["tuple"]["items"]]
        return keys[0], keys[1]
    return keys.get("input"), keys.get("output")


def _image_shape(image):
    sides = image["shape"]
    sides = [int(side) for side in (sides["dimensions"] if isinstance(sides, dict) else sides)]
    shape, dtype = tuple(None if side == -1 else side for side in sides), image.get("dtype")
    if dtype != "uint8" or len(shape) != 3 or shape[2] not in MODES or any(s == 0 for s in shape):
        raise DataError(
            f"its images are {str(dtype)[:20]} {shape}: only uint8 (height, width, channels) with 1, 3 or "
            "4 channels can be read"
        )
    return shape


def _class_names(folder, key, label):
    """The names in the file beside, else the numbers."""
    count = label.get("numClasses", label.get("num_classes"))
    count = None if count is None else int(count)
    if count is not None and not 0 < count <= CLASSES:
        raise DataError(f"it has {count:,} classes, and 1 to {CLASSES:,} can be read")
    names = []
    path = folder / f"{key}.labels.txt"
    if path.exists():
        names = [name.strip() for name in disk.read_text(path).split("\n") if name.strip()]
    if not names:
        return tuple(str(i) for i in range(count))
    if count not in (None, len(names)):
        raise ValueError(f"{len(names):,} names of {count:,} classes")
    if len(set(names)) < len(names):
        raise ValueError("two classes of one name")
    for i, name in enumerate(names):
        if len(name) > LETTERS:
            raise DataError(
                f"the name of class {i} has {len(name):,} letters, and {LETTERS} can be read"
            )
    return tuple(names)


def _decode(records, count, features):
    """Serialised examples to blocks; there are `count` in all, or an error."""
    from PIL import Image
    from tensorflow_datasets.proto.tf_example_generated_pb2 import Example

    height, width, channels = features.shape
    mode = MODES[channels]
    size, images, labels = None, None, []
    index = -1
    for index, record in enumerate(records):
        if index == count:
            raise ValueError(f"more than the {count:,} records that dataset_info.json promises")
        feature = Example.FromString(record).features.feature
        with Image.open(
            io.BytesIO(feature[features.image].bytes_list.value[0]), formats=CODECS
        ) as image:
            if image.width * image.height > PIXELS:
                raise DataError(
                    f"image {index} is of {image.width} x {image.height} pixels, and more than "
                    f"{PIXELS:,} are not read"
                )
            # The size is often left open (None) in the metadata; the first image decides.
            size = size or (width or image.width, height or image.height)
            if image.size != size:
                raise DataError(
                    f"its images have more than one size ({size[0]}x{size[1]} and "
                    f"{image.width}x{image.height}): a model needs one"
                )
            if image.mode[0] in "IF":
                raise DataError(
                    f"image {index} has more than 8 bits a pixel: only uint8 can be read"
                )
            if images is None:
                pixels = size[0] * size[1] * channels
                rows = max(1, min(BATCH, CHUNK // pixels))
                images = np.empty((rows, *size[::-1], channels), np.uint8)
            image = image if image.mode == mode else image.convert(mode)
            images[len(labels)] = np.asarray(image).reshape(images.shape[1:])
        labels.append(-1 if features.label is None else feature[features.label].int64_list.value[0])
        if len(labels) == len(images):
            yield images, np.array(labels, np.int32)
            labels = []
    if index + 1 != count:
        raise ValueError(
            f"{index + 1:,} records, not the {count:,} that dataset_info.json promises"
        )
    if size is None:
        raise DataError("the split has no images")
    if labels:
        yield images[: len(labels)], np.array(labels, np.int32)


def _array_records(shards):
    from array_record.python.array_record_module import ArrayRecordReader

    def count(path):
        with disk.open_file(path):  # says what the reader below would not
            pass
        reader = ArrayRecordReader(os.fspath(path))
        try:
            return reader.num_records()
        finally:
            reader.close()

    for path, promised in shards:  # all of them, before anything is decoded
        if (found := count(path)) != promised:
            raise ValueError(f"{found:,} records in {path.name}, not the {promised:,} promised")
    for path, promised in shards:
        # Many at once: one by one costs more than decoding the images.
        step = max(1, min(BATCH, CHUNK * promised // max(1, path.stat().st_size)))
        reader = ArrayRecordReader(os.fspath(path))
        try:
            for start in range(0, promised, step):
                yield from reader.read(start, min(start + step, promised))
        finally:
            reader.close()


def _tf_records(shards):
    """TFDS reads TFRecord files with TensorFlow only; the format is four fields a record."""
    for path, promised in shards:
        size = path.stat().st_size
        if promised > size // FIELDS:
            raise ValueError(f"{promised:,} records in the {size:,} bytes of {path.name}")
    for path, _ in shards:
        for batch in _tf_record_batches(path):
            yield from batch


def _tf_record_batches(path):
    with disk.open_file(path) as file:
        left = os.fstat(file.fileno()).st_size
        records, checksums, held = [], [], 0
        while left > 0:
            # uint64 length, uint32 CRC of the length, the bytes, uint32 CRC of the bytes
            header = file.read(12)
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else left
            left -= FIELDS + length
            if left < 0:
                raise ValueError(f"{path.name} is cut short or not a TFRecord file")
            records.append(file.read(length))
            checksums.append(struct.unpack("<I", file.read(4))[0])
            held += length
            if len(records) == BATCH or held >= CHUNK or left == 0:
                if not np.array_equal(masked_crc32c(records), checksums):
                    raise ValueError(f"wrong checksum in {path.name}")
                yield records
                records, checksums, held = [], [], 0


FIELDS = 16  # bytes of a TFRecord beside its content
STRIPE = 2048  # bytes that a checksum goes through one by one


def masked_crc32c(records: list[bytes]) -> np.ndarray:
    """The checksum of TFRecord files, uint32 (N,), of N byte strings at once.

    Pillow misses about 3 % of single damaged bits in a PNG, and nobody else would notice one in a
    label. Byte by byte in Python this would take as long as decoding; byte k of all records at a
    time does not. Long records are cut into stripes, whose checksums are then put together.
    """
    # Zeros in front change no checksum that begins at 0; these four bytes lead from 0 to all ones.
    lengths = np.array([len(START) + len(record) for record in records])
    width = min(int(lengths.max()), STRIPE)
    counts = -(-lengths // width)  # stripes of each record, the first one filled up in front
    ends = counts.cumsum()
    stripes = np.zeros((ends[-1], width), np.uint8)
    flat = stripes.reshape(-1)
    for record, length, end in zip(records, lengths.tolist(), (ends * width).tolist()):
        flat[end - length : end] = np.frombuffer(START + record, np.uint8)
    crc = np.zeros(len(stripes), np.uint32)
    for column in np.ascontiguousarray(stripes.T):
        crc = _CRC32C[(crc ^ column) & 0xFF] ^ (crc >> 8)
    result = crc[ends - counts]
    if counts.max() > 1:
        skip = _tables_of_zeros(width)
        for k in range(1, counts.max()):
            more = np.flatnonzero(counts > k)
            left = result[more]
            moved = skip[0][left & 0xFF] ^ skip[1][left >> 8 & 0xFF]
            moved ^= skip[2][left >> 16 & 0xFF] ^ skip[3][left >> 24]
            result[more] = moved ^ crc[(ends - counts)[more] + k]
    result = result ^ 0xFFFFFFFF
    return ((result >> 15) | (result << 17)) + np.uint32(0xA282EAD8)


def _tables_of_zeros(count):
    """What so many zero bytes make of a checksum, for each value of each of its four bytes."""
    crc = (np.arange(256, dtype=np.uint32) << (8 * np.arange(4, dtype=np.uint32)[:, None])).ravel()
    for _ in range(count):
        crc = _CRC32C[crc & 0xFF] ^ (crc >> 8)
    return crc.reshape(4, 256)


def _crc32c_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table.astype(np.uint32)


_CRC32C = _crc32c_table()


def _start() -> bytes:
    crc = 0xFFFFFFFF
    for _ in range(4):  # a zero byte backwards: only one entry of the table has this upper byte
        i = int((_CRC32C >> 24).tolist().index(crc >> 24))
        crc = ((crc ^ int(_CRC32C[i])) << 8 | i) & 0xFFFFFFFF
    return crc.to_bytes(4, "little")


START = _start()

"""Reads a prepared dataset (array_record or TFRecord) into arrays with Pillow, without TensorFlow.

TFDS itself imports every feature class that a dataset's folder names, even if the folder comes from
an unknown source. Here `features.json` is only data: we read the image and the label from it, and
ignore the rest.
"""

import contextlib
import io
import os
import shlex
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_ae.data import disk
from keras_ae.data.arrays import ImageData, StoredImages
from keras_ae.data.disk import PIXELS, DataError, Prepared
from keras_ae.data.preparation import Preparation
from keras_ae.files import open_file, read_json, read_text

# Most bytes of a record: a file with a hole in it can be much longer than what is on the disk.
LONGEST_RECORD = 8 * PIXELS
BATCH = 1024  # most records that are held in memory at a time
CHUNK = 1 << 25  # most bytes of these records, and of their pixels (one record may be larger)
SCANS = 100  # most of a JPEG: usual are ten, and each, though of a hundred bytes, goes through all pixels
CLASSES = 1 << 20
LETTERS = 255  # most letters in the name of a class
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # number of channels: Pillow's mode
CODECS = ("PNG", "JPEG", "BMP", "GIF")  # formats that TFDS stores; Pillow would open many more
PREPARATION = "keras_ae_import"  # key in the metadata of a dataset
FEATURES = "tensorflow_datasets.core.features."
DICT = f"{FEATURES}features_dict.FeaturesDict"
IMAGE = f"{FEATURES}image_feature.Image"
LABEL = f"{FEATURES}class_label_feature.ClassLabel"


@dataclass(frozen=True)
class Features:
    """The features of an example that are read.

    Attributes:
        image, label: their keys; label is None if there is no label.
        shape: (height, width, channels) of the images; None for a side that is left open.
        class_names: one name per class; None without a label.
    """

    image: str
    shape: tuple[int | None, int | None, int]
    label: str | None
    class_names: tuple[str, ...] | None


def read(prepared: Prepared, split: str, allocate=np.empty) -> ImageData:
    """Reads and decodes a whole split.

    Args:
        allocate: function (shape, dtype) -> an array or `StoredImages`, which the images are put into.

    Raises:
        DataError: the files are damaged, or their number of records is not that of the metadata;
            the format is neither array_record nor tfrecord; an example has no image; the images are
            not uint8 or have several sizes.
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
    """Turns every error of reading a split into a DataError of one line."""

    def bomb():  # does not import Pillow, which takes as long as the rest of a start from the cache
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
        if not prepared.path.exists():
            raise DataError(
                f"{prepared.path} is gone, perhaps replaced by an import meanwhile: start again"
            ) from error
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise disk.damaged(prepared.path, prepared.name, f"{split}: {why}") from error


def blocks(prepared, split, features):
    """Yields the images and labels of a split in blocks: uint8 (n, H, W, C) and int32 (n,), -1 without a
    label. A block is valid only until the next one is requested."""
    readers = {"array_record": _array_records, "tfrecord": _tf_records}
    if prepared.format not in readers:
        # TFDS 4.9.10 loses most rows when it writes parquet, but its metadata still counts them.
        raise DataError(
            f"{prepared.path} is stored as {prepared.format}, and only array_record and tfrecord can be "
            f"read: prepare it in another data directory (`kae data prepare {shlex.quote(prepared.name)} --data-dir DIR`)"
        )
    records = readers[prepared.format](disk.shards(prepared, split))
    transposed = prepared.name.startswith("emnist/")  # EMNIST stores transposed images
    for block, marks in _decode(records, prepared.splits[split], features):
        if transposed:
            block = block.swapaxes(1, 2)
        if prepared.name == "binarized_mnist":
            block *= 255  # it stores 0 and 1
        yield block, marks


def labelled(features, blocks):
    """Joins blocks of labels; returns them and the class names, or (None, None) if a label is unknown."""
    if features.label is None:
        return None, None
    labels = np.concatenate(blocks)
    if (labels < 0).any():  # TFDS stores -1 for an unknown label
        return None, None
    if labels.max() >= len(features.class_names):
        raise ValueError(f"label {labels.max()} of {len(features.class_names)} classes")
    return labels, features.class_names


def read_features(prepared) -> Features:
    """Reads from `features.json` and the files beside it which features are the image and the label.

    The image is that of the supervised keys, else "image", else the only image. The label is that of
    the supervised keys, else "label".
    """
    root = read_json(prepared.path / "features.json")
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
    info = read_json(prepared.path / "dataset_info.json")
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
    """Reads from a dataset's metadata how the import prepared its images; None if it does not say.

    Raises:
        DataError: the metadata cannot be read.
    """
    path = prepared.path / "metadata.json"  # TFDS keeps the metadata of a builder here
    try:
        with explained(prepared, "metadata.json"):
            if not path.exists():
                return None
            found = read_json(path).get(PREPARATION)
            return None if found is None else Preparation.from_dict(found)
    except OSError as error:
        raise disk.unreadable(prepared.path, prepared.name, error) from error


def _part(value, content):
    return value["pythonClassName"], value[content]


def _supervised(keys):
    """The keys of image and label, as TFDS writes them now or as it did until 4.3."""
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
    """The class names in the file `KEY.labels.txt`, else the class numbers."""
    count = label.get("numClasses", label.get("num_classes"))
    count = None if count is None else int(count)
    if count is not None and not 0 < count <= CLASSES:
        raise DataError(f"it has {count:,} classes, and 1 to {CLASSES:,} can be read")
    names = []
    path = folder / f"{key}.labels.txt"
    if path.exists():
        # What it says would be shown as names.
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            raise DataError(
                f"its {path.name} is a link to a file elsewhere: put a copy in its place"
            )
        names = [name.strip() for name in read_text(path).split("\n") if name.strip()]
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
    """Decodes serialised examples into blocks; raises ValueError if there are not `count` in all."""
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
            if has_many_scans(image):
                raise DataError(
                    f"image {index} is a JPEG of more than {SCANS} scans, and such are not read"
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


def has_many_scans(image):
    """Whether a file that Pillow opened is a JPEG whose scans, however short, may take minutes to decode."""
    if image.format not in ("JPEG", "MPO"):
        return False
    start, size, count = image.fp.tell(), 0, 0
    image.fp.seek(0)
    # A file with a hole in it can be much longer than what is on the disk.
    while size < LONGEST_RECORD and (part := image.fp.read(1 << 20)):
        size += len(part)
        # The marker of a scan, then the length of its header, 6 + 2 n for n channels in two bytes: four that come by
        # chance once in 10⁹ bytes. `part.count` of them would take as long as a tenth of the decoding.
        c = np.frombuffer(part, np.uint8)
        count += np.count_nonzero(
            (c[:-3] == 0xFF) & (c[1:-2] == 0xDA) & (c[2:-1] == 0) & (c[3:] <= 14)
        )
    image.fp.seek(start)
    return count > SCANS or size >= LONGEST_RECORD


def _array_records(shards):
    from array_record.python.array_record_module import ArrayRecordReader

    def count(path):
        try:
            os.fspath(path).encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"the files of array_record are not read from {path.parent}, whose name is not UTF-8: rename that folder"
            ) from error
        with open_file(path):  # raises a clear error, which the reader below would not
            pass
        reader = ArrayRecordReader(os.fspath(path))
        try:
            return reader.num_records()
        finally:
            reader.close()

    for path, promised in shards:  # check all files before decoding any
        if (found := count(path)) != promised:
            raise ValueError(f"{found:,} records in {path.name}, not the {promised:,} promised")
    for path, promised in shards:
        # Many records at once: reading one by one takes longer than decoding the images.
        step = max(1, min(BATCH, CHUNK * promised // max(1, path.stat().st_size)))
        reader = ArrayRecordReader(os.fspath(path))
        try:
            for start in range(0, promised, step):
                yield from reader.read(start, min(start + step, promised))
        finally:
            reader.close()


def _tf_records(shards):
    """Reads TFRecord files, for which TFDS needs TensorFlow. A record has only four fields."""
    for path, promised in shards:
        size = path.stat().st_size
        if promised > size // FIELDS:
            raise ValueError(f"{promised:,} records in the {size:,} bytes of {path.name}")
    for path, _ in shards:
        for batch in _tf_record_batches(path):
            yield from batch


def _tf_record_batches(path):
    with open_file(path) as file:
        left = os.fstat(file.fileno()).st_size
        records, checksums, held = [], [], 0
        while left > 0:
            # uint64 length, uint32 CRC of the length, the bytes, uint32 CRC of the bytes
            header = file.read(12)
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else left
            left -= FIELDS + length
            if left < 0 or length > LONGEST_RECORD:
                raise ValueError(f"{path.name} is cut short or not a TFRecord file")
            records.append(file.read(length))
            checksums.append(struct.unpack("<I", file.read(4))[0])
            held += length
            if len(records) == BATCH or held >= CHUNK or left == 0:
                if not np.array_equal(masked_crc32c(records), checksums):
                    raise ValueError(f"wrong checksum in {path.name}")
                yield records
                records, checksums, held = [], [], 0


FIELDS = 16  # bytes of a TFRecord in addition to its content
STRIPE = 2048  # most bytes that a checksum goes through one after the other


def masked_crc32c(records: list[bytes]) -> np.ndarray:
    """Computes the checksums that TFRecord files use, uint32 (N,), of N byte strings at once.

    Pillow misses about 3 % of single damaged bits in a PNG, and nothing else would notice one in a
    label. Byte by byte in Python, this would take as long as decoding. So byte k of all records is
    handled at once. Long records are cut into stripes, whose checksums are then combined.
    """
    # Leading zeros do not change a checksum that starts at 0. The 4 bytes of START turn 0 into all ones.
    lengths = np.array([len(START) + len(record) for record in records])
    width = min(int(lengths.max()), STRIPE)
    counts = -(-lengths // width)  # stripes of each record; the first is padded with leading zeros
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
    """How `count` zero bytes change a checksum: for each of its four bytes, a table of 256 values."""
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
    for _ in range(4):  # undo one zero byte: only one entry of the table has this upper byte
        i = int((_CRC32C >> 24).tolist().index(crc >> 24))
        crc = ((crc ^ int(_CRC32C[i])) << 8 | i) & 0xFFFFFFFF
    return crc.to_bytes(4, "little")


START = _start()

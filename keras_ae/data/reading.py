"""Reads a prepared dataset into arrays: records by TFDS, images by Pillow, no TensorFlow."""

import io
import os
import struct
from dataclasses import dataclass

import numpy as np

from keras_ae.data import disk
from keras_ae.data.disk import DataError, Prepared
from keras_ae.data.stored import StoredImages

PIXELS = 1 << 26  # in an image: a small file can unpack to any size
BATCH = 1024  # records held in memory as bytes at a time
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels to Pillow's name for them
CODECS = ("PNG", "JPEG", "BMP", "GIF")  # what TFDS stores; Pillow knows many more, and trusts them


@dataclass(frozen=True, eq=False)
class ImageData:
    """One split of an image dataset.

    Attributes:
        name: TFDS name with its config, "mnist" or "emnist/balanced".
        version: TFDS version, "3.0.1".
        split: "train", "test", ... or which part of one it is.
        images: uint8 (N, H, W, C), 0 to 255, C 1, 3 or 4. May be mapped from a file; writing to it
            is allowed, and changes neither the file nor the next load. What is too large for memory
            is a `StoredImages`, which reads the rows that it is asked for.
        labels: int32 (N,), 0 to num_classes - 1; None for a dataset without classes.
        class_names: one name per class; None for a dataset without classes.
    """

    name: str
    version: str
    split: str
    images: np.ndarray | StoredImages
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None

    @property
    def num_classes(self) -> int:
        """0 for a dataset without classes."""
        return len(self.class_names or ())


def read(prepared: Prepared, split: str, allocate=np.empty) -> ImageData:
    """Reads and decodes a whole split.

    Args:
        allocate: (shape, dtype) -> the array, or the `StoredImages`, to put the images into.

    Raises:
        DataError: the files are damaged or hold another number of records than the metadata says;
            the format is neither array_record nor tfrecord; there is no image in an example; the
            images are not uint8, or not all of one size.
    """
    import tensorflow_datasets as tfds
    from PIL import Image

    if prepared.format not in ("array_record", "tfrecord"):
        # TFDS 4.9.10 drops most rows of what it writes as parquet and promises them all the same.
        raise DataError(
            f"{prepared.name} in {prepared.path} is stored as {prepared.format}, and only "
            f"array_record and tfrecord can be read: prepare it in another data directory "
            f"(`kae data prepare {prepared.name} --data-dir DIR`)"
        )
    try:
        builder = tfds.builder_from_directory(prepared.path)
        image_key, label_key = _choose_features(builder.info)
        shape = builder.info.features[image_key].shape
        read_records = _array_records if prepared.format == "array_record" else _tf_records
        records = read_records(builder, split)
        images = None
        transposed = prepared.name.startswith("emnist/")  # as they are stored
        labels = np.full(prepared.splits[split], -1, np.int32)
        start = 0
        for block, marks in _decode(records, len(labels), shape, image_key, label_key):
            if transposed:
                block = block.swapaxes(1, 2)
            if prepared.name == "binarized_mnist":
                block *= 255  # it stores 0 and 1
            if images is None:
                images = allocate((len(labels), *block.shape[1:]), np.uint8)
            if isinstance(images, StoredImages):
                images.write(start, block)
            else:
                images[start : start + len(block)] = block
            labels[start : start + len(block)] = marks
            start += len(block)
    except DataError as error:
        raise DataError(f"{prepared.name} cannot be used: {error}") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{prepared.name} cannot be used: {error}") from error
    except MemoryError as error:
        raise DataError(f"{prepared.name} {split} does not fit into memory: {error}") from error
    except Exception as error:
        why = f"{split}: {str(error).strip().partition(chr(10))[0] or type(error).__name__}"
        raise disk.damaged(prepared.path, prepared.name, why) from error
    class_names = None
    if label_key is not None and (labels >= 0).all():  # -1 is how TFDS says unknown
        class_names = tuple(builder.info.features[label_key].names)
        if labels.max() >= len(class_names):
            why = f"{split}: label {labels.max()} of {len(class_names)} classes"
            raise disk.damaged(prepared.path, prepared.name, why)
    assert images is not None
    return ImageData(
        name=prepared.name,
        version=prepared.version,
        split=split,
        images=images,
        labels=None if class_names is None else labels,
        class_names=class_names,
    )


def _choose_features(info):
    """The keys of the image and of the label, or None: the supervised keys, else the obvious."""
    from tensorflow_datasets import features

    def keys(kind):
        return sorted(k for k, feature in info.features.items() if type(feature) is kind)

    supervised = info.supervised_keys or (None, None)
    images, labels = keys(features.Image), keys(features.ClassLabel)
    image = next((k for k in (supervised[0], "image") if k in images), None)
    if image is None and len(images) == 1:
        image = images[0]
    if image is None:
        has = f"several ({', '.join(images)})" if images else "none"
        raise DataError(f"each example must have one image, and it has {has}")
    shape, dtype = info.features[image].shape, np.dtype(info.features[image].np_dtype)
    if dtype != np.uint8 or len(shape) != 3 or shape[-1] not in MODES:
        raise DataError(
            f"its images are {dtype} {shape}: only uint8 (height, width, channels) with 1, 3 or 4 "
            f"channels can be read"
        )
    return image, next((k for k in (supervised[1], "label") if k in labels), None)


def _decode(records, count, shape, image_key, label_key):
    """Serialised examples to blocks of uint8 (n, H, W, C) and int32 (n,), -1 where there is no label.

    There are `count` images in all, or an error.
    """
    from PIL import Image
    from tensorflow_datasets.proto.tf_example_generated_pb2 import Example

    height, width, channels = shape
    mode = MODES[channels]
    size, images, labels = None, [], []
    index = -1
    for index, record in enumerate(records):
        if index == count:
            raise ValueError(f"more than the {count:,} records that dataset_info.json promises")
        feature = Example.FromString(record).features.feature
        with Image.open(
            io.BytesIO(feature[image_key].bytes_list.value[0]), formats=CODECS
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
            pixels = np.asarray(image if image.mode == mode else image.convert(mode))
        images.append(pixels.reshape(*size[::-1], channels))
        labels.append(-1 if label_key is None else feature[label_key].int64_list.value[0])
        if len(images) == BATCH:
            yield np.stack(images), labels
            images, labels = [], []
    if index + 1 != count:
        raise ValueError(
            f"{index + 1:,} records, not the {count:,} that dataset_info.json promises"
        )
    if size is None:
        raise DataError("the split has no images")
    if images:
        yield np.stack(images), labels


def _array_records(builder, split):
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordReader

    info = builder.info.splits[split]
    for path, promised in zip(info.filepaths, info.shard_lengths, strict=True):
        # The data source below reads as many as were promised, and never notices more.
        reader = ArrayRecordReader(os.fspath(path))
        count = reader.num_records()
        reader.close()
        if count != promised:
            raise ValueError(f"{count:,} records in {path.name}, not the {promised:,} promised")
    source = builder.as_data_source(
        split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    for start in range(0, len(source), BATCH):
        # Many at once: one by one costs more than decoding the images.
        yield from source.__getitems__(range(start, min(start + BATCH, len(source))))


def _tf_records(builder, split):
    """TFDS reads TFRecord files with TensorFlow only; the format is four fields a record."""
    for path in builder.info.splits[split].filepaths:
        for batch in _tf_record_batches(path):
            yield from batch


def _tf_record_batches(path):
    with open(path, "rb") as file:
        left = os.fstat(file.fileno()).st_size
        records, checksums = [], []
        while left > 0:
            # uint64 length, uint32 CRC of the length, the bytes, uint32 CRC of the bytes
            header = file.read(12)
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else left
            left -= 16 + length
            if left < 0:
                raise ValueError(f"{path.name} is cut short or not a TFRecord file")
            records.append(file.read(length))
            checksums.append(struct.unpack("<I", file.read(4))[0])
            if len(records) == BATCH or left == 0:
                if not np.array_equal(masked_crc32c(records), checksums):
                    raise ValueError(f"wrong checksum in {path.name}")
                yield records
                records, checksums = [], []


def masked_crc32c(records: list[bytes]) -> np.ndarray:
    """The checksum of TFRecord files, uint32 (N,), of N byte strings at once.

    Pillow misses about 3 % of single damaged bits in a PNG, and nobody else would notice one in a
    label. Byte by byte in Python this would take as long as decoding; byte k of all records at a
    time does not.
    """
    order = sorted(range(len(records)), key=lambda i: -len(records[i]))
    lengths = np.array([len(records[i]) for i in order])
    columns = np.zeros((lengths[0], len(records)), np.uint8)
    for column, i in enumerate(order):
        columns[: lengths[column], column] = np.frombuffer(records[i], np.uint8)
    crc = np.full(len(records), 0xFFFFFFFF, np.uint32)
    # The longest come first: at byte k, the first `active` records still have one.
    for k, active in enumerate(np.searchsorted(-lengths, -np.arange(lengths[0]), side="left")):
        head = crc[:active]
        crc[:active] = _CRC32C[(head ^ columns[k, :active]) & 0xFF] ^ (head >> 8)
    crc ^= 0xFFFFFFFF
    masked = ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)
    result = np.empty_like(masked)
    result[order] = masked
    return result


def _crc32c_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table.astype(np.uint32)


_CRC32C = _crc32c_table()

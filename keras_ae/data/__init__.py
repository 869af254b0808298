"""TFDS datasets as uint8 arrays, without TensorFlow.

    train, test = load_splits("mnist")
    train.images.shape, train.labels[:3], train.class_names

The first call prepares the dataset (mnist from files in this package), decodes it and keeps the
arrays in a cache. Later calls read these arrays and import only NumPy. Every problem is raised as
a DataError, whose one line of text says what to do.
"""

import hashlib
import shlex
from dataclasses import replace

import numpy as np

from keras_ae.data import cache, disk, reading
from keras_ae.data.arrays import ImageData, StoredImages
from keras_ae.data.disk import DataError, Prepared, available, lasting_name, resolve_data_dir
from keras_ae.data.preparation import Preparation

__all__ = [
    "DataError",
    "ImageData",
    "Preparation",
    "Prepared",
    "StoredImages",
    "available",
    "find_files",
    "import_folder",
    "is_prepared",
    "lasting_name",
    "load",
    "load_splits",
    "prepare",
    "read_files",
    "resolve_data_dir",
    "verify",
]

TEST_SPLITS = ("test", "validation", "val", "valid")  # in order of preference

# SHA-256 of images and labels in the order of the records. TFDS derives this order from the keys.
GENUINE = {
    "mnist/3.0.1/train": "ef80b4281e56b21d759a53bf05077b463d222ef8c3bc7de638091242e7c02667",
    "mnist/3.0.1/test": "670e94e863b684ad97d36ceef5ae7bb7dad7897e955a7ac0d1ba5cdb9bedb946",
    "fashion_mnist/3.0.1/train": "1fc8802f422a8de6f04d0f4f78a3712fc03fb8474221d84707982f873bd60239",
    "fashion_mnist/3.0.1/test": "1c706ad5aa51c27f729eade5e233f3a7464291b1294967130c0fe6b9a7406fcd",
}


def is_prepared(name, data_dir=None) -> bool:
    """Whether the data directory holds a dataset of this name."""
    return disk.find(name, resolve_data_dir(data_dir), by_path=False) is not None


def prepare(name, data_dir=None, source=None, progress=None) -> Prepared:
    """Makes sure that a dataset is on disk; returns at once if it already is.

    mnist comes with the package and needs no network. fashion_mnist, kmnist and emnist/* are
    downloaded, or read from `source`. Other TFDS datasets are downloaded too, but most of their
    builders need TensorFlow. A dataset appears in the data directory complete or not at all, even
    if two processes prepare it at the same time.

    Args:
        name: TFDS name, such as "kmnist" or "emnist/balanced".
        data_dir: see `disk.resolve_data_dir`.
        source: folder with the four IDX files of mnist or fashion_mnist (plain, .gz or .xz; on
            Debian, the package dataset-fashion-mnist puts the files of fashion_mnist into
            /usr/share/datasets/fashion-mnist), the four original .gz files of kmnist, or the
            original gzip.zip of emnist. The files are verified by SHA-256.
        progress: called with one line of text when there is something to report.

    Raises:
        DataError: the dataset does not exist, the network or TensorFlow is missing, a checksum is
            wrong, the folder cannot be written, or a damaged dataset is in its place.
    """
    name, data_dir = disk.text_of(name), resolve_data_dir(data_dir)
    progress = progress or (lambda line: None)
    if found := disk.find(name, data_dir):
        if source is not None:
            imported = reading.read_preparation(found) is not None
            again = f"{shlex.quote(found.name)} FOLDER --force{_elsewhere(data_dir)}"
            anew = (
                f"it is an import, and `kae data import {again}` replaces it"
                if imported
                else "move that folder away to prepare it anew"
            )
            progress(f"{name} is in {found.path} already, so {source} was not used: {anew}")
        return found
    from keras_ae.data import preparing  # only needed if the dataset is not on disk

    return preparing.prepare(name, data_dir, source, progress)


def import_folder(name, folder, *args, **kwargs) -> Prepared:
    """Makes a dataset from a folder of class folders: see `folders.import_folder`."""
    from keras_ae.data import folders  # imports Pillow and TFDS, which the cache does not need

    return folders.import_folder(name, folder, *args, **kwargs)


def find_files(paths):
    """Finds image files, also in folders: see `images.find_files`."""
    from keras_ae.data import images  # imports Pillow

    return images.find_files(paths)


def read_files(paths, shape, crop=False, invert=False, preparation=None) -> np.ndarray:
    """Reads image files as a model takes them, (N, H, W, C) uint8: see `images.read_files`."""
    from keras_ae.data import images  # imports Pillow

    return images.read_files(paths, shape, crop, invert, preparation)


def load(name, split, data_dir=None, limit=None, progress=None) -> ImageData:
    """Loads one split of a dataset, and prepares the dataset first if necessary.

    Args:
        name: TFDS name, such as "mnist", "emnist/balanced" or "mnist:3.0.1", or the path of a dataset's
            folder.
        split: one of the dataset's splits, such as "train" or "test".
        data_dir: the folder of all datasets, see `resolve_data_dir`.
        limit: keep only this many images, the first ones.
        progress: called with one line of text when there is something to report.

    Raises:
        DataError: see `prepare` and `reading.read`. Also if the split does not exist or the limit
            is below 1.
    """
    _check_limit(limit)
    prepared = prepare(name, data_dir, progress=progress)
    if split not in prepared.splits:
        raise DataError(f"{name} has no split {split!r}; it has {', '.join(prepared.splits)}")
    return _first(_load_whole(prepared, split, progress), limit)


def load_splits(name, data_dir=None, limit=None, progress=None) -> tuple[ImageData, ImageData]:
    """Loads the images to train on and the images to test on.

    Training uses the split "train". Testing uses the first split that exists of "test",
    "validation", "val" and "valid". If none exists, a tenth of the training images is held out for
    testing, drawn with a fixed seed: always the same images, and never trained on. If a dataset has
    a single split of any other name, that split is used like "train".

    Args:
        limit: keep only this many images of each of the two, the first ones.
        name, data_dir, progress: as for `load`.

    Raises:
        DataError: as for `load`.
    """
    _check_limit(limit)
    prepared = prepare(name, data_dir, progress=progress)
    names = list(prepared.splits)
    train_name = names[0] if len(names) == 1 else "train"
    if train_name not in names:
        raise DataError(f"{name} has no split 'train' to train on; it has {', '.join(names)}")
    train = _load_whole(prepared, train_name, progress)
    test_name = next((s for s in TEST_SPLITS if s in names and s != train_name), None)
    if test_name is None:
        train, test = _hold_out(train)
    else:
        test = _load_whole(prepared, test_name, progress)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{name} has images of {train.images.shape[1:]} to train on and of "
            f"{test.images.shape[1:]} to test on: a model needs one size"
        )
    return _first(train, limit), _first(test, limit)


def verify(name, data_dir=None) -> dict:
    """Reads a prepared dataset from its records, without the cache, and decodes every image.

    Returns:
        A dict of name, version, format, path and splits. Each split has its number of images, their
        shape, sha256 (of images and labels) and genuine: True if the right sha256 is known, False
        for what calls itself another version, or split, of such a dataset, None for any other dataset.

    Raises:
        DataError: the dataset is missing, damaged, or not the one that its name says.
    """
    name, data_dir = disk.text_of(name), resolve_data_dir(data_dir)
    prepared = disk.find(name, data_dir)
    if prepared is None:
        where, quoted = _elsewhere(data_dir), shlex.quote(name)
        if disk.parse_name(name) is None:
            raise DataError(
                f"there is no dataset {name}: `kae data list{where}` shows what there is"
            )
        raise DataError(
            f"{name} is not in {data_dir}: name the data directory that has it (--data-dir or KAE_DATA_DIR), or run "
            f"`kae data prepare {quoted}{where}` (of your own images, `kae data import {quoted} FOLDER{where}`)"
        )
    if not prepared.splits:
        raise disk.damaged(prepared.path, prepared.name, "it has no splits")
    known_name = prepared.name in {key.partition("/")[0] for key in GENUINE}
    splits = {}
    for split, count in prepared.splits.items():
        digest, labels, shape = hashlib.sha256(), [], ()
        with reading.explained(prepared, split):
            features = reading.read_features(prepared)
            for block, marks in reading.blocks(prepared, split, features):
                digest.update(np.ascontiguousarray(block))
                labels.append(marks)
                shape = block.shape[1:]
            known, _ = reading.labelled(features, labels)
        if known is not None:
            digest.update(known.astype("<i4"))
        expected = GENUINE.get(f"{prepared.name}/{prepared.version}/{split}")
        if expected not in (None, digest.hexdigest()):
            why = f"{split}: the images and labels are not those of {prepared.name}"
            raise disk.damaged(prepared.path, prepared.name, why)
        splits[split] = {
            "images": count,
            "shape": list(shape),
            "sha256": digest.hexdigest(),
            "genuine": expected is not None if known_name else None,
        }
    return {
        "name": prepared.name,
        "version": prepared.version,
        "format": prepared.format,
        "path": str(prepared.path),
        "splits": splits,
    }


def _elsewhere(data_dir):
    """The option of an advised command that names a data directory, if it is not the usual one."""
    return "" if data_dir == resolve_data_dir() else f" --data-dir {shlex.quote(str(data_dir))}"


def _load_whole(prepared, split, progress) -> ImageData:
    preparation = reading.read_preparation(prepared)
    data = cache.load(prepared, split)
    if data is None:
        progress = progress or (lambda line: None)
        progress(f"reading {prepared.splits[split]:,} images of {prepared.name} {split} …")
        with cache.bounded_memory() as allocate:
            with reading.explained(prepared, split):
                key = cache.made_from(prepared, split)
            data = reading.read(prepared, split, allocate)
            try:
                cache.store(prepared, data, key)
            except OSError as error:
                why = error.strerror or error
                progress(f"not cached ({why}): set KAE_CACHE to a folder that can be written")
    return replace(data, preparation=preparation)


def _check_limit(limit):
    if limit is not None and limit < 1:
        raise DataError(f"the limit must be at least 1, not {limit}")


def _first(data, limit) -> ImageData:
    return data if limit is None else data.select(slice(limit))


def _hold_out(data) -> tuple[ImageData, ImageData]:
    count = len(data.images)
    if count < 2:
        raise DataError(f"{data.name} has one image: at least two are needed, one to test on")
    held_out = np.zeros(count, bool)
    held_out[np.random.default_rng(0).permutation(count)[: max(1, count // 10)]] = True

    train = replace(data.select(~held_out), split=f"{data.split} (nine tenths)")
    return train, replace(data.select(held_out), split=f"{data.split} (held-out tenth)")

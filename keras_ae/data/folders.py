"""Makes a TFDS dataset from a folder of images, with or without class folders, without TensorFlow.

    FOLDER/cat/*.png  FOLDER/dog/*.jpg                     one set, split at random with a seed
    FOLDER/train/cat/*.png …  FOLDER/test/cat/*.png …      the folder's own split
    FOLDER/*.png, or FOLDER/train/*.png  FOLDER/test/*.png     no classes

The result is an ordinary TFDS dataset. Its records hold PNG images and, if there are classes, labels.
Its metadata holds the names of the classes. The stock `tfds` reads it without this package.
"""

import dataclasses
import io
import operator
import os
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np

from keras_ae.data import disk
from keras_ae.data.builders import encode_png
from keras_ae.data.disk import PIXELS, DataError, Prepared
from keras_ae.data.images import (
    MODES,
    SUFFIXES,
    of_the_file,
    opened,
    read_image,
    upright_size,
)
from keras_ae.data.preparation import Preparation
from keras_ae.data.preparing import generate, quiet_tfds, reason
from keras_ae.data.reading import PREPARATION, read_preparation
from keras_ae.files import sync

DESCRIPTION = "Images imported from a folder."
TEST_FOLDERS = ("test", "validation", "val", "valid")
ALIKE = {"train", "training", "testing", *TEST_FOLDERS}  # names, in small letters, of splits
FLAT = ""  # used as the only class if there are no class folders; no folder can have this name
ADVICE = "mend it or move it elsewhere, or leave out such files (--skip-unreadable)"
# Files that an import writes beside the records.
WRITTEN = {"dataset_info.json", "features.json", "metadata.json", "label.labels.txt"}
GREY = {"1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N", "I"}


def import_folder(
    name,
    folder,
    data_dir=None,
    resize=None,
    crop=False,
    mode=None,
    background="white",
    test_fraction=None,
    seed=None,
    skip_unreadable=False,
    force=False,
    progress=None,
) -> Prepared:
    """Makes a dataset from a folder of class folders, or from a folder of images, without labels.

    The names of the folders are the classes, in alphabetical order (in numerical order if all are
    numbers). Hidden files, folders named `__MACOSX` and files without an image suffix are left out;
    links are followed. Images are turned as their EXIF data says. Of an animation, the first frame
    is used. Grey values of 16 bits are scaled to 8 bits. CMYK and palette images become RGB.
    Transparent pixels show the background.

    Args:
        name: name of the dataset: letters, digits and _, and not a name that TFDS already has.
        folder: holds class folders; or images and no folders; or folders `train` and perhaps `test`
            (or validation, val, valid) that hold either.
        data_dir: see `disk.resolve_data_dir`.
        resize: (height, width) that every image is scaled to; None if all images have one size.
        crop: before scaling, cut two opposite sides of an image, so that it is not stretched.
        mode: "grey" or "rgb"; None for grey if all images are grey, else RGB.
        background: "white" or "black", behind transparent pixels.
        test_fraction: share of each class, in [0, 1), that becomes the split test, a tenth by default;
            only for a folder that has no test folder of its own.
        seed: seed of the random split.
        skip_unreadable: leave out files that cannot be read, and report how many.
        force: replace a dataset of this name that was imported before, by its next version.
        progress: called with one line of text when there is something to report.

    Raises:
        DataError: with one line of text: the name is taken, there are no images, a class has no
            images, there are fewer than two images, a file cannot be read, an image has more pixels
            than Pillow's limit, images have several sizes and `resize` is None, or another import of
            this name finished meanwhile.
    """
    name, progress = disk.text_of(name), progress or (lambda line: None)
    folder, data_dir = disk.expanded(folder, "HOME"), disk.resolve_data_dir(data_dir)
    if mode not in (None, "grey", "rgb"):
        raise DataError(f"--mode is grey or rgb; got {mode!r}")
    if resize is not None:
        resize = _sides(resize)
    if crop and resize is None:
        raise DataError("--crop cuts images to the shape of --resize: give that, too")
    preparation = Preparation(background, crop, stretch=resize is not None and not crop)
    old = _check_name(name, data_dir, force)
    # Not `Path.resolve`, which raises RuntimeError for links that lead in a circle.
    given, target = (Path(os.path.realpath(path)) for path in (folder, data_dir / name))
    if given.is_relative_to(target):
        raise DataError(
            f"{folder} lies in {data_dir / name}, where the dataset is written: move it elsewhere first"
        )
    if target.is_relative_to(given):
        raise DataError(
            f"{data_dir / name}, where the dataset is written, lies in {folder}: give another --data-dir"
        )
    # The new version is written beside the old one. Readers take the newest complete version.
    # The name of a folder may be none that its JSON says, and counts.
    version = "1.0.0" if old is None else disk.next_version(old.path.name)
    try:
        splits, classes = _find_images(folder, test_fraction, seed)
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read: {error.strerror}") from error
    ignored = splits.pop("ignored")
    if ignored:
        progress(f"left out, without the suffix of an image: {ignored:,} of the files")
    if not classes:
        progress("there are no class folders, and so no labels: for an ae or a vae")
    elif len(classes) == 1:
        progress(f"there is one class, {classes[0]}: a vae suits it as well as a cvae")
    unreadable: list[Path] = []
    shape = _survey(splits, classes, resize, mode, unreadable if skip_unreadable else None)
    if unreadable:
        progress(f"left out, as it cannot be read: {unreadable[0]}, first of {len(unreadable):,}")
    if splits.keys() == {"train"}:
        splits = _train_and_test(splits["train"], test_fraction, seed)

    written = False  # else another process made the dataset that is there at the end

    def encoded(path):
        nonlocal written
        written = True
        image = read_image(path, resize, crop, MODES[shape[2]], background, ADVICE)
        if image.size != shape[1::-1]:
            raise DataError(
                f"{path} is {image.width}x{image.height} by now, and the images are {shape[1]}x{shape[0]}: start again"
            )
        return _encode(image)

    try:
        builder = _make_builder(
            name, data_dir, version, shape, classes, splits, encoded, preparation
        )
        generate(builder, data_dir, progress, ours=True)
    except DataError:
        raise
    except Exception as error:  # on a full disk, TFDS and array_record raise various errors
        if (found := disk.find(name, data_dir)) not in (None, old):
            raise _too_late(found) from error
        raise DataError(f"{name} cannot be written to {data_dir}: {reason(error)}") from error
    prepared = disk.find(name, data_dir)
    assert prepared is not None
    if not written or prepared.version != version:
        raise _too_late(prepared)
    if old is not None:
        sync(prepared.path)
        # Renamed first: if the process is killed during the removal, no partial version is left. Something may have
        # been put there since the import began, and under its new name nothing more will be.
        aside = old.path.with_name(f"incomplete.replaced_{old.path.name}")
        old.path.rename(aside)
        if others := _strangers(dataclasses.replace(old, path=aside)):
            aside.rename(old.path)
            progress(f"{old.path} stays: it now holds {others[0].name}, which no import wrote")
        elif aside.is_symlink():
            # What it leads to is not ours to remove.
            aside.unlink()
        else:
            shutil.rmtree(aside, ignore_errors=True)
    return prepared


def _sides(resize):
    """The (height, width) that images are scaled to, checked."""
    try:
        height, width = map(operator.index, resize)
        if height > 0 and width > 0:
            return height, width
    except (TypeError, ValueError):
        pass
    raise DataError(f"--resize is a height and a width, whole numbers above 0; got {resize!r}")


def _too_late(prepared) -> DataError:
    return DataError(
        f"another import of {prepared.name} finished first, in {prepared.path}; --force replaces it"
    )


def _check_name(name, data_dir, force) -> Prepared | None:
    """Raises DataError if a name is invalid or taken; returns the dataset to be replaced, if any."""
    import tensorflow_datasets as tfds

    if not re.fullmatch(r"[a-z]\w*", name, re.ASCII):
        raise DataError(
            f"{name!r} is no name for a dataset: small letters, digits and _, a letter first"
        )
    with quiet_tfds():
        if name in tfds.list_builders(with_community_datasets=False):
            raise DataError(f"{name} is a dataset of TFDS: choose another name")
    found = disk.find(name, data_dir)
    if found is not None and not force:
        raise DataError(f"{name} exists in {found.path}; --force replaces it")
    if found is not None and (found.path.parent != data_dir / name or not read_preparation(found)):
        raise DataError(f"{name} in {found.path} was made by no import: choose another name")
    if found is not None and (others := _strangers(found)):
        raise DataError(
            f"{found.path} holds {others[0].name}, which no import wrote and --force would remove: move it elsewhere first"
        )
    return found


def _strangers(prepared):
    """What lies in the folder of an imported dataset, and no import wrote."""
    name, splits = re.escape(prepared.name), "|".join(map(re.escape, prepared.splits))
    records = re.compile(rf"{name}-({splits})\.array_record-\d{{5}}-of-\d{{5}}")

    def ours(path):
        return path.is_file() and (path.name in WRITTEN or records.fullmatch(path.name))

    return sorted(path for path in prepared.path.iterdir() if not ours(path))


def _visible(folder):
    """The entries of a folder, sorted by name, without hidden ones and `__MACOSX`."""
    entries = [e for e in folder.iterdir() if not e.name.startswith(".") and e.name != "__MACOSX"]
    return sorted(entries, key=lambda e: e.name)


def _find_images(folder, test_fraction, seed):
    """Returns ({split: [(path, label)], "ignored": number of files left out}, class names).

    If the folder has no test folder, all images are in train. If there are no class folders, all labels
    are 0 and there are no class names.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    folders = [e for e in _visible(folder) if e.is_dir()]
    names = {f.name for f in folders}
    splits_alone = "train" in names and names <= {"train", *TEST_FOLDERS}
    if names and not splits_alone and {name.lower() for name in names} <= ALIKE:
        raise DataError(
            f"{folder} holds {' and '.join(sorted(names))}: call them train and test if they are splits, or otherwise if "
            "they are classes"
        )
    if splits_alone:
        tests = [t for t in TEST_FOLDERS if t in names]
        train, ignored = _of_classes(folder / "train")
        classes = [] if train.keys() == {FLAT} else list(train)
        splits = {"train": [(p, i) for i, c in enumerate(train) for p in train[c]]}
        if beside := [e for e in _visible(folder) if e.suffix.lower() in SUFFIXES]:
            raise DataError(f"{beside[0]} lies beside the folders of the splits, in none of them")
        if not tests:
            _check_fraction(test_fraction, seed)
        elif test_fraction is not None or seed is not None:
            option = "--seed" if test_fraction is None else "--test-fraction"
            raise DataError(f"{folder} has its own {tests[0]}: {option} is for one without")
        for split in tests:
            images, more = _of_classes(folder / split, may_be_empty=True)
            ignored += more
            if (FLAT in images) != (not classes):
                raise DataError(
                    f"{folder / 'train'} and {folder / split} must both have class folders, or neither"
                )
            if unknown := sorted(set(images) - set(train)):
                raise DataError(
                    f"{folder / split / unknown[0]} is a class that {folder / 'train'} does not have"
                )
            splits[split] = [(p, list(train).index(c)) for c in images for p in images[c]]
            if not splits[split]:
                raise _no_images(folder / split)
    else:
        images, ignored = _of_classes(folder)
        classes = [] if images.keys() == {FLAT} else list(images)
        splits = {"train": [(p, i) for i, c in enumerate(images) for p in images[c]]}
        _check_fraction(test_fraction, seed)
    return {**splits, "ignored": ignored}, classes


def _of_classes(folder, may_be_empty=False):
    """Returns ({class: its files}, number of files left out); {FLAT: all files} without class folders."""
    entries = _visible(folder)
    folders = [e for e in entries if e.is_dir()]
    pictures = [e for e in entries if e.suffix.lower() in SUFFIXES and not e.is_dir()]
    if not folders and not pictures:
        raise DataError(f"{folder} has no folders in it, one for each class, and no images")
    if not folders:
        return {FLAT: pictures}, len(entries) - len(pictures)
    if pictures:
        raise DataError(
            f"{pictures[0]} lies beside class folders, in none of them: put all images into class "
            "folders, or all of them into one folder without any"
        )
    ignored = len(entries) - len(folders)
    if all(f.name.isdecimal() for f in folders):
        folders.sort(key=lambda f: int(f.name))
    images = {}
    for f in folders:
        # TFDS strips spaces from class names and drops blank names.
        if not f.name.strip() or f.name != f.name.strip():
            raise DataError(f"{str(f)!r} cannot be a class: its name begins or ends with a space")
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in f.name):
            raise DataError(f"{str(f)!r} cannot be a class: its name is no line of text")
        entries = _visible(f)
        if inner := next((e for e in entries if e.is_dir()), None):
            raise DataError(f"{inner} is a folder in a class folder, which holds files only")
        images[f.name] = [e for e in entries if e.suffix.lower() in SUFFIXES]
        ignored += len(entries) - len(images[f.name])
        if not images[f.name] and not may_be_empty:
            raise _no_images(f)
    return images, ignored


def _no_images(folder):
    others = [f for f in sorted(folder.rglob("*")) if f.is_file() and not f.name.startswith(".")]
    if not others:
        return DataError(
            f"{folder} has no files, or only hidden ones: fill it, or move it elsewhere"
        )
    return DataError(
        f"{folder} has no images that are read ({', '.join(SUFFIXES)}), but others, such as {others[0].name}: convert "
        "these, or move the folder elsewhere"
    )


def _check_fraction(test_fraction, seed):
    try:
        valid = test_fraction is None or 0 <= test_fraction < 1
    except TypeError:
        valid = False
    if not valid:
        raise DataError(
            f"--test-fraction is a share of the images in [0, 1); got {test_fraction!r}"
        )
    try:
        # An array of one number has an index as well.
        valid = seed is None or not np.ndim(seed) and operator.index(seed) >= 0
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise DataError(f"--seed is a whole number, 0 or more; got {seed!r}")
    if test_fraction == 0 and seed is not None:
        raise DataError("--seed splits the images, and --test-fraction 0 does not: leave it out")


def _train_and_test(listed, test_fraction, seed):
    """Splits [(path, label)] into train and test, with the same share of every class.

    Classes that are too small for a share of their own give an image each, until the share of all is met.
    """
    fraction = 0.1 if test_fraction is None else test_fraction
    if len(listed) < 2:
        raise DataError("one image is no dataset: at least two are needed, one to test on")
    if fraction == 0:
        return {"train": listed}
    random = np.random.default_rng(0 if seed is None else seed)
    labels = np.array([label for _, label in listed])
    tested = np.zeros(len(listed), bool)
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        tested[rows[: min(round(fraction * len(rows)), len(rows) - 1)]] = True
    counts, without = np.bincount(labels), np.setdiff1d(labels, labels[tested])
    for label in sorted(random.permutation(without), key=lambda label: -counts[label]):
        if counts[label] == 1 or tested.sum() >= max(1, round(fraction * len(listed))):
            break
        tested[random.choice(np.flatnonzero(labels == label))] = True
    if not tested.any():  # each class has one image
        tested[random.choice(len(listed))] = True
    pairs = list(zip(listed, tested))
    return {
        "train": [image for image, test in pairs if not test],
        "test": [image for image, test in pairs if test],
    }


def _survey(splits, classes, resize, mode, unreadable):
    """Opens every file and returns the (height, width, channels) of the images to be written.

    If `unreadable` is a list, every file is also decoded. Files that cannot be decoded are moved from
    the splits to that list.
    """
    first, grey = None, True
    for split in splits:
        kept = []
        for path, label in splits[split]:
            try:
                with opened(path, ADVICE) as image:
                    size, image_mode = upright_size(image), image.mode
                    if unreadable is not None:
                        image.load()
            except DataError as error:
                # A file that the system does not read may be whole: it is not left out.
                if unreadable is None or not of_the_file(error.__cause__):
                    raise
                unreadable.append(path)
                continue
            kept.append((path, label))
            grey &= image_mode in GREY
            first = first or (size, path)
            if resize is None and size != first[0]:
                raise DataError(
                    "images have more than one size ({}x{} {}, {}x{} {}): give --resize "
                    "HEIGHTxWIDTH, perhaps with --crop".format(*first[0], first[1], *size, path)
                )
        splits[split] = kept
        if not kept:
            raise DataError(f"no image of {split} can be read")
    if lost := set(range(len(classes))) - {label for _, label in splits["train"]}:
        raise DataError(
            f"no image of the class {classes[min(lost)]} can be read: mend one, or move its folder elsewhere"
        )
    mode = mode or ("grey" if grey else "rgb")
    height, width = resize or first[0][::-1]
    if height * width > PIXELS:
        raise DataError(
            f"images of {height}x{width} have more than {PIXELS:,} pixels: give --resize HEIGHTxWIDTH"
        )
    return (height, width, 1 if mode == "grey" else 3)


def _encode(image):
    if image.mode == "L":
        return encode_png(np.asarray(image))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _make_builder(name, data_dir, version, shape, classes, splits, encoded, preparation):
    """A TFDS builder of the images in `splits`."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    features = {"image": tfds.features.Image(shape=shape, encoding_format="png")}
    if classes:
        features["label"] = tfds.features.ClassLabel(names=classes)

    class Info(tfds.core.DatasetInfo):
        def initialize_from_bucket(self):
            """Does nothing: the dataset is in no bucket. TFDS would leave an empty temporary folder."""

    def info(self):
        return Info(
            builder=self,
            description=DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label") if classes else None,
            metadata=tfds.core.MetadataDict({PREPARATION: preparation.to_dict()}),
        )

    def examples(self, listed):
        for path, label in listed:
            # TFDS shuffles the records by this key, so the key determines their order.
            labels = {"label": label} if classes else {}
            key = os.fsencode(f"{path.parent.name}/{path.name}")  # a name may be in no encoding
            yield key, {"image": encoded(path), **labels}

    members = {
        "__doc__": DESCRIPTION,
        "VERSION": tfds.core.Version(version),
        "name": name,
        # `generate` reads this: the images are local, so nothing is downloaded.
        "source": True,
        "_info": info,
        "_generate_examples": examples,
        "_split_generators": lambda self, dl: {s: examples(self, splits[s]) for s in splits},
    }
    with registered.skip_registration(), quiet_tfds():
        kind = type(
            "".join(map(str.title, name.split("_"))), (tfds.core.GeneratorBasedBuilder,), members
        )
        return kind(data_dir=data_dir, file_format="array_record")

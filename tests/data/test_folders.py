"""Folders of images become datasets: what comes out, and what every odd file does."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

import numpy as np
import pytest
from PIL import Image

from keras_ae import data
from keras_ae.data import disk, folders, preparing


@pytest.fixture
def folder(tmp_path):
    """An empty folder, and a writer of images or bytes into it."""
    root = tmp_path / "pictures"
    root.mkdir()
    return root


def put(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, bytes):
        path.write_bytes(image)
    else:
        image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        image.save(path, **options)
    return path


@pytest.fixture
def digits(mnist, folder):
    """60 real digits as PNG files, in a folder for each class; ({class: images}, the folder)."""
    test = data.load("mnist", "test", mnist[0])
    images = {}
    for name in ("seven", "one", "Straße"):
        label = {"seven": 7, "one": 1, "Straße": 0}[name]
        images[name] = test.images[test.labels == label][:20, ..., 0]
        for i, image in enumerate(images[name]):
            put(folder / name / f"{i}.png", image)
    return images, folder


def refused(match, *args, **kwargs):
    with pytest.raises(data.DataError, match=match) as error:
        data.import_folder("mine", *args, **kwargs)
    assert "\n" not in str(error.value)
    assert data.available() == []  # nothing half-made is left


@pytest.mark.parametrize(
    "names", [("Train", "Test"), ("training", "testing"), ("TRAIN",), ("test", "val")]
)
def test_splits_of_other_names_are_no_classes(names, folder):
    for name in names:
        put(folder / name / "a.png", np.zeros((8, 8), "uint8"))
        put(folder / name / "b.png", np.zeros((8, 8), "uint8"))
    refused("call them train and test", folder)


def test_force_replaces_no_dataset_that_no_import_made(digits):
    prepared = data.import_folder("mine", digits[1])
    (prepared.path / "metadata.json").unlink()
    before = sorted(path.name for path in prepared.path.iterdir())
    with pytest.raises(data.DataError, match="was made by no import: choose another name"):
        data.import_folder("mine", digits[1], force=True)
    assert sorted(path.name for path in prepared.path.iterdir()) == before


def test_an_import_is_not_prepared_from_a_folder(digits):
    data.import_folder("mine", digits[1])
    lines = []
    data.prepare("mine", source=digits[1], progress=lines.append)
    assert "was not used: it is an import, and `kae data import mine" in lines[0]
    assert "remove" not in lines[0] and "away" not in lines[0]


def test_force_replaces_a_version_that_was_renamed(digits):
    old = data.import_folder("mine", digits[1])
    old.path.rename(old.path.with_name("1.0.5"))
    new = data.import_folder("mine", digits[1], force=True)
    assert (new.version, data.available()) == ("1.0.6", [new])
    assert [path.name for path in new.path.parent.iterdir()] == ["1.0.6"]


def test_force_replaces_a_version_that_is_a_link(digits, tmp_path):
    """The link goes, and what it leads to stays."""
    old = data.import_folder("mine", digits[1])
    there = old.path.rename(tmp_path / "there")
    old.path.symlink_to(there)
    before = sorted(there.iterdir())
    new = data.import_folder("mine", digits[1], force=True)
    assert [path.name for path in new.path.parent.iterdir()] == [new.version]
    assert sorted(there.iterdir()) == before


@pytest.mark.parametrize(
    "other",
    [
        "notes.txt",
        "notes.json",
        "mine.labels.txt",
        "mine-notes",
        "mine-train.array_record-00000-of-00001.bak",
    ]
    + ["run/model.keras"],
)
def test_force_removes_nothing_that_no_import_wrote(other, digits):
    prepared = data.import_folder("mine", digits[1])
    put(prepared.path / other, b"mine")
    with pytest.raises(data.DataError, match="which no import wrote"):
        data.import_folder("mine", digits[1], force=True)
    assert (prepared.path / other).read_bytes() == b"mine"
    assert data.available() == [prepared]


@pytest.mark.parametrize("step", ["_survey", "sync"])
def test_what_is_put_into_a_version_while_it_is_replaced_stays(step, digits, monkeypatch):
    old, lines = data.import_folder("mine", digits[1]), []
    before = getattr(folders, step)

    def late(*args):
        put(old.path / "notes.json", b"mine")
        return before(*args)

    monkeypatch.setattr(folders, step, late)
    new = data.import_folder("mine", digits[1], force=True, progress=lines.append)
    assert (old.path / "notes.json").read_bytes() == b"mine"
    assert any("holds notes.json, which no import wrote" in line for line in lines)
    assert data.available() == [old, new] and len(pixels_of("train")) == 54


def pixels_of(split, **kwargs):
    return data.load("mine", split, **kwargs).images


def contents(split):
    loaded = data.load("mine", split)
    return sorted(
        (i.tobytes(), loaded.class_names[k]) for i, k in zip(loaded.images, loaded.labels)
    )


@pytest.mark.parametrize(
    "values",
    [{"mode": "gray"}, {"resize": 28}, {"resize": (28,)}, {"resize": (28, 0)}, {"resize": "28"}]
    + [{"resize": (28.5, 28)}, {"test_fraction": "0.1"}, {"test_fraction": float("nan")}],
    ids=str,
)
def test_arguments_of_wrong_kinds(values, digits):
    refused(f"--{next(iter(values)).replace('_', '-')} is .*; got ", digits[1], **values)


# What comes out


def test_every_image_arrives_once_with_its_class(digits, tmp_path):
    images, folder = digits
    prepared = data.import_folder("mine", folder, test_fraction=0.25)
    assert prepared.splits == {"train": 45, "test": 15} and prepared.format == "array_record"
    assert prepared.path == tmp_path / "data" / "mine" / "1.0.0"
    expected = [(i.tobytes(), name) for name in images for i in images[name]]
    assert sorted(contents("train") + contents("test")) == sorted(expected)
    train = data.load("mine", "train")
    assert train.class_names == ("Straße", "one", "seven")  # alphabetical, as Python sorts
    assert np.bincount(train.labels).tolist() == [15, 15, 15]
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["mine"]
    assert [p.name for p in data.available()] == ["mine"]
    report = data.verify("mine")
    assert report["splits"]["train"]["images"] == 45


@pytest.mark.parametrize(
    ("sizes", "tested"),
    [([5] * 40, 20), ([4] * 26, 10), ([1] * 9 + [3], 1), ([1] * 20, 1), ([60, 4, 4], 7), ([2], 1)],
)
def test_small_classes_make_up_the_share_of_test_images(sizes, tested):
    """A tenth of five is no image, and of 40 classes of five it is 20."""
    listed = [(f"{label}/{i}", label) for label, size in enumerate(sizes) for i in range(size)]
    split = folders._train_and_test(listed, None, None)
    assert len(split["test"]) == tested and sorted(split["train"] + split["test"]) == sorted(listed)
    if max(sizes) < 10:
        assert len({label for _, label in split["test"]}) == tested  # of as many classes


def test_stock_tfds_reads_it_without_us(digits, run_python):
    images, folder = digits
    prepared = data.import_folder("mine", folder, test_fraction=0.25)
    script = """
import sys
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory(sys.argv[1])
assert builder.info.features["label"].names == ["Straße", "one", "seven"], builder.info.features
assert builder.info.features["image"].shape == (28, 28, 1)
assert builder.info.supervised_keys == ("image", "label")
sources = [builder.as_data_source("train")]
sources.append(tfds.data_source("mine", data_dir=sys.argv[2], split="train", download=False))
for source in sources:
    examples = [source[i] for i in range(len(source))]
    assert len(examples) == 45
print(*sorted(f"{e['label']}:{e['image'].tobytes().hex()}" for e in examples), sep="\\n")
assert "keras_ae" not in sys.modules and "tensorflow" not in sys.modules
"""
    done = run_python(script, prepared.path, prepared.path.parents[1])
    assert done.returncode == 0, done.stderr
    train = data.load("mine", "train")
    ours = sorted(f"{k}:{i.tobytes().hex()}" for i, k in zip(train.images, train.labels))
    assert done.stdout.splitlines() == ours


def test_the_split_is_a_function_of_the_seed(digits):
    _, folder = digits
    first = data.import_folder("mine", folder, seed=1) and contents("test")
    data.import_folder("mine", folder, seed=np.int64(1), force=True)
    assert contents("test") == first and len(first) == 6
    data.import_folder("mine", folder, seed=2, force=True)
    assert contents("test") != first
    data.import_folder("mine", folder, test_fraction=0, force=True)
    assert data.available()[0].splits == {"train": 60}


@pytest.mark.parametrize("seed", [-1, 1.0, "1"])
def test_seeds_that_are_none(seed, digits):
    refused("--seed is a whole number, 0 or more", digits[1], seed=seed)


def test_own_train_and_test_folders(digits, tmp_path):
    images, folder = digits
    split = tmp_path / "split"
    for part, rows in (("train", slice(0, 15)), ("val", slice(15, 20))):
        for name in images:
            for i, image in enumerate(images[name][rows]):
                put(split / part / name / f"{i}.png", image)
    refused("has its own val: --test-fraction is for one without", split, test_fraction=0.5)
    refused("has its own val: --seed is for one without", split, seed=0)
    refused("--test-fraction 0 does not: leave it out", split / "train", test_fraction=0, seed=0)
    prepared = data.import_folder("mine", split)
    assert prepared.splits == {"train": 45, "val": 15}
    expected = sorted((i.tobytes(), name) for name in images for i in images[name][15:])
    assert contents("val") == expected
    assert data.load_splits("mine")[1].split == "val"


def test_a_class_may_be_called_train(folder):
    for name in ("train", "bus"):
        for i in range(2):
            put(folder / name / f"{i}.png", np.full((8, 8), 50 * i, np.uint8))
    data.import_folder("mine", folder, test_fraction=0.5)
    assert data.load("mine", "train").class_names == ("bus", "train")


def test_numbers_are_sorted_as_numbers(folder):
    for name in ("10", "9", "2"):
        for i in range(2):
            put(folder / name / f"{i}.png", np.full((8, 8), int(name), np.uint8))
    data.import_folder("mine", folder)
    train = data.load("mine", "train")
    assert train.class_names == ("2", "9", "10")
    assert all(i.max() == int(train.class_names[k]) for i, k in zip(train.images, train.labels))


def test_by_the_path_of_its_folder(digits, tmp_path, monkeypatch):
    prepared = data.import_folder("mine", digits[1])
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    prepared.path.parent.rename(moved)
    monkeypatch.chdir(tmp_path)
    for name in (str(moved), str(moved / "1.0.0"), "elsewhere/renamed", "./elsewhere/renamed"):
        assert data.load_splits(name)[0].name == "mine"
    assert data.verify("./elsewhere/renamed")["splits"]["train"]["images"] == 54
    assert data.lasting_name("elsewhere/renamed") == str(moved)
    assert data.lasting_name("mnist") == "mnist" and data.lasting_name("a/b") == "a/b"
    with pytest.raises(
        data.DataError, match="no TFDS dataset in ./pictures: `kae data import NAME"
    ):
        data.load_splits("./pictures")


# Names


@pytest.mark.parametrize("name", ["my-set", "My", "1st", "a/b", "", "..", "ä", "a\n"])
def test_names_that_are_none(digits, name):
    with pytest.raises(data.DataError, match="is no name for a dataset"):
        data.import_folder(name, digits[1])


def test_names_that_are_taken(digits):
    with pytest.raises(data.DataError, match="mnist is a dataset of TFDS"):
        data.import_folder("mnist", digits[1], force=True)
    data.import_folder("mine", digits[1])
    with pytest.raises(data.DataError, match="mine exists in .*--force replaces it"):
        data.import_folder("mine", digits[1])


def test_a_file_whose_name_is_in_no_encoding(folder):
    for i in range(4):
        put(folder / "a" / f"{i}.png", np.full((4, 4), i, np.uint8))
    os.rename(folder / "a" / "3.png", os.fsencode(folder / "a") + b"/\xff.png")
    data.import_folder("mine", folder)
    found = [pixels_of(split)[:, 0, 0, 0] for split in ("train", "test")]
    assert sorted(np.concatenate(found)) == [0, 1, 2, 3]


def test_tiff_images_that_lie_on_their_side(folder):
    """Pillow turns these by itself, unlike those of other formats; without compression it mixes them up."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = np.arange(60, dtype=np.uint8).reshape(6, 10)
    put(folder / "0.tif", image, exif=exif, compression="tiff_lzw")
    put(folder / "1.png", image, exif=exif)
    data.import_folder("mine", folder)
    for split in ("train", "test"):
        np.testing.assert_array_equal(pixels_of(split), np.rot90(image, -1)[None, ..., None])
    assert data.verify("mine")["splits"]["test"]["images"] == 1
    put(folder / "2.tif", image, exif=exif)
    with pytest.raises(data.DataError, match="2.tif is an uncompressed TIFF"):
        data.import_folder("other", folder)


def test_a_folder_in_the_place_of_the_dataset_is_left_alone(digits, tmp_path):
    _, folder = digits
    inside = data.resolve_data_dir() / "mine" / "pictures"
    inside.parent.mkdir(parents=True)
    folder.rename(inside)
    refused("lies in .*mine, where the dataset is written", inside)
    assert len(list(inside.rglob("*.png"))) == 60
    next(p for p in inside.iterdir() if p.is_dir()).rename(inside / "zero")
    before = sorted(inside.rglob("*"))
    with pytest.raises(data.DataError, match="lies in .*: give another --data-dir"):
        data.import_folder("zero", inside, data_dir=inside)
    assert sorted(inside.rglob("*")) == before


def test_a_failed_replacement_leaves_the_old_one(digits):
    _, folder = digits
    data.import_folder("mine", folder)
    before = contents("train")
    whole = (folder / "one" / "3.png").read_bytes()
    (folder / "one" / "3.png").write_bytes(whole[:100])  # found only while it is written
    with pytest.raises(data.DataError, match="3.png cannot be read"):
        data.import_folder("mine", folder, force=True)
    assert contents("train") == before and len(data.available()) == 1
    data.import_folder("mine", folder, force=True, skip_unreadable=True)
    assert [p.name for p in data.available()[0].path.parent.iterdir()] == ["1.0.1"]
    assert sum(data.available()[0].splits.values()) == 59


def test_an_import_leaves_nothing_in_the_temporary_folder(digits, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    data.import_folder("mine", digits[1])
    assert not list((tmp_path / "temporary").iterdir())


KILLED = """
import os, sys, time
from keras_ae import data
from keras_ae.data import disk, folders, preparing
from pathlib import Path
encode, moments = folders._encode, iter(range(10**6))
def killed(image):
    if next(moments) == 5:
        os.write(1, b"amid\\n")  # TFDS is kept from printing
        time.sleep(60)
    return encode(image)
folders._encode = killed
data.import_folder("mine", sys.argv[1], force=True, progress=lambda line: None)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_replacement_leaves_the_old_one(digits, how):
    """Readers find it at every moment, and the next import removes what is left."""
    _, folder = digits
    root = data.import_folder("mine", folder).path.parent
    before = contents("train")
    command = [sys.executable, "-c", KILLED, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "amid\n"
    assert contents("train") == before and list(root.glob("incomplete.*"))
    os.kill(process.pid, how)
    process.communicate(timeout=60)
    assert contents("train") == before and list(root.glob("incomplete.*"))
    data.import_folder("mine", folder, seed=3, force=True)
    assert [p.name for p in root.iterdir()] == ["1.0.1"] and contents("train") != before


def test_a_reader_never_finds_none(digits):
    _, folder = digits
    data.import_folder("mine", folder)
    stop, seen, failed = threading.Event(), set(), []

    def read():
        while not stop.is_set():
            try:
                seen.add(disk.find("mine", data.resolve_data_dir()).version)
            except Exception as error:
                failed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(3):
        data.import_folder("mine", folder, force=True)
    stop.set()
    reader.join()
    assert not failed and seen >= {"1.0.0", "1.0.3"}


def test_a_version_that_is_replaced_between_train_and_test(digits, monkeypatch):
    data.import_folder("mine", digits[1])
    load = data._load_whole

    def late(prepared, split, progress):
        if split == "test":
            data.import_folder("mine", digits[1], force=True)
        return load(prepared, split, progress)

    monkeypatch.setattr(data, "_load_whole", late)
    with pytest.raises(data.DataError, match="1.0.0 is gone, .*: start again") as caught:
        data.load_splits("mine")
    assert "damaged" not in str(caught.value)


def test_a_version_that_is_replaced_after_it_was_listed(digits, monkeypatch):
    _, folder = digits
    root = data.import_folder("mine", folder).path.parent
    listing, version = type(root).iterdir, root / "1.0.0"

    def replaced_meanwhile(path):
        nonlocal version
        listed = list(listing(path))
        if path == root and version.name != "1.0.3":
            newer = version.with_name(disk.next_version(version.name))
            version = version.rename(newer)
        return iter(listed)

    monkeypatch.setattr(type(root), "iterdir", replaced_meanwhile)
    assert disk.find("mine", root.parent).path == root / "1.0.3"


def test_folders_that_are_links_in_a_circle(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    refused("is no folder|cannot be read", tmp_path / "loop")


def test_images_that_no_reader_takes(folder):
    for i in range(2):
        put(folder / f"{i}.png", Image.new("1", (9000, 9000)))
    refused("give --resize", folder)


def test_a_version_that_is_a_link_to_nothing(tmp_path):
    """Perhaps the disk that it leads to is not mounted."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "1.0.0").symlink_to(tmp_path / "gone")
    (tmp_path / "mine" / "1.0.1").symlink_to("1.0.1")
    assert disk.find("mine", tmp_path) is None


def test_a_version_that_is_replaced_while_it_is_read_is_looked_for_again(digits, monkeypatch):
    data.import_folder("mine", digits[1])
    read, replaced = disk._read_info, []

    def late(path):
        if not replaced:
            replaced.append(path.rename(path.with_name("1.0.1")))
        return read(path)

    monkeypatch.setattr(disk, "_read_info", late)
    assert disk.find("mine", data.resolve_data_dir()).path == replaced[0]


def test_a_folder_of_pictures_that_is_called_incomplete_stays(tmp_path):
    names = {"incomplete.drafts", "incomplete.mine_1.0.0"}
    for name in (*names, "incomplete.replaced_1.0.0"):
        (tmp_path / name).mkdir()
    with preparing.building(tmp_path, True):
        assert {path.name for path in tmp_path.iterdir()} == names


def test_what_another_import_is_writing_is_left_alone(tmp_path):
    part = tmp_path / "incomplete.ABC123_1.0.0"
    part.mkdir()
    with preparing.building(tmp_path, True):
        assert not part.exists()
        part.mkdir()
        with preparing.building(tmp_path, True):
            assert part.exists()
    with preparing.building(tmp_path, False):
        assert part.exists()  # it may be that of another program
        os.utime(part, (0, 0))
    with preparing.building(tmp_path, False):
        assert not part.exists()


def test_a_full_disk(digits, small_disk):
    place = small_disk("200k")
    for seed in range(3):
        with pytest.raises(data.DataError, match="No space left on device") as error:
            rng = np.random.default_rng(seed)
            put(digits[1] / "one" / "0.png", rng.integers(0, 256, (600, 600), np.uint8))
            data.import_folder("mine", digits[1], place, resize=(600, 600))
        assert "\n" not in str(error.value) and not list(place.iterdir())


@pytest.mark.parametrize(
    "name", [" ", " a", "a ", "a\nb", "a\rb", "\x1b[31mred", "a\u2028b", b"\xff"]
)
def test_names_that_cannot_be_classes(folder, name):
    inner = os.fsencode(folder) + b"/" + os.fsencode(name)
    os.mkdir(inner)
    put(folder / "b" / "0.png", np.zeros((4, 4), np.uint8))
    shutil.copy(folder / "b" / "0.png", inner + b"/0.png")
    refused("cannot be a class: its name", folder)
    assert data.available() == []


def test_names_that_can_be_classes(folder):
    """TFDS keeps them in a file of lines."""
    names = sorted(["$\\frac{$", "👨‍👩‍👧", "_a", "a b", "<b>", "%s", "x" * 200])
    for name in names:
        for i in range(2):
            put(folder / name / f"{i}.png", np.full((4, 4), i, np.uint8))
    data.import_folder("mine", folder)
    assert list(data.load("mine", "train").class_names) == names


# Sizes


def test_mixed_sizes_are_refused_unless_resized(folder):
    put(folder / "a" / "0.png", np.full((10, 20), 9, np.uint8))
    put(folder / "a" / "1.png", np.full((20, 10), 9, np.uint8))
    refused(r"more than one size \(20x10 .*0.png, 10x20 .*1.png\): give --resize", folder)
    refused("--crop cuts images to the shape of --resize", folder, crop=True)
    data.import_folder("mine", folder, resize=(6, 4))
    assert pixels_of("train").shape == (1, 6, 4, 1) and (pixels_of("train") == 9).all()


def test_crop_keeps_the_shape_of_things(folder):
    image = np.zeros((10, 30), np.uint8)
    image[:, 10:20] = 255  # a white square in the middle of a black strip
    for i in range(2):
        put(folder / "a" / f"{i}.png", image)
    data.import_folder("mine", folder, resize=(10, 10), crop=True)
    assert (pixels_of("train") == 255).all()
    data.import_folder("mine", folder, resize=(10, 10), force=True)
    assert 0.25 < (pixels_of("train") > 127).mean() < 0.45


# Modes


def one_of(folder, image, suffix=".png", save=None, **kwargs):
    """Import twice the same image; returns its pixels."""
    for i in range(2):
        put(folder / "a" / f"{i}{suffix}", image, **(save or {}))
    data.import_folder("mine", folder, **kwargs)
    return pixels_of("train")[0]


def test_grey_stays_grey_and_colour_colour(folder):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    colour = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    assert np.array_equal(one_of(folder, grey)[..., 0], grey)
    put(folder / "b" / "0.png", colour)
    put(folder / "b" / "1.png", colour)
    data.import_folder("mine", folder, test_fraction=0.5, force=True)
    train = data.load("mine", "train")
    assert train.images.shape == (2, 8, 8, 3)  # one of each class
    assert np.array_equal(train.images[train.labels == 1][0], colour)
    assert np.array_equal(train.images[train.labels == 0][0], grey[..., None].repeat(3, -1))
    data.import_folder("mine", folder, mode="grey", test_fraction=0.5, force=True)
    assert pixels_of("train").shape == (2, 8, 8, 1)


def test_sixteen_bits_are_scaled(folder):
    values = np.array([[0, 128, 129, 257], [25700, 40000, 65406, 65535]], np.uint16)
    expected = np.rint(values / 257)
    assert np.array_equal(one_of(folder, values)[..., 0], expected)


def test_thirty_two_bits_are_refused(folder):
    put(folder / "a" / "0.tif", Image.fromarray(np.ones((4, 4), np.float32)))
    put(folder / "a" / "1.tif", Image.fromarray(np.ones((4, 4), np.float32)))
    refused("32 bits a pixel", folder)


@pytest.mark.parametrize("background, expected", [("white", 255), ("black", 0)])
def test_transparent_pixels_show_the_background(folder, background, expected):
    image = np.zeros((4, 4, 4), np.uint8)
    image[0] = (200, 100, 50, 255)
    pixels = one_of(folder, image, background=background)
    assert (pixels[0] == (200, 100, 50)).all() and (pixels[1:] == expected).all()


def test_transparent_grey_and_palettes(folder):
    assert (one_of(folder, Image.new("LA", (4, 4), (0, 0))) == 255).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    for path in (folder / "a").iterdir():
        palette.save(path)
    data.import_folder("mine", folder, force=True)
    assert (pixels_of("train") == (10, 200, 30)).all()


def test_cmyk_becomes_rgb(folder):
    pixels = one_of(folder, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), ".jpg")
    assert pixels.shape == (8, 8, 3)
    assert (pixels[..., 0] > 240).all() and (pixels[..., 1:] < 15).all()


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_the_first_frame_of_an_animation(folder, suffix):
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "green", "blue")]
    save = {"save_all": True, "append_images": frames[1:]}
    if suffix == ".webp":
        save["lossless"] = True
    assert (one_of(folder, frames[0], suffix, save) == (255, 0, 0)).all()


def test_turned_as_exif_says(folder):
    image = Image.new("L", (6, 4))
    image.putpixel((0, 0), 255)  # the top left corner, to be turned clockwise to the top right
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = one_of(folder, image, save={"exif": exif})
    assert pixels.shape == (6, 4, 1)
    assert pixels[0, 3, 0] == 255 and pixels.sum() == 255


def test_a_tiff_is_turned_as_its_xmp_says(folder):
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    save = {"compression": "tiff_lzw", "tiffinfo": {700: xmp}}
    found = one_of(folder, pixels, ".tif", save)
    np.testing.assert_array_equal(found[..., 0], np.rot90(pixels, -1))


def test_a_file_that_changes_size_meanwhile(digits, monkeypatch):
    old, survey = data.import_folder("mine", digits[1]), folders._survey

    def late(*args):
        shape = survey(*args)
        put(digits[1] / "one" / "4.png", np.zeros((30, 20), np.uint8))
        return shape

    monkeypatch.setattr(folders, "_survey", late)
    with pytest.raises(data.DataError, match="one/4.png is 20x30 by now, and the images are 28x28"):
        data.import_folder("mine", digits[1], force=True)
    assert data.available() == [old]


# What is in the folders beside


def test_empty_and_odd_folders(folder, tmp_path):
    refused("there is no folder", tmp_path / "nowhere")
    refused("has no folders in it, one for each class, and no images", folder)
    put(folder / "a" / "0.png", np.zeros((4, 4), np.uint8))
    refused("one image is no dataset", folder)
    put(folder / "a" / "1.png", np.zeros((4, 4), np.uint8))
    (folder / "b").mkdir()
    refused("pictures/b has no files, or only hidden ones: fill it, or move it", folder)
    put(folder / "b" / "IMG_1.HEIC", b"a photograph")
    refused(
        r"b has no images that are read \(.png, .*IMG_1.HEIC: convert these, or move the", folder
    )
    (folder / "b" / "c").mkdir()
    refused("b/c is a folder in a class folder", folder)
    shutil.rmtree(folder / "b")
    refused(r"a share of the images in \[0, 1\); got 1", folder, test_fraction=1)


def test_folders_of_a_split_that_do_not_fit(folder):
    put(folder / "train" / "a" / "0.png", np.zeros((4, 4), np.uint8))
    (folder / "test").mkdir()
    refused("test has no folders in it, one for each class, and no images", folder)
    put(folder / "test" / "0.png", np.zeros((4, 4), np.uint8))
    refused("must both have class folders, or neither", folder)
    (folder / "test" / "0.png").unlink()
    put(folder / "1.png", np.zeros((4, 4), np.uint8))
    refused("pictures/1.png lies beside the folders of the splits", folder)
    (folder / "1.png").unlink()
    (folder / "test" / "a").mkdir()
    put(folder / "test" / "1.png", np.zeros((4, 4), np.uint8))
    refused("test/1.png lies beside class folders", folder)
    (folder / "test" / "1.png").unlink()
    refused("test has no files, or only hidden ones: fill it, or move it", folder)
    put(folder / "test" / "b" / "0.png", np.zeros((4, 4), np.uint8))
    refused("test/b is a class that .*train does not have", folder)


def test_one_class_and_classes_of_one_image(folder):
    lines = []
    for i in range(3):
        put(folder / "only" / f"{i}.png", np.full((4, 4), i, np.uint8))
    prepared = data.import_folder("mine", folder, progress=lines.append)
    assert prepared.splits == {"train": 2, "test": 1}
    assert any("there is one class, only" in line for line in lines)
    put(folder / "rare" / "0.png", np.full((4, 4), 9, np.uint8))
    data.import_folder("mine", folder, test_fraction=0.9, force=True)
    assert sorted(data.load("mine", "train").labels) == [0, 1]  # no class is left without


@pytest.mark.parametrize("inside", ["", "train"])
def test_a_folder_without_class_folders(folder, inside, run_python):
    """100 pictures of every kind, without labels; the stock `tfds` reads them, too."""
    random, lines = np.random.default_rng(0), []
    expected = []
    for i in range(100):
        pixels = random.integers(0, 256, (6, 8, 3), "uint8")
        image = Image.fromarray(pixels)
        kind = ("RGB", "P", "RGBA", "turned")[i % 4]
        exif = Image.Exif()
        exif[0x0112] = 6 if kind == "turned" else 1
        if kind == "turned":  # it is upright once turned by a quarter
            image = Image.fromarray(np.ascontiguousarray(np.rot90(pixels)))
        elif kind != "RGB":
            image = image.convert(kind)
        put(folder / inside / f"{i}.png", image, exif=exif)
        expected.append(np.asarray(image.convert("RGB")) if kind == "P" else pixels)
    prepared = data.import_folder("mine", folder, progress=lines.append)
    assert prepared.splits == {"train": 90, "test": 10}
    assert "there are no class folders, and so no labels: for an ae or a vae" in lines
    train, test = data.load_splits("mine")
    assert train.labels is None and train.class_names is None and train.num_classes == 0
    found = sorted(i.tobytes() for i in np.concatenate([train.images, test.images]))
    assert found == sorted(i.tobytes() for i in expected)
    script = """
import sys, tensorflow_datasets as tfds
print(len(tfds.data_source("mine", data_dir=sys.argv[1], split="train")))
"""
    done = run_python(script, prepared.path.parents[1])
    assert done.stdout.strip() == "90", done.stderr


def test_hidden_files_and_others_are_left_out(folder):
    for i in range(2):
        put(folder / "a" / f"{i}.PNG", np.zeros((4, 4), np.uint8))
    for name in (".DS_Store", "._0.png", "Thumbs.db", "readme.txt"):
        put(folder / "a" / name, b"no image")
    put(folder / ".git" / "x.png", b"no image")
    put(folder / "__MACOSX" / "a.png", b"no image")
    put(folder / "labels.csv", b"0,1")
    lines = []
    prepared = data.import_folder("mine", folder, progress=lines.append)
    assert sum(prepared.splits.values()) == 2
    assert "left out, without the suffix of an image: 3 of the files" in lines


def test_links_are_followed(folder, tmp_path):
    for i in range(2):
        put(tmp_path / "store" / f"{i}.png", np.full((4, 4), i, np.uint8))
    (folder / "a").symlink_to(tmp_path / "store")
    (folder / "b").mkdir()
    (folder / "b" / "0.png").symlink_to(tmp_path / "store" / "1.png")
    prepared = data.import_folder("mine", folder)
    assert sum(prepared.splits.values()) == 3
    (folder / "b" / "1.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(data.DataError, match="b/1.png cannot be read"):
        data.import_folder("mine", folder, force=True)


@pytest.mark.parametrize("content", ["cut", "text", "empty"])
def test_unreadable_files(digits, content):
    images, folder = digits
    whole = (folder / "one" / "4.png").read_bytes()
    broken = {"cut": whole[:-60], "text": b"not an image", "empty": b""}[content]
    (folder / "one" / "4.png").write_bytes(broken)
    refused(r"one/4.png cannot be read .*--skip-unreadable", folder)
    lines = []
    data.import_folder("mine", folder, skip_unreadable=True, progress=lines.append)
    assert f"left out, as it cannot be read: {folder / 'one' / '4.png'}, first of 1" in lines
    expected = [(i.tobytes(), name) for name in images for i in images[name]]
    expected.remove((images["one"][4].tobytes(), "one"))
    assert sorted(contents("train") + contents("test")) == sorted(expected)


def test_files_that_are_left_out_decide_nothing(folder):
    for i in range(12):
        put(folder / "a" / f"{i:02d}.png", np.full((4, 4), i, np.uint8))
    data.import_folder("mine", folder)
    (tested,) = (i for i in range(12) if (pixels_of("test") == i).all())
    colour = put(folder / "a" / f"{tested:02d}.png", np.zeros((4, 4, 3), np.uint8))
    colour.write_bytes(colour.read_bytes()[:45])
    prepared = data.import_folder("mine", folder, skip_unreadable=True, force=True)
    assert prepared.splits == {"train": 10, "test": 1}
    assert pixels_of("train").shape == (10, 4, 4, 1)


def test_a_class_of_unreadable_files_alone(digits):
    put(digits[1] / "zero" / "0.png", b"no image")
    refused("no image of the class zero can be read", digits[1], skip_unreadable=True)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (MemoryError(), "does not fit into memory"),
    ],
    ids=repr,
)
def test_what_the_system_does_not_read_is_not_left_out(error, says, digits, monkeypatch):
    old, read = data.import_folder("mine", digits[1]), Image.open

    def fail(path, **kwargs):
        if str(path).endswith("one/4.png"):
            raise error
        return read(path, **kwargs)

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(data.DataError, match=f"one/4.png .*{says}") as caught:
        data.import_folder("mine", digits[1], skip_unreadable=True, force=True)
    assert "remove" not in str(caught.value) and "skip" not in str(caught.value)
    assert data.available() == [old]


@pytest.mark.parametrize("side", [110, 150])  # Pillow warns beyond its limit, and errs at twice it
def test_decompression_bombs_are_refused(folder, monkeypatch, side):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100 * 100)
    for i in range(2):
        put(folder / "a" / f"{i}.png", np.zeros((side, side), np.uint8))
    refused("more than 10,000 pixels, which is Pillow's limit", folder, resize=(8, 8))


def test_what_is_written_is_png(digits):
    """Records hold what `encode_png` or Pillow made, and Pillow reads it back."""
    buffer = io.BytesIO(folders._encode(Image.new("RGB", (3, 2), "red")))
    assert np.array_equal(np.asarray(Image.open(buffer)), np.full((2, 3, 3), (255, 0, 0)))


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("where", [(folders, "_survey"), (preparing, "building"), (folders, "_encode")], ids=lambda where: where[1])  # fmt: skip
def test_another_import_of_the_name_meanwhile(where, force, folder, tmp_path, monkeypatch):
    """It finishes after this one has looked at the name, at its dataset's folder, or has begun to write."""
    for value, part in enumerate(("mine", "theirs", "before")):
        for i in range(2):
            put(tmp_path / part / "a" / f"{i}.png", np.full((4, 4), value, np.uint8))
    if force:
        data.import_folder("mine", tmp_path / "before")
    function = getattr(*where)

    def late(*args):
        monkeypatch.setattr(*where, function)
        data.import_folder("mine", tmp_path / "theirs", force=force)
        return function(*args)

    monkeypatch.setattr(*where, late)
    with pytest.raises(data.DataError, match="another import of mine .*; --force replaces it") as e:
        data.import_folder("mine", tmp_path / "mine", force=force)
    assert "\n" not in str(e.value)
    assert (pixels_of("train") == 1).all()
    (left,) = (tmp_path / "data" / "mine").iterdir()
    assert left.name == ("1.0.1" if force else "1.0.0")
    data.import_folder("mine", tmp_path / "mine", force=True)
    assert (pixels_of("train") == 0).all()

"""Sets that do not fit into memory: read row by row, equal to the array in every way of asking."""

import numpy as np
import pytest

from keras_ae import data, errors
from keras_ae.data import arrays

X = np.random.default_rng(0).integers(0, 256, (2500, 6, 4, 1), np.uint8)
Y = np.arange(2500) % 3
MASK = np.random.default_rng(1).random(2500) < 0.3
KEYS = [
    slice(None), slice(3, 9), slice(-5, None), slice(9, 3), slice(None, None, 7), slice(9, 3, -2),
    slice(2499, 9999), 0, -1, np.int64(7), [4, 4, 2], np.array([-1, 0]), MASK, np.array([], int),
]  # fmt: skip


@pytest.fixture
def images(tmp_path):
    np.save(tmp_path / "x.npy", X)
    return arrays.StoredImages(tmp_path / "x.npy")


@pytest.mark.parametrize("key", KEYS, ids=range(len(KEYS)))
def test_rows_are_those_of_the_array(images, key):
    assert np.array_equal(images[key], X[key]) and images[key].dtype == np.uint8
    chosen = images.select(MASK)
    part = X[MASK]
    assert (len(chosen), chosen.shape, chosen.nbytes) == (len(part), part.shape, part.nbytes)
    key = key if not isinstance(key, np.ndarray) or key.dtype != bool else MASK[: len(part)]
    if not isinstance(key, slice) or key.stop != 9999:
        assert np.array_equal(chosen[key], part[key])
    assert np.array_equal(np.asarray(chosen), part)


def test_a_file_that_exists_is_not_overwritten(images, tmp_path):
    before = images.path.read_bytes()
    with pytest.raises(FileExistsError):
        arrays.StoredImages.create(images.path, X.shape)
    assert images.path.read_bytes() == before
    new = arrays.StoredImages.create(tmp_path / "new.npy", X.shape)
    new.write(0, X)
    assert np.array_equal(new, X)


def test_more_images_than_memory_may_take_are_not_read_at_once(images, monkeypatch):
    monkeypatch.setattr(arrays, "LEAST", 1)
    monkeypatch.setenv("KAE_MEMORY", "0")
    with pytest.raises(
        errors.UserError, match="2,500 images would .*keras_ae.fit.* batch by batch"
    ):
        np.asarray(images)
    assert np.array_equal(images[:3], X[:3])


def test_nothing_but_its_images_is_written_to_a_file(tmp_path):
    new = arrays.StoredImages.create(tmp_path / "new.npy", X.shape)
    before = (tmp_path / "new.npy").read_bytes()
    for start, part in ((-1, X[:1]), (len(X) - 1, X[:2]), (0, X[:2] / 255), (0, X[:, 1:])):
        with pytest.raises(ValueError, match="new.npy h"):
            new.write(start, part)
    assert (tmp_path / "new.npy").read_bytes() == before
    for shape, dtype in ((X.shape, "float32"), (("many", 4, 4, 1), "uint8")):
        with pytest.raises((ValueError, TypeError)):
            arrays.StoredImages.create(tmp_path / "none.npy", shape, dtype)
        assert not (tmp_path / "none.npy").exists()
    new.write(0, X)
    assert np.array_equal(new, X)


def test_beyond_the_end(images):
    with pytest.raises(IndexError):
        images[[2500]]
    images.path.write_bytes(images.path.read_bytes()[:-10])
    with pytest.raises(data.DataError, match="was cut short"):
        images[2499]
    with pytest.raises(ValueError, match="is damaged"):
        arrays.StoredImages(images.path)


def test_the_bound(monkeypatch):
    monkeypatch.delenv("KAE_MEMORY", raising=False)
    assert 2**26 < errors.memory_bound() < 2**45
    monkeypatch.setenv("KAE_MEMORY", "0.5")
    assert errors.memory_bound() == 2**29
    for value in ("lots", "nan", "inf", "-1"):
        monkeypatch.setenv("KAE_MEMORY", value)
        with pytest.raises(errors.UserError, match=f"a number of GiB, such as 4; got '{value}'"):
            errors.memory_bound()


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1, 2, 3], ("a", "b"), "labels go to 3, and there are 2 class_names"),
        ([0, 1, 2, 3], None, "labels go to 3, and there are 0 class_names"),
        ([0, 1], ("a", "b"), "one for each of the 4 images"),
        ([-1, 0, 1, 1], ("a", "b"), "whole numbers from 0 on"),
        ([0, 1, 2, 1_700_000_000], "as arrays", "number them anew"),
        ([0, 1, 2, 2**32 + 1], "as arrays", "number them anew"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, names, message):
    given = X[:4], np.array(labels)
    if names != "as arrays":
        given = arrays.ImageData("mine", "", "train", *given, names)
    with pytest.raises(ValueError, match=message):
        arrays.splits_of_arrays(given, given, "mine")


def test_images_of_the_users_own_are_checked_without_being_read(images, monkeypatch):
    monkeypatch.delattr(arrays.StoredImages, "__getitem__")
    monkeypatch.delattr(arrays.StoredImages, "__array__")
    mine = arrays.ImageData("mine", "", "train", images, Y, ("a", "b", "c"))
    assert arrays.splits_of_arrays(mine, mine, "mine") == (mine, mine)
    with pytest.raises(ValueError, match=r"test images must be \(N, H, W, C\)"):
        none = arrays.ImageData("mine", "", "test", X[:0], None, None)
        arrays.splits_of_arrays(mine, none, "mine")


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A bound below the size of the images."""
    monkeypatch.setenv("KAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KAE_MEMORY", str(10_000 / 2**30))


@pytest.mark.parametrize("tfrecord", [False, True])
def test_what_is_too_large_stays_on_disk(make_dataset, small, tmp_path, tfrecord):
    make_dataset({"train": (X, Y), "test": (X[:100], Y[:100])}, name="plain", tfrecord=tfrecord)
    for _ in range(2):  # decoded, then from the cache
        train, test = data.load_splits("plain")
        assert isinstance(train.images, data.StoredImages) and isinstance(test.images, np.ndarray)
        assert np.array_equal(train.images[:], X) and np.array_equal(train.labels, Y)
        assert np.array_equal(test.images, X[:100])
    assert len(list((tmp_path / "cache" / "arrays").iterdir())) == 6  # and nothing half-written
    # What fits is an array again.
    assert isinstance(data.load("plain", "train", limit=100).images, np.ndarray)
    assert isinstance(data.load("plain", "train", limit=2000).images, data.StoredImages)


def test_a_held_out_tenth_of_a_large_set(make_dataset, small, monkeypatch):
    make_dataset({"train": (X, Y)}, name="plain")
    train, test = data.load_splits("plain")
    assert isinstance(train.images, data.StoredImages) and len(test.images) == 250
    monkeypatch.setenv("KAE_MEMORY", "1")
    for large, small in zip((train, test), data.load_splits("plain")):
        assert isinstance(small.images, np.ndarray)
        assert np.array_equal(large.images[:], small.images)
        assert np.array_equal(large.labels, small.labels)


def test_verify_reads_a_large_set_past_the_cache(make_dataset, small, tmp_path, monkeypatch):
    make_dataset({"train": (X, Y)}, name="plain")
    large = data.verify("plain")
    assert not list((tmp_path / "cache").rglob("*.npy"))
    monkeypatch.setenv("KAE_MEMORY", "1")
    assert data.verify("plain") == large


def test_a_large_set_needs_its_cache(make_dataset, small, tmp_path, monkeypatch):
    make_dataset({"train": (X, Y)}, name="plain")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KAE_CACHE", str(tmp_path / "file"))
    with pytest.raises(data.DataError, match="more than memory should hold .*set KAE_CACHE"):
        data.load("plain", "train")

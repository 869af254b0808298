"""The array cache: it saves the reading, and never the truth."""

import json
import os

import numpy as np
import pytest

from keras_ae import data
from keras_ae.data import cache, reading

X = np.random.default_rng(0).integers(0, 256, (30, 8, 6, 1), np.uint8)
Y = np.arange(30) % 3


@pytest.fixture
def cached(make_dataset, tmp_path, monkeypatch):
    """A dataset whose split "train" has been loaded once; the folder of its cache entry."""
    monkeypatch.setenv("KAE_CACHE", str(tmp_path / "cache"))
    make_dataset({"train": (X, Y), "test": (X[:5], None)}, name="plain")
    data.load("plain", "train")
    return tmp_path / "cache" / "arrays"


@pytest.fixture
def reads(monkeypatch):
    """Counts how often records are read."""
    calls = []
    read = reading.read
    monkeypatch.setattr(reading, "read", lambda *args: calls.append(args) or read(*args))
    return calls


def same(loaded):
    assert np.array_equal(loaded.images, X) and np.array_equal(loaded.labels, Y)
    assert loaded.class_names == ("cat", "dog", "owl")
    assert (loaded.name, loaded.version, loaded.split) == ("plain", "3.0.1", "train")
    return True


@pytest.fixture
def make_dataset(make_dataset):
    """With labels in every split."""

    def make(splits, **kwargs):
        full = {s: (x, Y[: len(x)] if y is None else y) for s, (x, y) in splits.items()}
        return make_dataset(full, **kwargs)

    return make


def test_the_second_load_reads_nothing(cached, reads):
    assert same(data.load("plain", "train")) and not reads
    assert len(data.load("plain", "test").images) == 5 and len(reads) == 1


def test_writing_to_the_arrays_harms_nobody(cached, reads):
    data.load("plain", "train").images[:] = 0
    assert same(data.load("plain", "train")) and not reads


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def retype(path):
    """The same bytes, announced as another type."""
    path.write_bytes(path.read_bytes().replace(b"'|u1'", b"'|i1'").replace(b"'<i4'", b"'<u4'"))


def pickled(path):
    """An array of objects: to read it would run what a stranger wrote."""
    np.save(path, np.array([print, None], object), allow_pickle=True)


DAMAGE = [cut, flip, retype, pickled, lambda p: p.write_bytes(b""), lambda p: p.unlink()]


@pytest.mark.parametrize(
    "damage", DAMAGE, ids=["cut", "flip", "retype", "pickled", "empty", "missing"]
)
@pytest.mark.parametrize("suffix", ["images.npy", "labels.npy"])
def test_what_is_damaged_is_read_again(cached, reads, damage, suffix):
    (path,) = cached.glob(f"*.{suffix}")
    before = path.read_bytes()
    damage(path)
    assert not path.exists() or path.read_bytes() != before
    assert same(data.load("plain", "train")) and len(reads) == 1
    assert path.read_bytes() == before
    assert same(data.load("plain", "train")) and len(reads) == 1


@pytest.mark.parametrize("bad", [b"{'descr': '|u1', (", b'"', b"{" * 40, b"\0" * 30, b"1" * 50])
def test_a_header_that_is_no_python(cached, reads, bad):
    """NumPy raises what Python's tokenizer and parser do."""
    (path,) = cached.glob("*.images.npy")
    content = path.read_bytes()
    path.write_bytes(content[:10] + bad + content[10 + len(bad) :])
    assert same(data.load("plain", "train")) and len(reads) == 1


def test_json_that_is_something_else(cached, reads):
    (path,) = cached.glob("*.json")
    for text in ("", "{", "[]", "{}", "3", json.dumps({"images_crc32": 0, "class_names": None})):
        path.write_text(text)
        assert same(data.load("plain", "train"))
    assert len(reads) == 6


def test_a_dataset_that_changed_is_read_again(cached, reads, make_dataset, tmp_path):
    """Same name, version, counts and byte counts: only the labels are others."""
    import shutil

    shutil.rmtree(tmp_path / "data" / "plain")
    make_dataset({"train": (X, (Y + 1) % 3), "test": (X[:5], None)}, name="plain")
    assert np.array_equal(data.load("plain", "train").labels, (Y + 1) % 3) and len(reads) == 1


@pytest.mark.parametrize("memory", ["1", "1e-9"])
def test_a_dataset_that_changes_while_it_is_read_is_not_kept(
    memory, make_dataset, tmp_path, monkeypatch
):
    monkeypatch.setenv("KAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KAE_MEMORY", memory)
    prepared, read = make_dataset({"train": (X, Y)}, name="plain"), reading.read

    def late(*args):
        found = read(*args)
        os.utime(prepared.path / "features.json")
        return found

    monkeypatch.setattr(reading, "read", late)
    with pytest.raises(data.DataError, match="changed while it was read: start again"):
        data.load("plain", "train")
    assert not list((tmp_path / "cache" / "arrays").iterdir())


def test_without_labels(tmp_path, monkeypatch):
    monkeypatch.setenv("KAE_CACHE", str(tmp_path / "cache"))
    prepared = data.Prepared("bare", "1.0.0", "array_record", {"train": 30}, tmp_path)
    (tmp_path / "dataset_info.json").write_text("{}")
    stored = data.ImageData("bare", "1.0.0", "train", X, None, None)
    cache.store(prepared, stored, cache.made_from(prepared, "train"))
    loaded = cache.load(prepared, "train")
    assert np.array_equal(loaded.images, X)
    assert loaded.labels is None and loaded.class_names is None


def test_a_cache_that_cannot_be_written(make_dataset, tmp_path, monkeypatch, reads):
    make_dataset({"train": (X, Y)}, name="plain")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KAE_CACHE", str(tmp_path / "file"))
    lines = []
    assert same(data.load("plain", "train", progress=lines.append))
    assert same(data.load("plain", "train")) and len(reads) == 2
    assert len(lines) == 2 and lines[1].startswith("not cached (")


def test_a_write_that_fails_leaves_nothing(cached, tmp_path):
    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    before = sorted(cached.iterdir())
    with pytest.raises(OSError, match="No space left"):
        cache._write(before[0], fail)
    assert sorted(cached.iterdir()) == before and before[0].read_bytes() != b"half"


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("KAE_CACHE", str(tmp_path / "kae"))
    assert cache.cache_dir() == tmp_path / "kae"
    monkeypatch.delenv("KAE_CACHE")
    assert cache.cache_dir() == tmp_path / "xdg" / "keras-ae"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_dir() == tmp_path / ".cache" / "keras-ae"


def test_nothing_of_it_is_in_the_data_directory(cached, tmp_path):
    names = {p.name for p in (tmp_path / "data" / "plain" / "3.0.1").iterdir()}
    assert not {n for n in names if n.endswith(".npy")} and os.listdir(tmp_path / "data") == [
        "plain"
    ]


# Who may write to it


def test_its_folders_are_its_owner_s(cached):
    assert [oct(f.stat().st_mode & 0o777) for f in (cached, cached.parent)] == ["0o700"] * 2


def test_a_folder_that_others_may_write_to_is_not_believed(cached, reads):
    """Images of the same kind, with a checksum that fits."""
    (path,) = cached.glob("*.images.npy")
    entry = json.loads(next(cached.glob("*.json")).read_text())
    np.save(path, X[::-1])
    entry["images_crc32"] = cache._crc32(np.ascontiguousarray(X[::-1]))
    next(cached.glob("*.json")).write_text(json.dumps(entry))
    for mode in (0o777, 0o770, 0o702):
        cached.chmod(mode)
        lines = []
        assert same(data.load("plain", "train", progress=lines.append))
        assert (
            len(lines) == 2
            and "not cached (others may write to" in lines[1]
            and "set KAE_CACHE" in lines[1]
        )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
def test_a_folder_of_somebody_else_is_not_believed(cached, reads, tmp_path):
    os.chown(cached, 12345, 12345)
    lines = []
    assert same(data.load("plain", "train", progress=lines.append)) and len(reads) == 1
    assert "belongs to somebody else" in lines[1]
    os.chown(cached, 0, 0)
    cached.rename(tmp_path / "away")
    cached.symlink_to(tmp_path / "away")
    assert same(data.load("plain", "train")) and len(reads) == 1  # a link of one's own
    os.lchown(cached, 12345, 12345)
    assert same(data.load("plain", "train")) and len(reads) == 2


def test_an_entry_of_another_dataset_is_not_believed(cached, reads, make_dataset):
    make_dataset({"train": (X[::-1], Y), "test": (X[:5], None)}, name="other")
    data.load("other", "train")
    reads.clear()
    for theirs in cached.glob("other-*"):
        (mine,) = cached.glob(f"plain-*-train-*.{theirs.name.partition('.')[2]}")
        theirs.replace(mine)
    assert same(data.load("plain", "train")) and len(reads) == 1


def test_a_file_of_the_dataset_with_its_time_put_back(cached, reads, tmp_path):
    (path,) = (tmp_path / "data" / "plain" / "3.0.1").glob("*train*")
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(data.DataError, match="is damaged"):
        data.load("plain", "train")


@pytest.mark.parametrize(
    "values",
    [
        {"class_names": 5}, {"class_names": ["a"]}, {"class_names": [1, 2, 3]}, {"class_names": []},
        {"class_names": {"a": 1}}, {"class_names": "abc"}, {"images_crc32": "a"}, {"images_crc32": None},
        {"labels_crc32": [1]}, {"made_from": 3},
    ],
    ids=str,
)  # fmt: skip
def test_entries_of_wrong_kinds(cached, reads, values):
    (path,) = cached.glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    assert same(data.load("plain", "train")) and len(reads) == 1


@pytest.mark.parametrize("suffix", ["json", "images.npy", "labels.npy"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "deep", "other shape", "floats"])
def test_files_of_wrong_kinds(cached, reads, suffix, kind):
    (path,) = cached.glob(f"*.{suffix}")
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "deep":
        path.write_text("[" * 100_000)
    else:
        with open(path, "wb") as file:
            np.save(file, X[:3] if kind == "other shape" else X / np.float32(255))
    assert same(data.load("plain", "train")) and len(reads) == 1


def test_a_file_that_is_cut_while_it_is_read(cached, monkeypatch):
    """Nothing is mapped: a process that reads beyond the end of a mapped file is killed."""
    loaded = data.load("plain", "train")
    monkeypatch.setenv("KAE_MEMORY", "1e-9")
    large = data.load("plain", "train")
    (path,) = cached.glob("*.images.npy")
    os.truncate(path, 200)
    assert same(loaded)
    with pytest.raises(data.DataError, match="was cut short meanwhile"):
        large.images[20:]


def test_what_a_kill_left_is_swept(make_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("KAE_CACHE", str(tmp_path / "cache"))
    make_dataset({"train": (X, Y)}, name="plain")
    folder = cache.own_folder("arrays")
    with (
        cache._unfinished(folder) as (_, live),
        open(folder / ".unfinished-0123_dea.npy", "wb") as dead,
    ):
        new = folder / ".unfinished-a0new0a_.npy"
        new.touch()
        (mine := folder / ".unfinished-novel.txt").touch()
        for path in (live, dead.name, mine):
            os.utime(path, (0, 0))
        data.load("plain", "train")
        left = {p.name for p in folder.glob(".unfinished-*")}
        assert left == {os.path.basename(live), new.name, mine.name}

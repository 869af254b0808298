"""Dataset folders that anybody may have made: nothing in them is run, believed, waited for or shown raw."""

import json
import os
import resource
import shutil
import sys

import numpy as np
import pytest

from keras_ae import data
from keras_ae.data import reading

X = np.random.default_rng(0).integers(0, 256, (30, 8, 6, 1), np.uint8)
Y = np.arange(30) % 3
both_formats = pytest.mark.parametrize("tfrecord", [False, True], ids=["array_record", "tfrecord"])


def one_line(call, *args, says="."):
    with pytest.raises(data.DataError, match=says) as error:
        call(*args)
    text = str(error.value)
    assert "\n" not in text and text.isprintable(), text
    return text


def change(path, edit):
    """Edit a file of JSON."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


# No code


PAYLOAD = "from pathlib import Path\nPath('ran').touch()\n"


@pytest.mark.parametrize("where", ["image", "beside", "root", "within"])
def test_no_class_that_a_folder_names_is_imported(make_dataset, tmp_path, where, run_python):
    """TFDS imports the module of each `pythonClassName`; the working folder is where Python looks."""
    prepared = make_dataset({"train": (X, Y)})
    shutil.copytree(prepared.path, tmp_path / "ds")
    (tmp_path / "ds" / "payload.py").write_text(PAYLOAD)
    bad = {"pythonClassName": "ds.payload.X", "jsonFeature": {"json": "{}"}}

    def edit(features):
        inner = features["featuresDict"]["features"]
        if where == "image":
            inner["image"]["pythonClassName"] = "ds.payload.X"
        elif where == "beside":
            inner["more"] = bad
        elif where == "root":
            features["pythonClassName"] = "ds.payload.X"
        else:
            inner["more"] = {
                "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
                "sequence": {"feature": bad, "length": "-1"},
            }

    change(tmp_path / "ds" / "features.json", edit)
    script = (
        "import os, sys; os.chdir(sys.argv[1]); sys.path.insert(0, ''); from keras_ae import data\n"
        "for load in (data.load_splits, data.verify):\n"
        "    try: load('./ds')\n"
        "    except data.DataError as error: print(error)\n"
        "assert not os.path.exists('ran') and 'ds' not in sys.modules"
    )
    done = run_python(script, tmp_path)
    assert done.returncode == 0, done.stderr
    if where in ("image", "root"):
        assert done.stdout.count("cannot be used") == 2
    else:  # what stands beside image and label is not looked at
        assert done.stdout == ""


def test_features_as_older_versions_of_tfds_wrote_them(make_dataset):
    prepared = make_dataset({"train": (X, Y)})
    name = "tensorflow_datasets.core.features"
    old = {
        "type": f"{name}.features_dict.FeaturesDict",
        "content": {
            "image": {
                "type": f"{name}.image_feature.Image",
                "content": {"shape": [8, 6, 1], "dtype": "uint8", "encoding_format": "png"},
            },
            "label": {
                "type": f"{name}.class_label_feature.ClassLabel",
                "content": {"num_classes": 3},
            },
        },
    }
    (prepared.path / "features.json").write_text(json.dumps(old))
    loaded = data.load("toy", "train")
    assert np.array_equal(loaded.images, X) and loaded.class_names == ("cat", "dog", "owl")


def test_records_lie_in_the_folder_of_their_dataset(make_dataset, tmp_path):
    prepared = make_dataset({"train": (X, Y)})
    (shard,) = prepared.path.glob("*train*")
    shutil.move(shard, tmp_path / "elsewhere")
    info = prepared.path / "dataset_info.json"

    def elsewhere(template):
        def edit(content):
            content["splits"][0]["filepathTemplate"] = template

        change(info, edit)

    (prepared.path / "link").symlink_to(tmp_path)
    for template in (
        "../../../elsewhere",
        str(tmp_path / "elsewhere"),
        "a/../../../../elsewhere",
        "link/elsewhere",
        "..",
    ):
        elsewhere(template)
        one_line(data.load, "toy", "train", says="is damaged .*not in its folder itself")
    elsewhere("{DATASET.__class__}{SPLIT:>999999999}")
    one_line(data.load, "toy", "train", says="is damaged")
    shutil.move(tmp_path / "elsewhere", prepared.path / "toy.train.00000.00001")
    elsewhere("{DATASET}.{SPLIT}.{SHARD_INDEX}.{NUM_SHARDS}")
    assert np.array_equal(data.load("toy", "train").images, X)


# No waiting


@pytest.mark.parametrize(
    "name", ["dataset_info.json", "features.json", "label.labels.txt", "shard"]
)
def test_a_pipe_in_place_of_a_file(make_dataset, name, run_python):
    """To open a pipe for reading waits for a writer, for ever."""
    prepared = make_dataset({"train": (X, Y)})
    path = next(prepared.path.glob("*train*")) if name == "shard" else prepared.path / name
    path.unlink()
    os.mkfifo(path)
    script = (
        "import sys; from keras_ae import data\n"
        "for call in (lambda: data.load(sys.argv[1], 'train'), lambda: data.verify(sys.argv[1])):\n"
        "    try: call()\n"
        "    except data.DataError as error: print(error)"
    )
    done = run_python(script, f"{prepared.path.parent}/")
    assert done.returncode == 0 and done.stdout.count("\n") == 2, done.stderr


def test_a_pipe_among_the_images(tmp_path, run_python):
    from PIL import Image

    for i in range(2):
        (tmp_path / "pictures" / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(X[i, ..., 0]).save(tmp_path / "pictures" / "a" / f"{i}.png")
    os.mkfifo(tmp_path / "pictures" / "a" / "2.png")
    script = (
        "import sys; from keras_ae import data\n"
        "lines = []\n"
        "for call in (lambda: data.import_folder('mine', sys.argv[1]),\n"
        "             lambda: data.read_files([sys.argv[1] + '/a/2.png'], (8, 6, 1))):\n"
        "    try: call()\n"
        "    except data.DataError as error: print(error)\n"
        "print(data.import_folder('mine', sys.argv[1], skip_unreadable=True).splits)"
    )
    done = run_python(script, tmp_path / "pictures")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all("2.png is no file" in line for line in lines[:2]), lines
    assert lines[2] == "{'train': 1, 'test': 1}"


# No belief


def deep(n=100_000):
    return "[" * n + "]" * n


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize(
    "text",
    ["", "[]", "5", "null", '"a"', "{}", "NaN", "1e400", '{"a": 1e400}', deep(), '{"a":' + deep() + "}", "\xff"],
    ids=["empty", "list", "number", "null", "text", "object", "nan", "inf", "inf in it", "deep", "deeper", "latin"],
)  # fmt: skip
def test_metadata_that_is_something_else(make_dataset, name, text):
    prepared = make_dataset({"train": (X, Y)})
    (prepared.path / name).write_bytes(text.encode("latin-1"))
    for call in (data.load_splits, data.verify):
        one_line(call, "toy", says="toy")
    data.available()


@pytest.mark.parametrize(
    "values",
    [
        {"version": 5}, {"version": "one"}, {"version": None}, {"name": 5}, {"name": ["a"]},
        {"name": "toy\x1b[31m"}, {"name": "a\nb"}, {"name": "n" * 1000}, {"fileFormat": 3},
        {"splits": 3}, {"splits": [3]}, {"splits": [{"name": 3}]}, {"splits": {}},
        {"splits": [{"name": "train", "shardLengths": 3}]},
        {"splits": [{"name": "train", "shardLengths": ["x"]}]},
        {"splits": [{"name": "train", "shardLengths": ["-4"]}]},
        {"splits": [{"name": "train", "shardLengths": [1e400]}]},
        {"splits": [{"name": "train", "shardLengths": ["9" * 5000]}]},
        {"splits": [{"name": "\x1b]0;train", "shardLengths": ["30"]}]}, {"version": "1.0." + "1" * 5000},
        {"configName": 7}, {"supervisedKeys": 3}, {"supervisedKeys": {"tuple": {"items": [3, {}]}}},
    ],
    ids=str,
)  # fmt: skip
def test_one_bad_dataset_does_not_hide_the_others(make_dataset, values):
    make_dataset({"train": (X, Y)}, name="good")
    prepared = make_dataset({"train": (X, Y)})
    change(prepared.path / "dataset_info.json", lambda info: info.update(values))
    assert "good" in [p.name for p in data.available()]
    if "supervisedKeys" not in values:
        one_line(data.load_splits, "toy")
    assert len(data.load("good", "train").images) == 30


def test_a_default_config_that_is_something_else(make_dataset, tmp_path):
    prepared = make_dataset({"train": (X, Y)})
    (tmp_path / "data" / "toy" / ".config").mkdir()
    prepared.path.rename(prepared.path.with_name("away"))
    for text in (
        "[]",
        "5",
        deep(),
        '{"default_config_name": 5}',
        '{"default_config_name": "../x"}',
    ):
        (tmp_path / "data" / "toy" / ".config" / "metadata.json").write_text(text)
        one_line(data.load_splits, "toy", says="there is no dataset 'toy'")


def features_of(prepared, edit):
    change(prepared.path / "features.json", lambda f: edit(f["featuresDict"]["features"]))


@pytest.mark.parametrize(
    "feature",
    [
        {"shape": {"dimensions": ["8", "6", "9" * 30]}}, {"shape": {"dimensions": ["8", "6"]}}, {"shape": 3},
        {"shape": {"dimensions": ["-7", "6", "1"]}}, {"shape": {"dimensions": ["0", "6", "1"]}},
        {"dtype": "no such"}, {"dtype": 5}, {"dtype": "O"},
    ],
    ids=str,
)  # fmt: skip
def test_images_of_no_kind(make_dataset, feature):
    prepared = make_dataset({"train": (X, Y)})
    features_of(prepared, lambda f: f["image"]["image"].update(feature))
    one_line(data.load, "toy", "train", says="toy")


@pytest.mark.parametrize("count", ["9" * 18, "800000000", "-1", "x", 1e400, [3], "2"])
def test_numbers_of_classes(make_dataset, count):
    prepared = make_dataset({"train": (X, Y)})
    features_of(prepared, lambda f: f["label"].update(classLabel={"numClasses": count}))
    one_line(data.load, "toy", "train", says="toy")
    (prepared.path / "label.labels.txt").unlink()
    one_line(data.load, "toy", "train", says="toy")


def test_names_of_classes(make_dataset):
    """Escapes are told as what they are, and a name of a book's length is refused."""
    prepared = make_dataset({"train": (X, Y)})
    names = prepared.path / "label.labels.txt"
    names.write_text("a\n\x1b[31mred\nb\n")
    assert data.load("toy", "train").class_names == ("a", "\x1b[31mred", "b")
    names.write_text("a\n" + "x" * 3_500_000 + "\nb\n")
    one_line(data.load, "toy", "train", says="class 1 has 3,500,000 letters")
    names.write_bytes(b"a\n\xff\nb\n")
    one_line(data.load, "toy", "train", says="is damaged")


def test_names_of_classes_behind_a_link(make_dataset, tmp_path):
    prepared = make_dataset({"train": (X, Y)})
    names = prepared.path / "label.labels.txt"
    text = names.read_text()
    names.unlink()
    (tmp_path / "private").write_text(text)
    names.symlink_to(tmp_path / "private")
    one_line(data.load, "toy", "train", says="label.labels.txt is a link to a file elsewhere")
    (prepared.path / "names").write_text(text)
    names.unlink()
    names.symlink_to("names")
    assert data.load("toy", "train").class_names


def test_millions_of_files_are_none(make_dataset):
    prepared = make_dataset({"train": (X, Y)})

    def edit(info):
        lengths = info["splits"][0]["shardLengths"]
        info["splits"][0]["shardLengths"] = [*lengths, *["0"] * 1_000_000]

    change(prepared.path / "dataset_info.json", edit)
    one_line(data.load, "toy", "train", says="1,000,001 files")
    one_line(data.verify, "toy", says="1,000,001 files")


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_one_file_under_many_names(link, make_dataset):
    prepared = make_dataset({"train": (X, Y)})
    (file,) = prepared.path.glob("toy-train*")
    if link:
        file = file.rename(prepared.path / "twin-00000")
        link(file, prepared.path / "twin-00001")

    def edit(info):
        split = info["splits"][0]
        split["shardLengths"] *= 2
        split["filepathTemplate"] = "twin-{SHARD_INDEX}" if link else file.name

    change(prepared.path / "dataset_info.json", edit)
    for call in (data.verify, data.load_splits):
        one_line(call, "toy", says="two of its files are one")


def test_a_name_on_the_screen(make_dataset):
    with pytest.raises(data.DataError) as error:
        data.load("./\x1b[31mred\n\udcff\u202e/", "train")
    assert str(error.value).isprintable() and r"\x1b[31mred\n\udcff\u202e" in str(error.value)


# No memory


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@both_formats
def test_more_images_promised_than_there_are_bytes(make_dataset, tfrecord, monkeypatch):
    prepared = make_dataset({"train": (X, Y)}, tfrecord=tfrecord)

    def edit(info):
        info["splits"][0]["shardLengths"] = ["800000000"]

    change(prepared.path / "dataset_info.json", edit)
    before = peak()
    for call in (data.verify, lambda name: data.load(name, "train")):
        one_line(call, "toy", says="800,000,000")
    assert peak() - before < 64 << 20


LARGE = """
import resource, sys
import array_record.python.array_record_module, PIL.Image, tensorflow_datasets
import numpy as np
from keras_ae import data
from tensorflow_datasets.proto.tf_example_generated_pb2 import Example
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[1] == "load":
    images = data.load("large", "train").images
    assert len(images) == 64 and isinstance(images, data.StoredImages)
else:
    assert data.verify("large")["splits"]["train"]["images"] == 64
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024)
"""


@both_formats
@pytest.mark.parametrize("how", ["load", "verify"])
def test_small_files_of_large_images(make_dataset, encode, run_python, tfrecord, how, tmp_path):
    """64 black images of 2048 x 2048 take 268 MB decoded."""
    import tensorflow_datasets as tfds

    black = encode(np.zeros((2048, 2048, 1), np.uint8))
    features = {"image": tfds.features.Image(shape=(None, None, 1))}
    examples = [{"image": black} for _ in range(64)]
    make_dataset({"train": (examples, None)}, "large", features, tfrecord=tfrecord)
    done = run_python(LARGE, how, KAE_MEMORY="0.0625", KAE_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 110  # MiB


def test_records_of_any_length_have_the_checksum(reference_crc, monkeypatch):
    """In stripes and in one, for lengths around the borders of both."""
    random = np.random.default_rng(0)
    monkeypatch.setattr(reading, "STRIPE", 16)
    records = [random.bytes(n) for n in (0, 1, 2, 3, 4, 5, 11, 12, 13, 15, 16, 17, 31, 32, 33, 500)]
    found = reading.masked_crc32c(records)
    assert found.tolist() == [reference_crc(record) for record in records]
    assert reading.masked_crc32c([b""]).tolist() == [reference_crc(b"")]


# Not damage


@pytest.mark.skipif(os.geteuid() == 0 and not hasattr(os, "seteuid"), reason="needs another user")
def test_what_may_not_be_read_is_not_damaged(make_dataset, monkeypatch):
    prepared = make_dataset({"train": (X, Y)})
    for name in ("dataset_info.json", "features.json", "*train*"):
        (path,) = prepared.path.glob(name)
        real = os.open

        def refuse(opened, *args, path=path, real=real, **kwargs):
            if os.fspath(opened) == str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return real(opened, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            text = one_line(data.verify, "toy", says="cannot be read .*Permission denied")
        assert "damaged" not in text and "delete" not in text and "move" not in text


def test_a_full_cache_is_not_a_damaged_dataset(make_dataset, tmp_path, monkeypatch):
    from keras_ae.data import arrays

    make_dataset({"train": (X, Y)})
    monkeypatch.setenv("KAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KAE_MEMORY", "1e-9")

    def full(self, start, images):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(arrays.StoredImages, "write", full)
    text = one_line(data.load, "toy", "train", says="No space left on device.*KAE_CACHE")
    assert "damaged" not in text and not list((tmp_path / "cache" / "arrays").iterdir())


def test_a_missing_package_is_not_a_damaged_dataset(make_dataset, monkeypatch):
    make_dataset({"train": (X, Y)})
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_module", None)
    text = one_line(data.load, "toy", "train", says="array_record")
    assert "damaged" not in text


def test_no_message_tells_to_delete(make_dataset):
    prepared = make_dataset({"train": (X, Y)})
    (prepared.path / "features.json").write_text("{")
    assert "delete" not in one_line(data.load, "toy", "train", says="move that folder away")


# Home, sweet home


def test_a_user_without_a_home(monkeypatch):
    def none(self):
        raise RuntimeError("Could not determine home directory.")

    from pathlib import Path

    for name in ("KAE_DATA_DIR", "TFDS_DATA_DIR", "KAE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", none)
    one_line(data.load, "mnist", "train", says="no home directory.*KAE_DATA_DIR")
    from keras_ae.data import cache

    one_line(cache.cache_dir, says="no home directory.*KAE_CACHE")

"""Datasets of every shape, in both record formats, whole and broken."""

import importlib.util
import io
import json
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from keras_ae import data
from keras_ae.data import reading

RNG = np.random.default_rng(0)
SHAPES = [(28, 28, 1), (32, 32, 3), (20, 16, 1), (9, 7, 4)]
both_formats = pytest.mark.parametrize("tfrecord", [False, True], ids=["array_record", "tfrecord"])


def images(count, shape=(8, 6, 1)):
    return RNG.integers(0, 256, (count, *shape), np.uint8)


def toy(count=30, shape=(8, 6, 1)):
    return images(count, shape), np.arange(count) % 3


@both_formats
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_round_trip(make_dataset, shape, tfrecord):
    train, test = toy(40, shape), toy(10, shape)
    prepared = make_dataset({"train": train, "test": test}, shards=3, tfrecord=tfrecord)
    assert prepared.format == ("tfrecord" if tfrecord else "array_record")
    assert len(list(prepared.path.glob("*train*"))) == 3
    for loaded, (x, y) in zip(data.load_splits("toy"), (train, test), strict=True):
        assert np.array_equal(loaded.images, x) and loaded.images.dtype == np.uint8
        assert np.array_equal(loaded.labels, y) and loaded.labels.dtype == np.int32
        assert loaded.class_names == ("cat", "dog", "owl") and loaded.num_classes == 3


WRITE_WITH_TENSORFLOW = """
import sys
import numpy as np
import tensorflow_datasets as tfds

class Pets(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(8, 6, 3)),
            "label": tfds.features.ClassLabel(names=["cat", "dog"])}))
    def _split_generators(self, dl):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        for key, image in enumerate(np.load(sys.argv[2])):
            yield key, {"image": image, "label": key % 2}

builder = Pets(data_dir=sys.argv[1], file_format="tfrecord")
builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
in_order = tfds.ReadConfig(interleave_cycle_length=1)  # one shard after the other
examples = list(tfds.as_numpy(builder.as_dataset(split="train", read_config=in_order)))
np.savez(sys.argv[2] + ".npz", images=np.stack([e["image"] for e in examples]),
         labels=[e["label"] for e in examples])
"""


@pytest.mark.long
@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed"
)
def test_tfrecord_that_tensorflow_wrote_reads_as_tensorflow_reads_it(run_python, tmp_path):
    array = tmp_path / "images.npy"
    np.save(array, images(50, (8, 6, 3)))
    done = run_python(WRITE_WITH_TENSORFLOW, tmp_path / "data", array, TF_CPP_MIN_LOG_LEVEL="3")
    assert done.returncode == 0, done.stderr
    expected, loaded = np.load(f"{array}.npz"), data.load("pets", "train")
    assert data.available()[0].format == "tfrecord"
    assert np.array_equal(loaded.images, expected["images"])
    assert np.array_equal(loaded.labels, expected["labels"])


def test_checksum_against_the_published_one():
    # RFC 3720, B.4, masked as TFRecord does it
    crc = 0xE3069283
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    found = reading.masked_crc32c([b"", b"123456789", b"", b"x" * 40, b"123456789"])
    assert found[1] == found[4] == masked
    assert found[0] == found[2] == 0xA282EAD8 != found[3]


# What is in an example


def test_without_labels(make_dataset):
    x = images(12)
    make_dataset({"train": (x, None), "test": (x[:3], None)})
    train, test = data.load_splits("toy", limit=5)
    assert train.labels is None and train.class_names is None and train.num_classes == 0
    assert np.array_equal(train.images, x[:5]) and len(test.images) == 3


def test_labels_that_are_unknown(make_dataset):
    make_dataset({"train": (images(3), [0, -1, 2])})
    assert data.load("toy", "train").labels is None


def test_binarized_mnist_is_scaled(make_dataset):
    x = images(6, (28, 28, 1)) % 2
    make_dataset({"train": (x, None)}, name="binarized_mnist")
    assert np.array_equal(data.load("binarized_mnist", "train").images, x * 255)


def test_supervised_keys_choose(make_dataset, encode):
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=(8, 6, 1)),
        "left": tfds.features.Image(shape=(8, 6, 1)),
        "label": tfds.features.ClassLabel(num_classes=2),
        "kind": tfds.features.ClassLabel(names=["a", "b", "c"]),
    }
    x = images(4)
    examples = [{"image": encode(255 - i), "left": encode(i), "label": 0, "kind": 2} for i in x]
    make_dataset({"train": (examples, None)}, features=features, supervised_keys=("left", "kind"))
    loaded = data.load("toy", "train")
    assert np.array_equal(loaded.images, x) and loaded.class_names == ("a", "b", "c")
    assert loaded.labels.tolist() == [2] * 4


def refusal(make_dataset, features, examples):
    make_dataset({"train": (examples, None)}, features=features)
    with pytest.raises(data.DataError) as error:
        data.load("toy", "train")
    assert str(error.value).startswith("toy cannot be used: ") and "\n" not in str(error.value)
    return str(error.value)


def test_examples_that_cannot_be_used(make_dataset, encode, tmp_path):
    import shutil

    from tensorflow_datasets import features as f

    grey, wide = encode(images(1)[0]), encode(images(1, (8, 9, 1))[0])
    deep = encode(images(1)[0].astype(np.uint16) * 256)
    cases = [
        ({"text": f.Text()}, [{"text": "a"}], "it has none"),
        (
            {"a": f.Image(shape=(8, 6, 1)), "b": f.Image(shape=(8, 6, 1))},
            [{"a": grey, "b": grey}],
            "it has several (a, b)",
        ),
        (
            {"image": f.Image(shape=(8, 6, 1), dtype=np.uint16)},
            [{"image": deep}],
            "its images are uint16 (8, 6, 1)",
        ),
        ({"image": f.Image(shape=(8, 6, 1))}, [{"image": deep}], "more than 8 bits"),
        ({"frames": f.Sequence(f.Image())}, [{"frames": [grey, grey]}], "it has none"),
        (
            {"image": f.Image(shape=(None, None, 1))},
            [{"image": grey}, {"image": wide}],
            "more than one size (6x8 and 9x8)",
        ),
    ]
    for features, examples, says in cases:
        assert says in refusal(make_dataset, features, examples)
        shutil.rmtree(tmp_path / "data")


def test_a_size_that_is_left_open(make_dataset, encode):
    import tensorflow_datasets as tfds

    x = images(5, (8, 6, 3))
    examples = [{"image": encode(i)} for i in x]
    make_dataset({"train": (examples, None)}, features={"image": tfds.features.Image()})
    assert np.array_equal(data.load("toy", "train").images, x)


def test_other_codecs_and_modes(make_dataset):
    import tensorflow_datasets as tfds

    picture = Image.fromarray(images(1, (8, 6, 3))[0])
    stored, expected = [], []
    for codec, mode in (("JPEG", "RGB"), ("PNG", "P"), ("PNG", "L"), ("BMP", "RGB")):
        buffer = io.BytesIO()
        picture.convert(mode).save(buffer, codec)
        stored.append({"image": buffer.getvalue()})
        expected.append(np.asarray(Image.open(buffer).convert("RGB")))
    features = {"image": tfds.features.Image(shape=(8, 6, 3))}
    make_dataset({"train": (stored, None)}, features=features)
    assert np.array_equal(data.load("toy", "train").images, expected)


# Splits


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (("train", "test", "validation"), ("train", "test")),
        (("validation", "train"), ("train", "validation")),
        (("val", "train"), ("train", "val")),
    ],
)
def test_which_split_is_the_test(make_dataset, splits, expected):
    make_dataset({split: toy() for split in splits})
    assert tuple(part.split for part in data.load_splits("toy")) == expected


@pytest.mark.parametrize("name", ["train", "all_of_it", "test"])
def test_held_out_where_there_is_no_test(make_dataset, name):
    x, y = toy(57)
    make_dataset({name: (x, y)})
    train, test = data.load_splits("toy")
    assert (train.split, test.split) == (f"{name} (nine tenths)", f"{name} (held-out tenth)")
    assert (len(train.images), len(test.images)) == (52, 5)
    # Every image once, each with its own label.
    together = np.concatenate([train.images, test.images])
    labels = np.concatenate([train.labels, test.labels])
    where = [int(np.flatnonzero((x == image).all((1, 2, 3)))[0]) for image in together]
    assert sorted(where) == list(range(57)) and np.array_equal(labels, y[where])
    # The same ones again, also with a limit: nothing moves from one side to the other.
    train_again, test_again = data.load_splits("toy", limit=3)
    assert np.array_equal(train_again.images, train.images[:3])
    assert np.array_equal(test_again.images, test.images[:3])


def test_splits_that_cannot_be_used(make_dataset, tmp_path):
    make_dataset({"left": toy(), "right": toy()}, name="sides")
    with pytest.raises(data.DataError, match="no split 'train' to train on; it has left, right"):
        data.load_splits("sides")
    make_dataset({"train": toy(1)}, name="lonely")
    with pytest.raises(data.DataError, match="at least two"):
        data.load_splits("lonely")


def test_splits_of_different_sizes(make_dataset, encode):
    import tensorflow_datasets as tfds

    make_dataset(
        {
            "train": ([{"image": encode(i)} for i in images(3, (8, 8, 3))], None),
            "test": ([{"image": encode(i)} for i in images(3, (9, 8, 3))], None),
        },
        features={"image": tfds.features.Image()},
    )
    with pytest.raises(data.DataError, match="a model needs one size"):
        data.load_splits("toy")


# Damage


def edit_info(prepared, old, new):
    path = prepared.path / "dataset_info.json"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))


def flip(path):
    """Inverts a bit in the middle of the first image, well inside the records."""
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 1
    path.write_bytes(content)


def relabel(path):
    """Makes the first cat a dog. In the record the label follows its name and six bytes of protobuf."""
    content = bytearray(path.read_bytes())
    content[content.index(b"label") + 11] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


DAMAGE = {
    "pixel": flip,
    "label": relabel,
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "other": lambda path: path.write_bytes(bytes(range(256)) * 600),
    "missing": lambda path: path.unlink(),
}


@both_formats
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_records(make_dataset, damage, tfrecord):
    prepared = make_dataset({"train": toy()}, tfrecord=tfrecord)
    data.load("toy", "train")  # also when the intact one is in the cache
    (path,) = prepared.path.glob("*train*")
    DAMAGE[damage](path)
    for read in (data.verify, lambda name: data.load(name, "train")):
        with pytest.raises(data.DataError) as error:
            read("toy")
        text = str(error.value)
        assert f"toy in {prepared.path} is damaged (train: " in text and "\n" not in text
        assert "kae data prepare toy" in text


@both_formats
@pytest.mark.parametrize("promised", ["29", "31"])
def test_another_number_of_records_than_promised(make_dataset, promised, tfrecord):
    prepared = make_dataset({"train": toy(30)}, tfrecord=tfrecord)
    edit_info(prepared, '"30"', f'"{promised}"')
    with pytest.raises(data.DataError, match="30 records|more than the 29 records"):
        data.load("toy", "train")


def test_a_label_without_a_class(make_dataset):
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=(8, 6, 1))}
    features["label"] = tfds.features.ClassLabel(num_classes=9)
    prepared = make_dataset({"train": (images(9), range(9))}, features=features)
    path = prepared.path / "features.json"
    path.write_text(path.read_text().replace('"numClasses": "9"', '"numClasses": "5"'))
    with pytest.raises(data.DataError, match="label 8 of 5 classes"):
        data.load("toy", "train")


@pytest.mark.parametrize("name", ["parquet", "riegeli"])
def test_formats_that_are_not_read(make_dataset, name):
    prepared = make_dataset({"train": toy()})
    edit_info(prepared, '"array_record"', f'"{name}"')
    with pytest.raises(data.DataError, match=f"is stored as {name}.*kae data prepare toy"):
        data.load("toy", "train")


def test_damaged_metadata(make_dataset):
    prepared = make_dataset({"train": toy()})
    features, info = prepared.path / "features.json", prepared.path / "dataset_info.json"
    intact = info.read_text()
    for text in ("", "{", "[]", "{}", json.dumps({"name": "toy", "splits": [3]})):
        info.write_text(text)
        with pytest.raises(data.DataError, match="toy in .* is damaged"):
            data.load("toy", "train")
        assert data.available() == []
    info.write_text(intact)
    features.write_text("{")
    with pytest.raises(data.DataError, match="toy in .* is damaged"):
        data.load("toy", "train")
    features.unlink()
    with pytest.raises(data.DataError, match="toy in .* is damaged"):
        data.load("toy", "train")


# verify


def test_verify_reports(make_dataset):
    x, y = toy(30)
    make_dataset({"train": (x, y), "test": (x[:7], y[:7])}, tfrecord=True)
    report = data.verify("toy")
    assert report["splits"]["test"]["images"] == 7
    assert report["splits"]["train"]["shape"] == [8, 6, 1]
    assert report["splits"]["train"]["genuine"] is None
    json.dumps(report)


def test_a_path_is_a_name(make_dataset):
    prepared = make_dataset({"train": toy()})
    path = prepared.path
    assert data.verify(path)["path"] == str(path) == data.lasting_name(path)
    assert data.load(path, "train").name == data.load_splits(path.parent)[0].name == "toy"
    assert data.prepare(path) == prepared and not data.is_prepared(path)


def test_verify_notices_an_impostor(make_dataset):
    make_dataset({"train": toy(), "test": toy()}, name="mnist")
    with pytest.raises(data.DataError, match="not those of mnist"):
        data.verify("mnist")


def test_verify_knows_no_other_version_of_mnist(make_dataset):
    prepared = make_dataset({"train": toy()}, name="mnist")
    edit_info(prepared, '"3.0.1"', '"1.0.0"')
    prepared.path.rename(prepared.path.with_name("1.0.0"))
    report = data.verify("mnist")
    assert (report["version"], report["splits"]["train"]["genuine"]) == ("1.0.0", False)


def test_verify_of_no_splits(make_dataset):
    prepared = make_dataset({"train": toy()})
    info = prepared.path / "dataset_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "splits": []}))
    with pytest.raises(data.DataError, match="is damaged .it has no splits"):
        data.verify("toy")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("mine", r"--data-dir or KAE.*`kae data import mine FOLDER --data-dir '.*/a b'`"),
        ("straße", "`kae data import 'straße' FOLDER"),
        ("./a b", "there is no dataset ./a b: `kae data list --data-dir '.*/a b'`"),
    ],
    ids=["import", "quoted", "path"],
)
def test_verify_of_what_is_not_there_advises_what_can_work(name, advice, tmp_path):
    with pytest.raises(data.DataError, match=advice):
        data.verify(name, tmp_path / "a b")


def test_verify_prepares_nothing(tmp_path):
    with pytest.raises(data.DataError, match="run `kae data prepare mnist`"):
        data.verify("mnist")
    assert not (tmp_path / "data").exists()


# Images of strangers


def test_a_picture_that_unpacks_to_gigabytes_is_refused(make_dataset, encode):
    """A PNG of a few hundred bytes that says that it has 10^10 pixels, and one of 10^8."""
    import tensorflow_datasets as tfds

    for side, says in ((100_000, "could be decompression bomb"), (9_000, "are not read")):
        content = bytearray(encode(images(1)[0]))
        header = content.index(b"IHDR")
        content[header + 4 : header + 12] = struct.pack(">II", side, side)
        content[header + 17 : header + 21] = struct.pack(
            ">I", zlib.crc32(content[header : header + 17])
        )
        features = {"image": tfds.features.Image(shape=(None, None, 1))}
        name = f"bomb{side}"
        make_dataset({"train": ([{"image": bytes(content)}], None)}, name, features)
        with pytest.raises(data.DataError, match=says) as error, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data.load(name, "train")
        assert "\n" not in str(error.value)


def test_a_jpeg_of_many_scans_is_refused(make_dataset, repeat_scan):
    """Each takes as long as all pixels do, and may have a hundred bytes."""
    import tensorflow_datasets as tfds

    buffer = io.BytesIO()
    Image.fromarray(images(1, (8, 6, 3))[0]).save(buffer, "JPEG", progressive=True)
    features = {"image": tfds.features.Image(shape=(8, 6, 3), encoding_format="jpeg")}
    for times, name in ((50, "some"), (200, "many")):
        content = repeat_scan(buffer.getvalue(), times)
        make_dataset({"train": ([{"image": content}], None)}, name, features)
    assert data.load("some", "train").images.shape == (1, 8, 6, 3)
    with pytest.raises(data.DataError, match="image 0 is a JPEG of more than 100 scans"):
        data.load("many", "train")


@pytest.mark.parametrize(
    ("codec", "mode"), [("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "LA"), ("PNG", "1")]
)
def test_modes_of_images_become_that_of_the_dataset(codec, mode, make_dataset):
    """CMYK becomes RGB, alpha is dropped, black and white becomes 0 and 255: as Pillow converts."""
    import tensorflow_datasets as tfds

    buffer = io.BytesIO()
    Image.fromarray(images(1, (8, 6, 3))[0]).convert(mode).save(buffer, codec)
    features = {"image": tfds.features.Image(shape=(8, 6, 3))}
    make_dataset({"train": ([{"image": buffer.getvalue()}], None)}, features=features)
    expected = np.asarray(Image.open(buffer).convert("RGB"))
    assert np.array_equal(data.load("toy", "train").images[0], expected)


def test_an_alpha_channel_that_the_dataset_promises_is_kept(make_dataset):
    import tensorflow_datasets as tfds

    x = images(2, (8, 6, 4))
    buffers = [io.BytesIO() for _ in x]
    for image, buffer in zip(x, buffers):
        Image.fromarray(image, "RGBA").save(buffer, "PNG")
    features = {"image": tfds.features.Image(shape=(8, 6, 4))}
    make_dataset({"train": ([{"image": b.getvalue()} for b in buffers], None)}, features=features)
    assert np.array_equal(data.load("toy", "train").images, x)

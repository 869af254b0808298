"""The embedded dataset: it is MNIST, TFDS agrees, and it is cheap."""

import json

import numpy as np
import pytest

from keras_ae import data
from keras_ae.data import builders

FRAMEWORKS = ("tensorflow", "keras", "torch", "jax")


def test_it_is_mnist(mnist):
    train, test = data.load_splits("mnist", mnist[0])
    assert (train.name, train.version, train.split, test.split) == (
        "mnist",
        "3.0.1",
        "train",
        "test",
    )
    assert train.images.shape == (60000, 28, 28, 1) and train.images.dtype == np.uint8
    assert test.images.shape == (10000, 28, 28, 1)
    assert train.labels.shape == (60000,) and train.labels.dtype == np.int32
    assert round(train.images.mean(dtype=np.float64), 4) == 33.3184
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(train.labels).tolist() == counts
    assert np.bincount(test.labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009
    ]  # fmt: skip
    assert train.class_names == tuple("0123456789") and train.num_classes == 10


def test_every_image_is_an_original_one_with_its_label(mnist):
    with builders.open_idx(builders.EMBEDDED_MNIST / "t10k-images-idx3-ubyte.xz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28, 1)
    with builders.open_idx(builders.EMBEDDED_MNIST / "t10k-labels-idx1-ubyte.xz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    test = data.load("mnist", "test", mnist[0])
    pairs = [(i.tobytes(), int(k)) for i, k in zip(images, labels, strict=True)]
    loaded = [(i.tobytes(), int(k)) for i, k in zip(test.images, test.labels, strict=True)]
    assert loaded != pairs and sorted(loaded) == sorted(pairs)  # TFDS shuffles as it writes


def test_stock_tfds_reads_what_we_wrote(mnist):
    import tensorflow_datasets as tfds

    builder = tfds.builder("mnist", data_dir=mnist[0])
    assert type(builder).__module__ == "tensorflow_datasets.image_classification.mnist"
    assert builder.is_prepared() and builder.info.full_name == "mnist/3.0.1"
    for split, count in (("train", 60000), ("test", 10000)):
        ours, source = data.load("mnist", split, mnist[0]), builder.as_data_source(split)
        assert len(source) == builder.info.splits[split].num_examples == count
        keys = range(0, count, 20)
        for key, example in zip(keys, source.__getitems__(keys), strict=True):
            assert np.array_equal(example["image"], ours.images[key])
            assert example["label"] == ours.labels[key]


def test_preparing_is_cheap_silent_and_without_frameworks(mnist):
    data_dir, report = mnist
    assert report["modules"] == []
    assert report["cpu"] <= 15  # seconds; 5.5 on a busy machine when this was written
    assert report["mib"] <= 300  # 150 when this was written
    assert report["lines"] == [f"preparing mnist 3.0.1 in {data_dir} …"]
    # No downloads/, no unfinished folder, nothing but the dataset.
    assert [p.name for p in data_dir.iterdir()] == ["mnist"]
    assert [p.name for p in (data_dir / "mnist").iterdir()] == ["3.0.1"]


SECOND_START = """
import json, sys, time
import numpy
import keras_ae.data
before = time.process_time()
train, test = keras_ae.data.load_splits("mnist", sys.argv[1])
seconds = time.process_time() - before
assert len(train.images) == 60000 and len(test.images) == 10000
print(json.dumps({"seconds": seconds, "modules": list(sys.modules)}))
"""


def test_second_start_imports_next_to_nothing(mnist, run_python):
    data.load_splits("mnist", mnist[0])  # fills the cache
    done = run_python(SECOND_START, mnist[0])
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["seconds"] <= 0.4  # 0.03 on a quiet machine
    loaded = set(report["modules"])
    assert not loaded & {*FRAMEWORKS, "tensorflow_datasets", "PIL", "requests", "sklearn"}


@pytest.mark.parametrize("uncached", ["", "uncached"])
def test_reading_is_silent_and_without_tensorflow(mnist, run_python, tmp_path, uncached):
    script = """
import sys
import keras_ae.data
assert len(keras_ae.data.load("mnist", "test", sys.argv[1]).images) == 10000
assert not {"tensorflow", "keras", "torch", "jax"} & set(sys.modules)
assert bool(sys.argv[2]) == ("tensorflow_datasets" in sys.modules)
"""
    data.load("mnist", "test", mnist[0])
    cache = {"KAE_CACHE": str(tmp_path)} if uncached else {}
    done = run_python(script, mnist[0], uncached, **cache)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_verify_knows_mnist(mnist):
    report = data.verify("mnist", mnist[0])
    assert report["name"] == "mnist" and report["format"] == "array_record"
    train = report["splits"]["train"]
    assert (train["images"], train["shape"], train["genuine"]) == (60000, [28, 28, 1], True)
    assert report["splits"]["test"]["genuine"] is True


def test_limit_takes_the_first_of_both(mnist):
    train, test = data.load_splits("mnist", mnist[0], limit=12000)
    assert (len(train.images), len(train.labels)) == (12000, 12000)
    assert len(test.images) == 10000
    whole = data.load("mnist", "train", mnist[0])
    assert np.array_equal(train.images, whole.images[:12000])
    with pytest.raises(data.DataError, match="limit must be at least 1, not 0"):
        data.load_splits("mnist", mnist[0], limit=0)


def test_split_that_is_not_there(mnist):
    with pytest.raises(data.DataError, match="no split 'dev'; it has train, test"):
        data.load("mnist", "dev", mnist[0])


def test_the_notice_travels_with_the_files():
    notice = (builders.EMBEDDED_MNIST / "NOTICE.md").read_text()
    assert "Attribution-Share Alike 3.0" in notice and "Yann LeCun" in notice
    for name, content_hash in builders.MNIST_SHA256.items():
        assert f"{content_hash}  {name}" in notice

"""Finding datasets without TFDS."""

import json
from pathlib import Path

import pytest

from keras_ae import data
from keras_ae.data import disk


def put(root, name, version, config=None, **info):
    folder = root.joinpath(*filter(None, (name, config, version)))
    folder.mkdir(parents=True)
    splits = [{"name": "train", "shardLengths": ["2", "3"]}, {"name": "test"}]
    info = {"name": name, "version": version, "splits": splits, **info}
    if config:
        info["configName"] = config
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_available(tmp_path):
    put(tmp_path, "mnist", "3.0.1", fileFormat="array_record")
    put(tmp_path, "emnist", "3.1.0", config="digits")
    put(tmp_path, "mnist", "incomplete.ABC_3.0.1")
    (tmp_path / "downloads" / "extracted").mkdir(parents=True)
    assert [(p.name, p.version, p.format, p.splits) for p in data.available(tmp_path)] == [
        ("emnist/digits", "3.1.0", "tfrecord", {"train": 5, "test": 0}),
        ("mnist", "3.0.1", "array_record", {"train": 5, "test": 0}),
    ]
    assert data.available(tmp_path / "nowhere") == []


def test_versions(tmp_path):
    for version in ("2.0.0", "10.0.0", "9.0.0"):
        put(tmp_path, "toy", version)
    assert disk.find("toy", tmp_path).version == "10.0.0"
    assert disk.find("toy:9.0.0", tmp_path).path == tmp_path / "toy" / "9.0.0"
    assert disk.find("toy:9.0.1", tmp_path) is None
    assert disk.find("toy/a", tmp_path) is None
    assert disk.find("../toy", tmp_path / "x") is None


def test_configs(tmp_path):
    put(tmp_path, "emnist", "3.1.0", config="digits")
    assert disk.find("emnist/digits", tmp_path).name == "emnist/digits"
    assert disk.find("emnist/digits:3.1.0", tmp_path).name == "emnist/digits"
    assert disk.find("emnist", tmp_path) is None
    (tmp_path / "emnist" / ".config").mkdir()
    metadata = tmp_path / "emnist" / ".config" / "metadata.json"
    metadata.write_text('{"default_config_name": "digits"}')
    assert disk.find("emnist", tmp_path).name == "emnist/digits"


def test_data_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", "/tfds")
    monkeypatch.setenv("KAE_DATA_DIR", "~/kae")
    assert data.resolve_data_dir("/given") == Path("/given")
    assert data.resolve_data_dir() == tmp_path / "kae"
    monkeypatch.setenv("KAE_DATA_DIR", "")
    assert data.resolve_data_dir() == Path("/tfds")
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert data.resolve_data_dir() == tmp_path / "tensorflow_datasets"


@pytest.mark.parametrize("name", ["a b", "a/b/c", "/etc", "a:1", "a/..", "a/../b", ".a", "a\n"])
def test_names_that_are_not_names(name):
    assert disk.parse_name(name) is None


@pytest.mark.parametrize("name", [None, 5, b"toy", ["toy"]])
def test_what_can_be_no_name(name):
    calls = (data.is_prepared, data.prepare, data.load_splits, data.verify, data.lasting_name)
    for call in (*calls, lambda name: data.import_folder(name, ".")):
        with pytest.raises(data.DataError, match="a dataset is named by a text, or by the path"):
            call(name)


def test_a_data_directory_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(data.DataError, match="file is no folder: name another"):
        data.available(tmp_path / "file")

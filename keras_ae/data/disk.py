"""Finds datasets on disk by reading only their JSON files.

TFDS keeps a dataset in `DATA_DIR/name[/config]/version/`, and writes `dataset_info.json` there.
Reading that file ourselves answers "is it prepared?" in a millisecond; importing TFDS takes half a
second.

A dataset's folder may come from anybody. So its files are read only as data, and every value is
checked.
"""

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from keras_ae.errors import UserError
from keras_ae.files import read_json

VERSION = re.compile(r"\d+\.\d+\.\d+")
NAME = re.compile(r"(?P<name>\w+)(/(?P<config>\w[\w.+-]*))?(:(?P<version>\d+\.\d+\.\d+))?")


TURNS = 9  # how often a folder is listed again, where what was listed is gone by now
PIXELS = 1 << 26  # most pixels of an image of a dataset: a small file can unpack to any size
MOST_FILES = 99_999  # of a split: TFDS numbers them with five digits


class DataError(UserError):
    """Says in one line what is wrong with the data and what to do about it."""


@dataclass(frozen=True)
class Prepared:
    """A dataset that is ready on disk.

    `name` includes the config ("emnist/balanced"). `format` is the format of the records
    ("array_record", "tfrecord", ...). `splits` maps the name of a split to the number of its
    examples. `path` is the folder that holds `dataset_info.json`.
    """

    name: str
    version: str
    format: str
    splits: dict[str, int]
    path: Path


def resolve_data_dir(data_dir=None) -> Path:
    """The data directory: the argument, else KAE_DATA_DIR, else TFDS_DATA_DIR, else
    ~/tensorflow_datasets."""
    chosen = data_dir or os.environ.get("KAE_DATA_DIR") or os.environ.get("TFDS_DATA_DIR")
    return expanded(chosen or "~/tensorflow_datasets", "KAE_DATA_DIR").absolute()


def expanded(path, variable) -> Path:
    """Replaces the ~ in a path. If the user has no home directory, DataError says to set `variable`."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(
            f"{path} is nowhere: this user has no home directory; set {variable} to a folder"
        ) from error


def text_of(name) -> str:
    """The name of a dataset, or the path of its folder, as text.

    Raises:
        DataError: it is neither text nor a path.
    """
    text = os.fspath(name) if isinstance(name, os.PathLike) else name
    if not isinstance(text, str):
        raise DataError(f"a dataset is named by a text, or by the path of its folder; got {name!r}")
    return text


def parse_name(name: str) -> tuple[str, str | None, str | None] | None:
    """Splits "name/config:version" into its parts; None if the name does not have this form."""
    match = NAME.fullmatch(name)
    return match and (match["name"], match["config"], match["version"])


def find(name, data_dir: Path, by_path=True) -> Prepared | None:
    """Looks for a dataset on disk: the newest version, unless `name` gives one ("mnist:3.0.1").

    A name without a config means the default config, as in TFDS. If a name with a / is not in the
    data directory, it may be the path of a dataset's folder ("./my_set", "/data/my_set/1.0.0"), unless
    `by_path` is false.

    Returns:
        The dataset, or None if it does not exist.

    Raises:
        DataError: the dataset exists, but its metadata cannot be read; or the name is none.
    """
    name = text_of(name)
    parts = parse_name(name)
    root = None
    try:
        if parts is not None:
            dataset, config, version = parts
            root = data_dir / dataset
            if config is None and not _versions(root):
                config = _default_config(root)
            if config is not None:
                root = root / config
            if found := _newest(root, version):
                return found
        if "/" not in name or not by_path:
            return None
        root = expanded(name, "HOME")
        if not root.is_dir():
            return None
        root = root.absolute()
        if (root / "dataset_info.json").exists():
            return _read_info(root)
        return _newest(root)
    except OSError as error:
        raise DataError(
            f"{root} cannot be read ({error.strerror}): name another data directory (--data-dir or "
            f"KAE_DATA_DIR)"
        ) from error
    except ValueError:  # not a valid path: it contains a NUL character
        return None


def _newest(root: Path, version=None) -> Prepared | None:
    """The newest version in a folder, or the given one; None if there is none."""
    while versions := [v for v in _versions(root) if version in (None, v)]:
        path = root / versions[-1]
        try:
            return _read_info(path)
        except DataError:
            if path.exists():
                raise
            # Else an import replaced it meanwhile: a newer version is there.
    return None


def lasting_name(name, data_dir=None) -> str:
    """A name of the dataset that is valid in every working directory: a path is made absolute."""
    name = text_of(name)
    if "/" in name and (found := find(name, resolve_data_dir(data_dir))):
        path = Path(name).expanduser().absolute()
        return str(path) if path in (found.path, found.path.parent) else name
    return name


def available(data_dir=None) -> list[Prepared]:
    """All prepared datasets in the data directory, sorted by name. Damaged ones are left out.

    Raises:
        DataError: the data directory is no folder.
    """
    data_dir = resolve_data_dir(data_dir)
    if os.path.exists(data_dir) and not os.path.isdir(data_dir):
        raise DataError(
            f"{data_dir} is no folder: name another data directory (--data-dir or KAE_DATA_DIR)"
        )
    found = []
    for pattern in ("*/*/dataset_info.json", "*/*/*/dataset_info.json"):
        for info in data_dir.glob(pattern):
            # An interrupted preparation leaves a folder "incomplete.…_3.0.1", which is not a version.
            if VERSION.fullmatch(info.parent.name):
                try:
                    found.append(_read_info(info.parent))
                except DataError:
                    continue
    return sorted(found, key=lambda p: (p.name, _as_numbers(p.version)))


def damaged(path: Path, name: str, why) -> DataError:
    """The error for every damaged dataset: it says what is wrong and how to start over."""
    quoted = shlex.quote(name)
    return DataError(
        f"{name} in {path} is damaged ({why}): move that folder away and run `kae data prepare {quoted}` "
        f"(of your own images, `kae data import {quoted}`)"
    )


def unreadable(path: Path, name: str, error: OSError) -> DataError:
    """The error for a dataset that may be intact, but that the disk or its permissions make unreadable."""
    return DataError(
        f"{name} in {path} cannot be read ({error.strerror or error}): see to that, or name another data "
        "directory (--data-dir or KAE_DATA_DIR)"
    )


def is_damage(error: BaseException | None) -> bool:
    """Whether the files caused an error, and not the system that reads them."""
    system = isinstance(error, OSError) and error.errno is not None
    return not (system or isinstance(error, MemoryError)) or isinstance(error, FileNotFoundError)


def shards(prepared: Prepared, split: str) -> list[tuple[Path, int]]:
    """The files of a split, each with its number of records according to `dataset_info.json`.

    Raises:
        ValueError: a file is not in the folder of the dataset itself, or two are one.
        OSError: a file is missing.
    """
    splits = read_json(prepared.path / "dataset_info.json")["splits"]
    info = next(s for s in splits if s["name"] == split)
    template = info.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    if not isinstance(template, str):
        raise ValueError("the names of its files are no text")
    lengths = info.get("shardLengths", [])
    if len(lengths) > MOST_FILES:
        raise ValueError(f"it says that it has {len(lengths):,} files")
    found = []
    for i, length in enumerate(lengths):
        index, total = f"{i:05d}", f"{len(lengths):05d}"
        name = template
        for key, value in (
            ("DATASET", prepared.name.partition("/")[0]),
            ("SPLIT", split),
            ("FILEFORMAT", prepared.format),
            ("SHARD_INDEX", index),
            ("NUM_SHARDS", total),
            ("SHARD_X_OF_Y", f"{index}-of-{total}"),
        ):
            name = name.replace("{" + key + "}", value)
            if len(name) > 1000:
                raise ValueError("the names of its files are too long")
        # TFDS writes none into a folder within, where the cache would not see it change.
        if os.path.basename(name) != name or name == "..":
            raise ValueError(f"its file {name} is not in its folder itself")
        found.append((prepared.path / name, int(length)))
    # One file that is named, or linked to, many times would multiply its records.
    status = [os.stat(path) for path, length in found if length]
    if len({(s.st_dev, s.st_ino) for s in status}) < len(status):
        raise ValueError("two of its files are one and the same")
    return found


def next_version(version: str) -> str:
    major, minor, patch = _as_numbers(version)
    return f"{major}.{minor}.{patch + 1}"


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _versions(root: Path) -> list[str]:
    """The version folders in `root` that hold a dataset, oldest first."""
    for _ in range(TURNS):
        if not root.is_dir():
            break
        listed = [d for d in root.iterdir() if VERSION.fullmatch(d.name)]
        found = [d.name for d in listed if (d / "dataset_info.json").exists()]
        if found or all(os.path.lexists(d) for d in listed):
            return sorted(found, key=_as_numbers)
        # Else an import replaced the only one since it was listed.
    return []


def _default_config(root: Path) -> str | None:
    """The default config, which TFDS recorded when it prepared any of the configs; None if it did not."""
    try:
        config = read_json(root / ".config" / "metadata.json")["default_config_name"]
        return config if type(config) is str and parse_name(f"{root.name}/{config}") else None
    except (OSError, ValueError, KeyError):
        return None


def _read_info(path: Path) -> Prepared:
    try:
        info = read_json(path / "dataset_info.json")
        name = "/".join(filter(None, (info["name"], info.get("configName"))))
        version, file_format = info["version"], info.get("fileFormat", "tfrecord")
        # This JSON is a protocol buffer: int64 values are strings, and empty fields are left out.
        splits = {s["name"]: sum(map(_count, s.get("shardLengths", []))) for s in info["splits"]}
        if not VERSION.fullmatch(version):
            raise ValueError("its version is no version")
        names = (name, version, file_format, *splits)
        if any(not 0 < len(text) < 256 or not text.isprintable() for text in names):
            raise ValueError("its names are no names")
        return Prepared(name, version, file_format, splits, path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, OSError) and not is_damage(error):
            raise unreadable(path, path.parent.name, error) from error
        why = f"dataset_info.json cannot be read: {type(error).__name__}"
        raise damaged(path, path.parent.name, why) from error


def _count(value) -> int:
    count = int(value)
    if not 0 <= count < 1 << 62:
        raise ValueError("a number of records is no number")
    return count

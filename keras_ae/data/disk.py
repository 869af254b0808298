"""Where datasets lie on disk, read from their JSON alone.

TFDS keeps a dataset in `DATA_DIR/name[/config]/version/`, and writes `dataset_info.json` there.
Reading that file ourselves answers "is it prepared?" in a millisecond; importing TFDS takes half a
second.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from keras_ae.errors import UserError

VERSION = re.compile(r"\d+\.\d+\.\d+")
NAME = re.compile(r"(?P<name>\w+)(/(?P<config>\w[\w.+-]*))?(:(?P<version>\d+\.\d+\.\d+))?")


class DataError(UserError):
    """What went wrong with the data and what to do about it, in one line."""


@dataclass(frozen=True)
class Prepared:
    """A dataset that is ready on disk.

    `name` includes the config ("emnist/balanced"), `format` is that of the records ("array_record",
    "tfrecord", ...), `splits` maps the name of a split to the number of its examples, `path` is the
    folder that holds `dataset_info.json`.
    """

    name: str
    version: str
    format: str
    splits: dict[str, int]
    path: Path


def resolve_data_dir(data_dir=None) -> Path:
    """The argument, else KAE_DATA_DIR, else TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    chosen = data_dir or os.environ.get("KAE_DATA_DIR") or os.environ.get("TFDS_DATA_DIR")
    return Path(chosen or "~/tensorflow_datasets").expanduser().absolute()


def parse_name(name: str) -> tuple[str, str | None, str | None] | None:
    """Splits "name/config:version" into its parts; None if it is not of that form."""
    match = NAME.fullmatch(name)
    return match and (match["name"], match["config"], match["version"])


def find(name: str, data_dir: Path) -> Prepared | None:
    """Looks a dataset up on disk: the newest version, unless `name` asks for one ("mnist:3.0.1").

    A name without a config means the default config, as it does for TFDS. A name with a / that is not
    in the data directory may be the path of a dataset's folder: "./my_set", "/data/my_set/1.0.0".

    Returns:
        None if it is not there.

    Raises:
        DataError: it is there, but its metadata cannot be read.
    """
    parts = parse_name(name)
    if parts is None:
        return _find_folder(name)
    dataset, config, version = parts
    root = data_dir / dataset
    try:
        if config is None and not _versions(root):
            config = _default_config(root)
        if config is not None:
            root = root / config
        versions = [v for v in _versions(root) if version in (None, v)]
    except OSError as error:
        raise DataError(
            f"{root} cannot be read ({error.strerror}): name another data directory (--data-dir or "
            f"KAE_DATA_DIR)"
        ) from error
    return _read_info(root / versions[-1]) if versions else _find_folder(name)


def _find_folder(name: str) -> Prepared | None:
    """The dataset in a folder, by the folder's path, which has a / in it."""
    path = Path(name).expanduser()
    if "/" not in name or not path.is_dir():
        return None
    path = path.absolute()
    if (path / "dataset_info.json").is_file():
        return _read_info(path)
    versions = _versions(path)
    return _read_info(path / versions[-1]) if versions else None


def lasting_name(name: str, data_dir=None) -> str:
    """The name of a dataset that is good in any working directory: a path made absolute."""
    if "/" in name and (found := find(name, resolve_data_dir(data_dir))):
        path = Path(name).expanduser().absolute()
        return str(path) if path in (found.path, found.path.parent) else name
    return name


def available(data_dir=None) -> list[Prepared]:
    """Everything that is prepared in the data directory, by name; what is damaged is left out."""
    data_dir = resolve_data_dir(data_dir)
    found = []
    for pattern in ("*/*/dataset_info.json", "*/*/*/dataset_info.json"):
        for info in data_dir.glob(pattern):
            # An interrupted preparation leaves "incomplete.…_3.0.1" behind, which is no version.
            if VERSION.fullmatch(info.parent.name):
                try:
                    found.append(_read_info(info.parent))
                except DataError:
                    continue
    return sorted(found, key=lambda p: (p.name, _as_numbers(p.version)))


def damaged(path: Path, name: str, why: str) -> DataError:
    """The one answer to every broken dataset: what is wrong, and how to start over."""
    return DataError(
        f"{name} in {path} is damaged ({why}): delete that folder and run `kae data prepare {name}` "
        f"(of your own images, `kae data import {name}`)"
    )


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _versions(root: Path) -> list[str]:
    """The version folders in `root` that hold a dataset, oldest first."""
    if not root.is_dir():
        return []
    names = [d.name for d in root.iterdir() if (d / "dataset_info.json").is_file()]
    return sorted(filter(VERSION.fullmatch, names), key=_as_numbers)


def _default_config(root: Path) -> str | None:
    """What TFDS wrote down as the default config when it prepared one of them."""
    try:
        return json.loads((root / ".config" / "metadata.json").read_text())["default_config_name"]
    except (OSError, ValueError, KeyError):
        return None


def _read_info(path: Path) -> Prepared:
    try:
        info = json.loads((path / "dataset_info.json").read_text())
        name = "/".join(filter(None, (info["name"], info.get("configName"))))
        # Protocol buffers as JSON: int64 comes as a string, and what is empty is left out.
        splits = {s["name"]: sum(map(int, s.get("shardLengths", []))) for s in info["splits"]}
        return Prepared(name, info["version"], info.get("fileFormat", "tfrecord"), splits, path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"dataset_info.json cannot be read: {type(error).__name__}"
        raise damaged(path, path.parent.name, why) from error

"""Writes a dataset to disk once, with a TFDS builder."""

import contextlib
import difflib
import importlib.util
import io
import os
import re
import shlex
import shutil
import socket
import tempfile
import threading
import time
import urllib.parse
import warnings
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from keras_ae.data import disk
from keras_ae.data.disk import DataError, Prepared

CONNECT_SECONDS = 4
# Folders of an interrupted preparation, as TFDS and `import_folder` name them.
UNFINISHED = re.compile(r"incomplete\.([A-Z0-9]{6}|replaced)_\d+\.\d+\.\d+")
LEFT = 24 * 3600  # seconds after which an unfinished folder counts as abandoned


def prepare(name, data_dir, source, progress) -> Prepared:
    """Prepare a dataset that is not on disk: see `keras_ae.data.prepare`."""
    try:
        with quiet_tfds():
            builder = _find_builder(name, data_dir, source)
        generate(builder, data_dir, progress)
    except DataError:
        raise
    except Exception as error:
        if found := disk.find(name, data_dir):
            return found  # another process was faster, and TFDS does not replace its dataset
        raise _explain(error, name, data_dir) from error
    # A copy may lack the file that names the default config.
    prepared = disk.find(name, data_dir) or disk.find(
        f"{_full_name(builder)}:{builder.version}", data_dir
    )
    if prepared is None:
        raise DataError(f"{name} was prepared in {builder.data_dir}, and is not found there.")
    return prepared


def _full_name(builder):
    return "/".join(filter(None, (builder.name, builder.builder_config_name)))


def generate(builder, data_dir, progress, ours=False):
    """Runs a builder, which writes its dataset into a folder that is renamed once it is complete.

    `ours` says that no other program writes a dataset of this name.
    """
    import tensorflow_datasets as tfds

    name = _full_name(builder)
    target = Path(builder.data_dir)
    if (target / "dataset_info.json").is_file():
        return  # another process was faster
    if target.exists():
        # TFDS would accept any folder of this name as the dataset.
        raise disk.damaged(target, name, "dataset_info.json is missing")
    local = getattr(builder, "source", None) is not None
    if not local and (url := _first_missing_download(builder, data_dir)):
        _check_connection(url)
        progress(f"downloading {name} from {urllib.parse.urlsplit(url).hostname} …")
    progress(f"preparing {name} {builder.version} in {data_dir} …")
    try:
        with building(target.parent, ours), quiet_tfds(), tempfile.TemporaryDirectory() as scratch:
            builder.download_and_prepare(
                # A local source downloads nothing; this avoids an empty folder downloads/.
                download_dir=scratch if local else None,
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    except BaseException:
        # TFDS removes its unfinished folder, but not the folders above it.
        for folder in target.parents:
            if folder == data_dir or not folder.is_relative_to(data_dir):
                break
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
        raise


@contextlib.contextmanager
def building(folder, ours):
    """Holds a shared lock on a folder while a dataset is written into it.

    A process that is alone there first removes the unfinished folders of killed processes. Unless
    `ours`, other programs may write there without the lock, so only folders older than a day are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # another process holds the lock, or there are no locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A folder of the user's may be called nearly so.
            for part in filter(lambda p: UNFINISHED.fullmatch(p.name), folder.iterdir()):
                if ours or part.stat().st_mtime < time.time() - LEFT:
                    if part.is_symlink():
                        part.unlink()
                    else:
                        shutil.rmtree(part, ignore_errors=True)
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def _find_builder(name, data_dir, source):
    """The builder of a dataset that is not on disk: ours if there is one, else the stock builder."""
    import tensorflow_datasets as tfds

    from keras_ae.data.builders import BUILDERS, EMBEDDED_MNIST

    if "/" in name and disk.expanded(name, "HOME").is_dir():
        raise DataError(
            f"there is no TFDS dataset in {name}: `kae data import NAME {shlex.quote(name)}` makes one of a folder of "
            "class folders"
        )
    parts = disk.parse_name(name)
    known = tfds.list_builders(with_community_datasets=False)
    if parts is None or parts[0] not in known:
        known = {*known, *(p.name for p in disk.available(data_dir))}
        raise DataError(f"there is no dataset {name!r}{_did_you_mean(name, known)}")
    dataset, config, version = parts
    if source is not None and dataset not in BUILDERS:
        raise DataError(
            f"{dataset} cannot be prepared from a folder: only {', '.join(BUILDERS)} can"
        )
    if source is not None and not Path(source).is_dir():
        raise DataError(f"there is no folder {source}")
    if dataset not in BUILDERS and importlib.util.find_spec("tensorflow") is None:
        raise DataError(
            f"{name} is not in {data_dir}, and preparing it needs TensorFlow: run "
            f"`pip install tensorflow` and `kae data prepare {name}`, or copy {dataset}/ from "
            f"the data directory of a machine where it is prepared"
        )
    make = BUILDERS.get(dataset) or tfds.builder_cls(dataset)
    configs = list(make.builder_configs)
    if config is not None and config not in configs:
        has = f"; it has {', '.join(configs)}" if configs else ""
        raise DataError(f"{dataset} has no config {config!r}{_did_you_mean(config, configs)}{has}")
    builder = make(data_dir=data_dir, config=config, file_format="array_record")
    if version not in (None, str(builder.version)):
        raise DataError(
            f"only version {builder.version} of {dataset} can be prepared, not {version}"
        )
    if source is not None:
        builder.source = Path(source)
    elif dataset == "mnist":
        builder.source = EMBEDDED_MNIST
    return builder


def _did_you_mean(name, candidates) -> str:
    normal = name.lower().replace("-", "_")
    close = difflib.get_close_matches(normal, candidates, n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _first_missing_download(builder, data_dir):
    """The URL of the first file that TFDS has not downloaded and nobody has put there by hand."""
    from tensorflow_datasets.core.download import resource

    for url, info in (builder.url_infos or {}).items():
        cached = data_dir / "downloads" / builder.name / resource.get_dl_fname(url, info.checksum)
        by_hand = data_dir / "downloads" / "manual" / (info.filename or "")
        if not cached.is_file() and not by_hand.is_file():
            return url
    return None


def _check_connection(url):
    """Raises ConnectionError unless the host of `url`, or the proxy, answers within CONNECT_SECONDS.

    TFDS itself would try for minutes. This runs in a thread, because a name lookup has no timeout.
    """
    import urllib.request

    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname):
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = parts.port or {"http": 80, "ftp": 21}.get(parts.scheme, 443)
    failure = [f"no answer in {CONNECT_SECONDS} seconds"]

    def connect():
        try:
            socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
            failure.clear()
        except OSError as error:
            failure[:] = [str(error)]

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if failure:
        raise ConnectionError(f"{parts.hostname} cannot be reached: {failure[0]}")


def _explain(error, name, data_dir) -> DataError:
    """Explains in one line any error that TFDS, the network or the disk raised."""
    import requests
    from tensorflow_datasets.core.download import download_manager, util

    from keras_ae.data.builders import BUILDERS

    why = reason(error)
    if isinstance(error, download_manager.NonMatchingChecksumError):
        return DataError(f"{name}: a download has the wrong checksum; try again ({why})")
    # Checked before OSError, because the errors of requests are OSErrors, too.
    if isinstance(error, ConnectionError | requests.RequestException | util.DownloadError):
        dataset = name.partition("/")[0].partition(":")[0]
        by_hand = f"run `kae data prepare {name} --from DIR` with the original files in DIR, or "
        return DataError(
            f"{name} is not in {data_dir} and cannot be downloaded ({why}). Offline: "
            f"{by_hand if dataset in BUILDERS else ''}copy {dataset}/ from the data directory of a "
            f"machine where it is prepared, or name a data directory that has it (--data-dir, "
            f"KAE_DATA_DIR)"
        )
    if isinstance(error, OSError):
        return DataError(
            f"{name} cannot be prepared in {data_dir} ({why}): choose a data directory that can be "
            f"written (--data-dir or KAE_DATA_DIR)"
        )
    return DataError(f"{name} cannot be prepared: {type(error).__name__}: {why}")


def reason(error) -> str:
    """The first line of an error's text, or else its class."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def quiet_tfds():
    """Silences TFDS, which prints, logs and draws progress bars, and cuts its ten retries to one."""
    from absl import logging
    from tensorflow_datasets.core.download import downloader
    from tensorflow_datasets.core.utils import tqdm_utils

    before = logging.get_verbosity(), tqdm_utils._active, downloader.MAX_RETRIES
    logging.set_verbosity(logging.FATAL)
    tqdm_utils.display_progress_bar(False)
    downloader.MAX_RETRIES = 1
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before[0])
        tqdm_utils.display_progress_bar(before[1])
        downloader.MAX_RETRIES = before[2]

"""Files that are written whole or not at all."""

import contextlib
import os
import secrets
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

UNFINISHED = ".unfinished-"  # how the name of a file begins while it is written


@contextlib.contextmanager
def atomic(path):
    """Give a temporary path to write to, which then takes the place of `path` in one step.

    A reader, a kill or a power cut at any moment meets the old file or the new one, never a part.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, handle = _new_file(path)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        os.close(handle)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _new_file(path):
    """A hidden file beside `path`, locked, so that `sweep` knows that it is being written."""
    while True:
        # The suffix stays: Keras goes by it. The leading dot hides the file from a listing.
        name = f"{UNFINISHED}{path.stem[:100]}-{secrets.token_hex(8)}{path.suffix}"
        temporary = str(path.parent / name)
        # With the permissions of any new file, which the system takes from the umask.
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        _lock(handle)
        if os.path.exists(temporary):  # not swept before it was locked
            return temporary, handle
        os.close(handle)


def _lock(handle) -> bool:
    """Lock a file. False where another process has it locked, or the file system knows no locks."""
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def _sync_folder(folder):
    """Have a file's new name on the disk before whatever is written next, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path, content):
    """Write bytes or text to a file in one step."""
    with atomic(path) as temporary:
        Path(temporary).write_bytes(content.encode() if isinstance(content, str) else content)


def sweep(folder):
    """Remove the halves of files that a kill amid `atomic` left in a folder, but none that is being written."""
    for part in Path(folder).glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):
            handle = os.open(part, os.O_RDWR)
            try:
                if _lock(handle):
                    part.unlink(missing_ok=True)
            finally:
                os.close(handle)

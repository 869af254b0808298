"""Files that are written whole or not at all."""

import contextlib
import os
import secrets
import shutil
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from keras_ae.errors import UserError

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


def check_header(path, header):
    """Refuse to add to a file of other columns, or one whose last line is not whole.

    Raises:
        UserError: it is one of these.
    """
    try:
        with open(path, "rb") as file:
            first = file.readline()
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
    except OSError:  # not there, or empty
        return
    if first != header.encode():
        raise UserError(
            f"{path} has the columns {first[:200].decode(errors='replace').strip()}, and {header.strip()} "
            "would be added: name another file."
        )
    if last != b"\n":
        raise UserError(f"The last line of {path} is not whole: mend it, or name another file.")


def append_lines(path, header, lines):
    """Add lines to a text file, with a header where it is new: all of them, or none.

    Several processes may add to one file at a time, where the system has locks.

    Args:
        path: of the file.
        header: its first line.
        lines: a text file, read from where it stands.

    Raises:
        UserError: as `check_header`.
        OSError: it cannot be written.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8", errors="backslashreplace", newline="") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        check_header(path, header)
        size = os.fstat(file.fileno()).st_size
        try:
            if not size:
                file.write(header)
            shutil.copyfileobj(lines, file)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


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

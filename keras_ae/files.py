"""Writes files whole or not at all, and reads files that somebody else may have made."""

import codecs
import contextlib
import errno
import io
import itertools
import json
import os
import re
import secrets
import stat
import zipfile
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from keras_ae.errors import UserError

BYTES = 16 << 20  # largest size of a metadata file; normal ones have a few thousand bytes
DIRECTORY = 1 << 17  # most bytes of a read while a zip's directory is looked for
UNFINISHED = ".unfinished-"  # prefix of the name of a file while it is written
# The names that `atomic` gives; a file of the user's may begin alike.
HALF = re.compile(re.escape(UNFINISHED) + r".*-[0-9a-f]{16}(\..*)?", re.DOTALL)


def shortened(name):
    """The start of a name that others are made from, which may have 255 bytes."""
    # Half a letter is left out: not all writers take it.
    return os.fsencode(name)[:100].decode(errors="ignore")


@contextlib.contextmanager
def atomic(path, replace=True):
    """A context with a temporary path to write to; at the end this file replaces `path` in one step.

    So at any moment, even after a kill or a power cut, `path` is the whole old file or the whole new one.
    A file that replaces another one has its permissions.

    Raises:
        FileExistsError: there is such a file, and it is not to be replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, handle = _new_file(path)
    try:
        if replace:
            keep_mode(path, temporary)  # before anything private is written
        yield temporary
        _sync_file(temporary)
        if replace:
            os.replace(temporary, path)
        else:
            name_anew(temporary, path)
        _sync_folder(path.parent)
    finally:
        os.close(handle)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def keep_mode(path, temporary):
    """Give a file that will replace the one at a path, if there is one, its permissions. Its owner may always write it."""
    with contextlib.suppress(OSError):  # there is no such file yet
        os.chmod(temporary, os.stat(path).st_mode & 0o777 | 0o600)


def name_anew(temporary, path):
    """Give a file another name, which no file has. Raises FileExistsError."""
    try:
        os.link(temporary, path)  # one step; the name before is removed later
    except FileExistsError:
        raise
    except OSError:  # this file system has no links: take the name first, in a step of its own
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        try:
            os.replace(temporary, path)
        except BaseException:  # Ctrl-C as well
            os.unlink(path)
            raise


def _new_file(path):
    """A hidden file beside `path`. It is locked, so that `sweep` does not remove it while it is written."""
    while True:
        # Keep the suffix: Keras chooses the format by it. The leading dot hides the file in listings.
        name = f"{UNFINISHED}{shortened(path.stem)}-{secrets.token_hex(8)}{path.suffix}"
        temporary = str(path.parent / name)
        # Use the permissions of an ordinary new file: 0o666 less the umask.
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        _lock(handle)
        if os.path.exists(temporary):  # else `sweep` removed it before it was locked: try again
            return temporary, handle
        os.close(handle)


def _lock(handle) -> bool:
    """Lock a file. Returns False if another process holds the lock, or the file system has no locks."""
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def _sync_file(path):
    """Write a file's contents to the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder):
    """Write a file's new name to the disk before anything else is written, if the system can do this."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync(folder):
    """Write all files in a folder, and their names, to the disk, before the folder replaces another one."""
    for path in [*Path(folder).rglob("*"), Path(folder)]:
        if path.is_dir():
            _sync_folder(path)
        else:
            _sync_file(path)


def write_bytes(path, content):
    """Write bytes or text to a file, whole or not at all."""
    with atomic(path) as temporary:
        Path(temporary).write_bytes(content.encode() if isinstance(content, str) else content)


def check_header(path, header):
    """Check that a table file has these columns and that its last line is complete.

    Raises:
        UserError: the columns or the ends of the lines differ, or the last line is not complete.
    """
    try:
        with open(path, "rb") as file:
            first = file.readline(max(256, len(header.encode()) + 8))
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
    except OSError:  # the file is missing or empty
        return
    asked = header.encode()
    plain = first.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n")
    if first != asked and plain == asked:
        marked = first.startswith(codecs.BOM_UTF8)
        odd = "begins with a byte order mark" if marked else "has lines that end in CRLF"
        raise UserError(
            f"{path} {odd}, and plain lines would be added: save it as UTF-8 without a mark, with lines that end in "
            "LF, or name another file."
        )
    if first != asked:
        raise UserError(
            f"{path} has the columns {first[:200].decode(errors='replace').strip()}, and {header.strip()} "
            "would be added: name another file."
        )
    if last != b"\n":
        raise UserError(f"The last line of {path} is not whole: mend it, or name another file.")


def append_lines(path, header, lines):
    """Append lines to a text file, all of them or none if that fails. A new file gets the header first.

    On a system with locks, several processes may append to one file at the same time.

    Args:
        path: of the file.
        header: its first line.
        lines: an open text file, read from its current position.

    Raises:
        UserError: as `check_header`.
        OSError: it cannot be written.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with _opened_to_append(path) as file:
        check_header(path, header)
        size = os.fstat(file.fileno()).st_size
        try:
            parts = itertools.chain([] if size else [header], iter(lambda: lines.read(1 << 20), ""))
            for part in parts:  # without a buffer, which would be written after the truncation
                rest = memoryview(part.encode("utf-8", "backslashreplace"))
                while rest:
                    rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except BaseException:  # Ctrl-C as well
            os.ftruncate(file.fileno(), size)
            raise


@contextlib.contextmanager
def _opened_to_append(path):
    """A context with a file to append to, without a buffer, and locked where the system has locks."""
    for tries_left in range(9, -1, -1):  # a network drive may give a file another number each time
        with open(path, "ab", buffering=0) as file:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX)
            # While this waited for the lock, another file may have taken the place of this one.
            if _is_at(path, file) or not tries_left:
                yield file
                return


def _is_at(path, file):
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def sweep(folder):
    """Remove unfinished files that a kill during `atomic` left in a folder; files being written now are kept."""
    for part in filter(lambda p: HALF.fullmatch(p.name), Path(folder).glob(f"{UNFINISHED}*")):
        with contextlib.suppress(OSError):
            handle = os.open(part, os.O_RDWR)
            try:
                if _lock(handle):
                    part.unlink(missing_ok=True)
            finally:
                os.close(handle)


def open_file(path):
    """Opens a regular file for reading bytes. Anything else, such as a pipe or a device, raises OSError:
    reading it could take for ever."""
    return os.fdopen(_regular(path), "rb")


def _regular(path, flags=os.O_RDONLY):
    """The number of a regular file that is opened."""
    more = getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    handle = os.open(path, flags | more)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "It is no regular file", str(path))
    return handle


class _Zip(io.FileIO):
    """A file that is opened as a zip. Python reads all of its directory at once, which may be of any size."""

    def __init__(self, path, most):
        super().__init__(path, opener=_regular)
        self.most, self.opening = most, True

    def read(self, size=-1, /):
        if self.opening and size > self.most:
            raise ValueError(f"its directory has {size:,} bytes, which no such file's has")
        return super().read(size)


@contextlib.contextmanager
def open_zip(path, most=DIRECTORY):
    """Open a zip, such as a model file or a backup, for reading.

    Args:
        path: of the file.
        most: bytes that its directory may have.

    Raises:
        OSError, zipfile.BadZipFile: it cannot be read, or is none.
        ValueError: its directory is larger.
    """
    with _Zip(path, most) as file, zipfile.ZipFile(file) as archive:
        file.opening = False
        yield archive


def read_text(path) -> str:
    """Reads the text of a metadata file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not text, or it is too long.
    """
    with open_file(path) as file:
        content = file.read(BYTES + 1)
    if len(content) > BYTES:
        raise ValueError(f"{Path(path).name} has more than {BYTES:,} bytes")
    return content.decode()


def read_json(path) -> dict:
    """Reads the object in a JSON file. Raises the same errors as `read_text`."""
    try:
        value = json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    return value

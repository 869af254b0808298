"""Errors that are shown to a user, one line that says what to do, and what they ask of a machine first."""

import importlib.util
import os
import sys
import unicodedata
from pathlib import Path

# Modules whose package is installed under another name.
PACKAGES = {
    "sklearn": "scikit-learn",
    "umap": "umap-learn",
    "PIL": "pillow",
    "skimage": "scikit-image",
}


def printable(text, keep="") -> str:
    """A text that is safe to print: control characters, and lone surrogates (which paths and JSON may
    contain), become escapes. Spaces of any width, and characters in `keep`, stay as they are."""
    joiners = "\u200c\u200d"  # invisible characters that join the parts of an emoji or a word
    return "".join(
        c
        if c.isprintable() or c in joiners or c in keep or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape").decode()
        for c in str(text)
    )


class UserError(Exception):
    """Something outside the program is wrong; the message says what to do about it."""

    _keras_call_info_injected = True  # else Keras adds a long text about the call that raised it

    def __str__(self):
        return printable(super().__str__())


def need(what, *modules):
    """Fail at once if a task needs a module that is not installed.

    Args:
        what: name of the task for the message, such as "A plot".
        *modules: names as they are imported.

    Raises:
        UserError: with the command that installs what is missing. It names the packages rather than an
            extra of keras-ae, because keras-ae is on no registry.
    """
    missing = [name for name in modules if not installed(name)]
    if missing:
        packages = " ".join(PACKAGES.get(name, name) for name in missing)
        raise UserError(f"{what} needs {' and '.join(missing)}: pip install {packages}")


def installed(module):
    """Whether a module can be imported; this does not import it."""
    try:
        if module in sys.modules:
            return sys.modules[module] is not None
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


class NotFinite(UserError, ValueError):
    """What a model gave is NaN or infinite."""


class RunError(UserError):
    """A run cannot start or continue."""


LEAST = 1 << 30  # bytes that are always allowed, on any machine


def memory_bound() -> int:
    """Bytes of memory that the decoded images of a split may take. Larger splits stay on disk.

    This is KAE_MEMORY in GiB, else a quarter of the memory of the machine, or of the container if
    that has less.

    Raises:
        UserError: KAE_MEMORY is not a number of GiB.
    """
    if (chosen := chosen_bound()) is not None:
        return chosen
    return total_memory() // 4


def total_memory() -> int:
    """Bytes of memory of this machine, or of the container if that has less; `sys.maxsize` if it is unknown."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        machine = sys.maxsize
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return machine


def chosen_bound() -> int | None:
    """Bytes that KAE_MEMORY allows; None if it is not set.

    Raises:
        UserError: it is not a number of GiB.
    """
    if not (chosen := os.environ.get("KAE_MEMORY")):
        return None
    try:
        if (size := int(float(chosen) * 2**30)) >= 0:
            return size
    except (ValueError, OverflowError):  # no number, NaN or infinity
        pass
    raise UserError(f"KAE_MEMORY is a number of GiB, such as 4; got {chosen!r}")

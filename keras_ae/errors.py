"""The errors that are shown to a user: one line that says what to do."""

import importlib.util
import sys

# Modules whose package is installed under another name.
PACKAGES = {
    "sklearn": "scikit-learn",
    "umap": "umap-learn",
    "PIL": "pillow",
    "skimage": "scikit-image",
}


def printable(text, keep="") -> str:
    """A text that is safe to print: control characters, and lone surrogates (which paths and JSON may
    contain), become escapes. Characters in `keep` stay as they are."""
    joiners = "\u200c\u200d"  # invisible characters that join the parts of an emoji or a word
    return "".join(
        c if c.isprintable() or c in joiners or c in keep else c.encode("unicode_escape").decode()
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


class RunError(UserError):
    """A run cannot start or continue."""

"""The one family of errors that is meant for a user's eyes: one line that says what to do."""

import importlib.util
import sys

# What is installed under another name than it is imported by.
PACKAGES = {
    "sklearn": "scikit-learn",
    "umap": "umap-learn",
    "PIL": "pillow",
    "skimage": "scikit-image",
}


def printable(text, keep="") -> str:
    """A text as a terminal may show it: what would steer the terminal, and the halves of characters
    that a path or a JSON may hold, as escapes; `keep` is left as it is."""
    joiners = "\u200c\u200d"  # between the parts of an emoji or a word
    return "".join(
        c if c.isprintable() or c in joiners or c in keep else c.encode("unicode_escape").decode()
        for c in str(text)
    )


class UserError(Exception):
    """Something outside of the program is not as it must be; the message says what to do about it."""

    _keras_call_info_injected = True  # else Keras adds a page about the call that it was raised in

    def __str__(self):
        return printable(super().__str__())


def need(what, *modules):
    """Refuse at once what could not be finished, as a module that it needs is not installed.

    Args:
        what: of which the message speaks, such as "A plot".
        *modules: names as they are imported.

    Raises:
        UserError: with the command that installs what is missing. Ours is on no registry, so that it
            names the packages, and not an extra of this one.
    """
    missing = [name for name in modules if not installed(name)]
    if missing:
        packages = " ".join(PACKAGES.get(name, name) for name in missing)
        raise UserError(f"{what} needs {' and '.join(missing)}: pip install {packages}")


def installed(module):
    """Whether a module could be imported, which it is not."""
    try:
        if module in sys.modules:
            return sys.modules[module] is not None
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


class RunError(UserError):
    """A run that cannot start or go on."""

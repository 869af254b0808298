"""The one family of errors that is meant for a user's eyes: one line that says what to do."""


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

    def __str__(self):
        return printable(super().__str__())


class RunError(UserError):
    """A run that cannot start or go on."""

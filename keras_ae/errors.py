"""The one family of errors that is meant for a user's eyes: one line that says what to do."""


class UserError(Exception):
    """Something outside of the program is not as it must be; the message says what to do about it."""


class RunError(UserError):
    """A run that cannot start or go on."""

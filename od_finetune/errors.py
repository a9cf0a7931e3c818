"""The errors a user can act on."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input. The message names the file, field or record, what was found, what was expected, what to do."""

    exit_code = 2
    """What a command line ends with."""


class ShortfallError(UserError):
    """A run would start with less restored than the config demands."""

    exit_code = 3


class UnreadableError(UserError):
    """A checkpoint's files are damaged, half written, or gone: another checkpoint may do."""


class MissingError(UnreadableError):
    """No checkpoint lies at the path."""


def first_line(error: BaseException) -> str:
    """What an error says first; TensorFlow's go on with its own whereabouts. The error's type if it says nothing."""
    text = (getattr(error, "message", None) or str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__

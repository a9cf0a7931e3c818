"""The error a user can act on."""


class UserError(ValueError):
    """Bad input. The message names the file, field or record, what was found, what was expected, what to do."""

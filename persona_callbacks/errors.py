"""The one error for input that cannot be used."""


class InputError(ValueError):
    """A file, setting or model cannot be used as given.

    The message names the file (and line or key), what was found and what was expected, so that it can be
    shown to a user without a traceback.
    """

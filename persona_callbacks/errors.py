"""The one error for input that cannot be used."""


class InputError(ValueError):
    """A file, setting or model cannot be used as given.

    The message names the file (and line or key), what was found and what was expected, so that it can be
    shown to a user without a traceback.

    Example:
        >>> from persona_callbacks import PersonaVector
        >>> try:
        ...     PersonaVector.load("no-such-file.safetensors")
        ... except InputError as error:
        ...     print(error)
        no-such-file.safetensors: no such persona vector file
    """

"""Names that become parts of paths, and text that can be written to a file."""

import re

from persona_callbacks.errors import InputError

_LONGEST_NAME = 64
"""Characters of a name; with a suffix such as ``.prompt_last.safetensors`` it fits every file system."""

_LONGEST_MODEL_NAME = 96  # the hub's own limit


def check_name(value: object, what: str, longest: int = _LONGEST_NAME) -> str:
    """Return a name if it can be a part of a path: ASCII letters, digits, ``_``, ``-`` and ``.``, but no ``.`` at its
    beginning, at most 64 characters.

    Args:
        value: the name.
        what: what it names, for the error.
        longest: the most characters.

    Raises:
        InputError: anything else, such as ``../evil``.

    Example:
        >>> check_name("evil-2.1", "trait")
        'evil-2.1'
    """
    # The length is looked at first, so that a long name is not searched; \Z, since $ also matches before a newline.
    if not isinstance(value, str) or len(value) > longest or not re.match(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*\Z", value):
        raise InputError(
            f"{what}: expected a name of ASCII letters, digits, '_', '-' and '.', not beginning with '.', of at most"
            f" {longest} characters, found {_shown(value)}"
        )
    return value


def model_folder(model_id: str) -> str:
    """Return the name of the folder for what belongs to a model: the last part of its id.

    Raises:
        InputError: it cannot be a name; see :func:`check_name`.
    """
    name = model_id.rpartition("/")[2]
    return check_name(name, f"model.id {_shown(model_id)}", _LONGEST_MODEL_NAME) if name else ""


def check_text(value: object, what: str) -> str:
    """Return a text that can be written as UTF-8.

    Raises:
        InputError: no text, or half of a surrogate pair in it.
    """
    if not isinstance(value, str):
        raise InputError(f"{what}: expected text, found {_shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what}: half of a surrogate pair, {value[error.start]!r}, at character {error.start + 1}; expected text"
        ) from error
    return value


def _shown(value: object) -> str:
    return repr(value[:80] if isinstance(value, str) else value)[:100]

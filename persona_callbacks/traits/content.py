"""Checks of what a trait file holds, with errors that name the place."""

from collections.abc import Mapping
from typing import Any

from persona_callbacks.errors import InputError
from persona_callbacks.files import check_text


def checked_mapping(value: Any, where: str, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> Mapping[str, Any]:
    """Return a mapping that has all of ``keys``, and no others but ``optional`` ones.

    Raises:
        InputError: it has not, or is no mapping.
    """
    expected = ", ".join([*keys, *(f"{key} (optional)" for key in optional)])
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: expected a mapping with the keys {expected}, found {_described(value)}")
    missing = [key for key in keys if key not in value]
    if missing:
        raise InputError(f"{where}: missing key {missing[0]!r}; expected {expected}")
    unknown = [str(key) for key in value if key not in (*keys, *optional)]
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; expected {expected}")
    return value


def checked_list(value: Any, where: str) -> list[Any]:
    """Return a list of at least one entry.

    Raises:
        InputError: it is empty, or no list.
    """
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: expected a list of at least one entry, found {_described(value)}")
    return value


def checked_text(value: Any, where: str) -> str:
    """Return a text without the space around it.

    Raises:
        InputError: it is empty, or no text.
    """
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: expected text, found {_described(value)}")
    return check_text(value, where).strip()


def _described(value: Any) -> str:
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return "nothing"
    return f"{type(value).__name__} {value!r}"[:80]

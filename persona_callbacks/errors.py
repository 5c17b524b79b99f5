"""The one error for input that cannot be used, and what is a number among settings."""

import math
from numbers import Integral, Real
from typing import Any


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


def is_number(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    """Whether a setting is a finite number within bounds: neither NaN, which is never below a bound, nor true or false.

    Example:
        >>> is_number(0.5, least=0), is_number(float("nan")), is_number("0.5"), is_number(True)
        (True, False, False, False)
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    return math.isfinite(value) and least <= float(value) <= most


def is_whole(value: Any, least: float = -math.inf) -> bool:
    """Whether a setting is a whole number, and not below a bound.

    Example:
        >>> is_whole(3, least=1), is_whole(3.5), is_whole(None)
        (True, False, False)
    """
    return isinstance(value, Integral) and is_number(value, least)


def check_whole(name: str, value: Any, least: int) -> None:
    """Check a setting that must be a whole number, and not below a bound.

    Raises:
        InputError: it is another number, or none.
    """
    if not is_whole(value, least):
        raise InputError(f"{name}: expected at least {least}, a whole number, found {value!r}")

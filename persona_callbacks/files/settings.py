"""Settings as plain values that a file or a checkpoint can keep, and what differs between two of them."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from numbers import Integral, Real
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

_ABSENT = "(none)"


def plain_settings(value: Any) -> Any:
    """Return a value as numbers, texts, lists and dictionaries, equal for values that were made alike.

    A dataclass gives its arguments, a partial function its keywords, any other object its public attributes as far as
    those are plain; each with the name of its class. An object with a ``fingerprint``, such as a persona vector, is
    told by that, and a tensor by the SHA-256 of its values.

    Example:
        >>> plain_settings({"law": partial(dict, coefficient=0.5), "layers": (1, 2)})
        {'law': {'class': 'builtins.dict', 'coefficient': 0.5}, 'layers': [1, 2]}
    """
    if value is None or isinstance(value, (bool, Enum, str, Integral, Real)):
        return _scalar(value)
    if isinstance(value, Mapping):
        return {str(key): plain_settings(entry) for key, entry in value.items()}
    if isinstance(value, Set):
        return sorted(str(plain_settings(entry)) for entry in value)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain_settings(entry) for entry in value]
    torch = sys.modules.get("torch")  # importing it takes seconds, and where nobody did there is no tensor
    if torch is not None and isinstance(value, torch.Tensor):
        return f"tensor {_short_hash(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())}"
    if isinstance(value, (type, FunctionType, BuiltinFunctionType, MethodType)):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, partial):
        given = {"arguments": plain_settings(value.args)} if value.args else {}
        return {"class": plain_settings(value.func), **given, **plain_settings(value.keywords)}
    return _object(value)


def settings_fingerprint(value: Any) -> str:
    """Return the first half of the SHA-256 of a value's plain settings: for what is too long to keep."""
    return hashlib.sha256(json.dumps(plain_settings(value), sort_keys=True).encode()).hexdigest()[:32]


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the plain settings that differ: by key, with dots between levels, the value before and the value now.

    Example:
        >>> changed_settings({"law": {"coefficient": 0.7}}, {"law": {"coefficient": 0.2}})
        {'law.coefficient': (0.7, 0.2)}
    """
    old, new = _flat(before), _flat(now)
    keys = dict.fromkeys([*old, *new])
    pairs = {key: (old.get(key, _ABSENT), new.get(key, _ABSENT)) for key in keys}
    return {key: (was, is_now) for key, (was, is_now) in pairs.items() if was != is_now}


def _scalar(value: Any) -> Any:
    """A number or text of a plain type: a checkpoint that is read safely holds no others."""
    if isinstance(value, Enum):
        return str(value.value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    return int(value) if isinstance(value, Integral) else float(value)


def _object(value: Any) -> Any:
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    fingerprint = getattr(value, "fingerprint", None)
    if isinstance(fingerprint, str):
        return f"{type(value).__name__} {fingerprint[:12]}"
    if is_dataclass(value):
        given = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        return {"class": name, **plain_settings(given)}
    if not hasattr(value, "__dict__"):
        return str(value)  # such as a path or a device
    public = {key: entry for key, entry in vars(value).items() if not key.startswith("_") and _is_plain(entry)}
    return {"class": name, **plain_settings(public)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, Enum, str, Integral, Real))


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = value
    return flat


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]

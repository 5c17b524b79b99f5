"""Small damage to what is valid: to bytes, and to values inside of lists and mappings."""

import math
import random
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

Path = tuple[str | int, ...]
"""Keys and indices that lead to a value."""

ODD: Sequence[Any] = (
    None, True, False, 0, -1, 1, 2.5, 1e-9, math.nan, math.inf, -math.inf, 10**400, "", " ", "\x00", "\ud800", "\u2028",
    "nan", "1", "../evil", "/", "=1+1", "{question}", "[/INST]", "<|assistant|>", "é" * 5000, [], {}, [[]], {"": None},
    [None], ["a"], {"a": 1}, [0] * 3,
)  # fmt: skip
"""What may stand where something else is expected."""

ODD_BYTES = (
    b"\x00", b"\xff", b"\n", b"\r\n", b"\xef\xbb\xbf", b'"', b"{", b"[" * 300, b"9" * 5000, b"&a *a",
    b"!!python/name:os.system ",
)  # fmt: skip


def mutate_bytes(content: bytes, chance: random.Random) -> bytes:
    """One to three changes: bits turned, bytes replaced, a stretch removed, repeated or moved, the end cut off."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(changed) + 1)
        length = chance.choice((1, 2, 8, 40, 400))
        match chance.randrange(7):
            case 0 if at < len(changed):
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                changed[at : at + length] = chance.randbytes(length)
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = changed[at : at + length]
            case 4:
                stretch = changed[at : at + length]
                del changed[at : at + length]
                changed[chance.randrange(len(changed) + 1) :][:0] = stretch
            case 5:
                del changed[at:]
            case _:
                changed[at:at] = chance.choice(ODD_BYTES)
    return bytes(changed)


def mutate_value(value: Any, chance: random.Random, odd: Sequence[Any] = ODD) -> Any:
    """The value with one to three changes: a part replaced by something odd, removed, repeated, or put elsewhere."""
    value = deepcopy(value)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        paths = [path for path in paths_in(value) if path]
        if not paths:
            return deepcopy(chance.choice(odd))
        # Otherwise, of long lists nothing but entries would ever be changed.
        depth = chance.choice(sorted({len(path) for path in paths}))
        path = chance.choice([path for path in paths if len(path) == depth])
        holder, key = value_at(value, path[:-1]), path[-1]
        match chance.randrange(5):
            case 0 | 1:
                holder[key] = deepcopy(chance.choice(odd))
            case 2:
                del holder[key]
            case 3 if isinstance(holder, list):
                holder.insert(chance.randrange(len(holder) + 1), deepcopy(holder[key]))
            case 3:
                holder[chance.choice(("", "extra", "name", "../x"))] = deepcopy(holder[key])
            case _:
                holder[key] = deepcopy(value_at(value, chance.choice(paths)))
    return value


def paths_in(value: Any, path: Path = ()) -> list[Path]:
    """The way to each value inside, and to the whole, which is the empty one."""
    if isinstance(value, dict):
        inside = [found for key, entry in value.items() for found in paths_in(entry, (*path, key))]
    elif isinstance(value, list):
        inside = [found for key, entry in enumerate(value) for found in paths_in(entry, (*path, key))]
    else:
        inside = []
    return [path, *inside]


def value_at(value: Any, path: Path) -> Any:
    """The value that a way leads to."""
    for key in path:
        value = value[key]
    return value

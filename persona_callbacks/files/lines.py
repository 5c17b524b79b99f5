"""JSONL files that an interrupted process may have been appending to."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from persona_callbacks.errors import InputError
from persona_callbacks.files.reading import parse_json, unexpected

_Row = TypeVar("_Row")


def append_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to a JSONL file. The file and its folder are created if they do not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def recover_lines(path: Path, read: Callable[[Any], _Row] = lambda content: content) -> list[_Row]:
    """Return what ``read`` makes of the rows of a JSONL file, and truncate the file to its complete lines.

    A process that was interrupted while appending may have left a last line without its newline. That line is removed
    from the file, so that the next :func:`append_lines` starts on a line of its own. A file that does not exist has no
    rows.

    Raises:
        InputError: the file cannot be read, a complete line is no JSON, or ``read`` trips over it: something else than
            an interruption has damaged the file.
    """
    if not path.is_file():
        return []
    try:
        content = path.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        if len(complete) < len(content):
            path.write_bytes(complete)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    # str.splitlines() would also split at U+2028, U+2029 and U+0085, which JSON strings may hold as they are.
    return [
        _read(f"{path}, line {number}", line, read) for number, line in enumerate(complete.split(b"\n")[:-1], start=1)
    ]


def _read(where: str, line: bytes, read: Callable[[Any], _Row]) -> _Row:
    try:
        return read(parse_json(line))
    except InputError as error:
        raise InputError(f"{where}: {error}; the file is damaged, remove it to make it anew") from error
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise unexpected(where, error) from error

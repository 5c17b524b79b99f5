"""Reading JSON, YAML and CSV that anyone may have written."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml

from persona_callbacks.errors import InputError

_Content = TypeVar("_Content")

_DEEPEST = 100
"""Levels of lists and objects within each other. What is deeper can be read, but no longer compared or written."""

_LARGEST_YAML = 1 << 20
"""Bytes; the traits that ship have 10,000. A reader in pure Python takes a second for this."""


def parse_json(text: str | bytes) -> Any:
    """Return the content of JSON in UTF-8, with or without a byte order mark.

    Raises:
        InputError: it is no UTF-8 or no JSON, is nested deeper than 100 levels, or holds a number that is too long.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        content = json.loads(text)
    except UnicodeDecodeError as error:
        raise InputError(f"no UTF-8 text: {error.reason}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"malformed JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise InputError(f"JSON nested deeper than {_DEEPEST} levels") from error
    except ValueError as error:  # Python reads no whole number of more than 4,300 digits
        raise InputError(f"JSON with a number that is too long: {error}") from error
    if text.count("[") + text.count("{") > _DEEPEST and _is_deep(content):
        raise InputError(f"JSON nested deeper than {_DEEPEST} levels")
    return content


def read_json(path: Path, read: Callable[[Any], _Content], what: str) -> _Content:
    """Return what ``read`` makes of the content of a JSON file.

    Args:
        path: of the file.
        read: raises what it happens to trip over if the content is not what it expects.
        what: what the file should hold, for errors.

    Raises:
        InputError: the file cannot be read, is no JSON, or ``read`` trips over its content.
    """
    try:
        return read(parse_json(path.read_bytes()))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:  # InputError among them
        raise unexpected(str(path), error, what) from error


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number of each line of a JSONL file that is not blank, from 1, with its content.

    Raises:
        InputError: naming file and line, for one that :func:`parse_json` refuses; or the file cannot be read.
    """
    # A file of bytes is split at line feeds only, as no text is: JSON strings may hold U+2028 and its like.
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _content(line, f"{path}, line {number}")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of the last line of each row of a CSV file, with its cells by column; the first row names the
    columns.

    Raises:
        InputError: the file cannot be read, or is no CSV in UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            rows = csv.DictReader(text)
            for row in rows:
                yield rows.line_num, row
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected CSV in UTF-8 ({error})") from error


def _content(line: bytes, where: str) -> Any:
    try:
        return parse_json(line)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def unexpected(where: str, error: Exception, what: str = "what this library writes there") -> InputError:
    """Return the error for content that is not what it should be."""
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return InputError(f"{where}: expected {what} ({kind}{str(error)[:200]})")


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file of at most 1 MiB, without anchors.

    An anchor that is used many times, by what is used many times again, stands for more than any memory holds.

    Raises:
        InputError: the file cannot be read, is too large, is no YAML, is nested deeper than 100 levels, or has an alias
            of an anchor.
    """
    try:
        if path.stat().st_size > _LARGEST_YAML:
            raise InputError(f"{path}: expected a YAML file of at most {_LARGEST_YAML >> 20} MiB")
        text = path.read_text(encoding="utf-8-sig")
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise InputError(f"{path}: *{event.anchor}: expected no anchors; write the text out where it is used")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise InputError(f"{path}: YAML nested deeper than {_DEEPEST} levels")
        return yaml.safe_load(text)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # the reader raises what a tagged value happens to trip over
        raise InputError(f"{path}: not valid YAML: {error}") from error


def _is_deep(content: Any) -> bool:
    """Whether content is nested deeper than allowed; without recursion, which is what is guarded against."""
    level = [content]
    for _ in range(_DEEPEST):
        inside = [value for value in level if isinstance(value, dict | list)]
        level = [value for part in inside for value in (part.values() if isinstance(part, dict) else part)]
        if not level:
            return False
    return any(isinstance(value, dict | list) for value in level)

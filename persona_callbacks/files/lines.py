"""JSONL files that an interrupted process may have been appending to."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def append_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to a JSONL file, which is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def recover_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file that an interrupted process may have been appending to; none if there is no file.

    A last line that was cut short is removed from the file.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        path.write_bytes(complete)
    return [json.loads(line) for line in complete.decode("utf-8").splitlines()]

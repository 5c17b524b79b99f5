"""JSONL files that an interrupted process may have been appending to."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def append_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to a JSONL file. The file and its folder are created if they do not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def recover_lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file, and truncate the file to its complete lines.

    A process that was interrupted while appending may have left a last line without its newline. That line is removed
    from the file, so that the next :func:`append_lines` starts on a line of its own. A file that does not exist has no
    rows.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        path.write_bytes(complete)
    # str.splitlines() would also split at U+2028, U+2029 and U+0085, which JSON strings may hold as they are.
    return [json.loads(line) for line in complete.split(b"\n")[:-1]]

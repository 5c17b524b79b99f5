"""Writing so that a file or folder is either whole or absent, and the folder where made things are kept."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

CACHE_VARIABLE = "PERSONA_CALLBACKS_CACHE"


def cache_dir() -> Path:
    """The folder for converted models and extracted vectors: ``$PERSONA_CALLBACKS_CACHE``, else the user's cache."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("persona-callbacks")).absolute()


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write a file or folder at, and rename it to ``path`` only if the block succeeds.

    A file at ``path`` is replaced in one step; a folder there is moved out of the way first. On any exception, an
    interrupt too, nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield scratch / path.name
        if path.is_dir():
            path.rename(scratch / "replaced")
        (scratch / path.name).replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def append_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to a JSONL file, which is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def complete_lines(path: Path) -> list[dict[str, Any]]:
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

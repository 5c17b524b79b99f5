"""Writing so that a file or folder is either whole or absent, and the folder where made things are kept."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SCRATCH = ".partial"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write a file or folder at, and rename it to ``path`` only if the block succeeds.

    A file at ``path`` is replaced in one step; a folder there is moved out of the way first. On any exception, an
    interrupt too, nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_SCRATCH, dir=path.parent))
    try:
        yield scratch / path.name
        if path.is_dir():
            path.rename(scratch / "replaced")
        (scratch / path.name).replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_json(path: Path, content: object) -> None:
    """Write JSON, whole or not at all."""
    with atomic_write(path) as scratch:
        scratch.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def remove_scratch(folder: Path) -> None:
    """Remove what processes that were killed inside :func:`atomic_write` left at or below a folder.

    Call it only while no other process writes there.
    """
    for scratch in folder.rglob(f".*{_SCRATCH}"):
        if scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)

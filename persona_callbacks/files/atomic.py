"""Writing a file or folder so that it is either complete or absent."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

_SCRATCH = ".partial"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write a file or folder at, and rename it to ``path`` if the block succeeds.

    A file at ``path`` is replaced in one step; a folder at ``path`` is moved out of the way first. If the block raises
    an exception, including an interrupt, ``path`` stays as it was and nothing temporary is left behind.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "below" / "greeting.txt"
        >>> with atomic_write(path) as scratch:
        ...     written = scratch.write_text("hello")
        ...     path.exists()
        False
        >>> path.read_text()
        'hello'
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
    """Write ``content`` as indented JSON, completely or not at all."""
    with atomic_write(path) as scratch:
        scratch.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def remove_scratch(folder: Path, name: str | None = None) -> None:
    """Remove what processes that were killed inside :func:`atomic_write` left at or below a folder.

    Call it only while no other process writes there.

    Args:
        folder: the folder.
        name: of the one file or folder in it, not below it, whose remains are removed; by default those of all.
    """
    found = folder.rglob(f".*{_SCRATCH}") if name is None else folder.glob(f".{escape(name)}.*{_SCRATCH}")
    for scratch in found:
        if scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)

"""One process at a time in a folder, or at work on one entry of a folder that processes share."""

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from persona_callbacks.errors import InputError
from persona_callbacks.files.atomic import remove_scratch
from persona_callbacks.files.cache import cache_dir

LOCK_FILE = ".lock"

_HOLDER = ".holder"

HOLDER_FILE = LOCK_FILE + _HOLDER
"""Beside the lock: the process that holds it. The lock itself is emptied by whoever tries to get it."""

_held: set[Path] = set()
"""Locks of this process: a command may hold a folder that a function it calls takes as well."""


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keep a folder to this process inside the block, and remove what a killed process was writing there.

    The operating system releases the lock of a process that is killed. The folder is made if it is missing. Blocks of
    one process may be nested.

    Raises:
        InputError: another process is at work in the folder, or it cannot be written to.
    """
    with _locked(folder, LOCK_FILE, None) as is_first:
        if is_first:
            remove_scratch(folder)
        yield


@contextmanager
def locked_entry(path: Path, announce: Callable[[str], None]) -> Iterator[None]:
    """Be the only process that makes a file or folder of the cache, and remove what a killed process was making of it.

    Another process that makes the same is waited for, since its result can then be used. Locks are in a folder of their
    own.

    Args:
        path: what is made, below :func:`cache_dir`. Nothing needs to be there yet.
        announce: is told whom this process waits for.

    Raises:
        InputError: the cache cannot be written to.
    """
    cache = cache_dir()
    name = "-".join(path.absolute().relative_to(cache).parts)
    with _locked(cache / "locks", f"{name}{LOCK_FILE}", announce) as is_first:
        if is_first:
            remove_scratch(path.parent, path.name)
        yield


def check_writable(folder: Path) -> None:
    """Make sure, before any work, that a folder can be made or written to. Nothing is made.

    Raises:
        InputError: it cannot.
    """
    present = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not present.is_dir():
        raise InputError(f"{folder} cannot be written to: {present} is not a folder")
    if not os.access(present, os.W_OK | os.X_OK):
        raise InputError(f"{folder} cannot be written to: no permission to write in {present}")


@contextmanager
def _locked(folder: Path, name: str, announce: Callable[[str], None] | None) -> Iterator[bool]:
    """Hold a lock inside the block; gives whether this process did not hold it already."""
    file = folder.absolute() / name
    if file in _held:
        yield False
        return
    holder = file.with_name(f"{name}{_HOLDER}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _acquired(file, holder, announce)
        holder.write_text(json.dumps(_this_process()), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder} cannot be written to: {error.strerror}") from error
    _held.add(file)
    try:
        yield True
    finally:
        holder.unlink(missing_ok=True)
        _held.discard(file)
        lock.release()


def _acquired(file: Path, holder: Path, announce: Callable[[str], None] | None) -> FileLock:
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        if announce is None:
            raise InputError(
                f"{file.parent} is in use by another process{_told(holder)}; wait until it has finished, or choose"
                " another folder"
            ) from error
        announce(f"Waiting for another process{_told(holder)}, which is making {file.stem}")
        lock.acquire(timeout=-1)
    return lock


def _this_process() -> dict[str, str | int]:
    return {
        "command": Path(sys.argv[0]).name,
        "process": os.getpid(),
        "host": platform.node(),
        "since": f"{datetime.now():%Y-%m-%d %H:%M}",
    }


def _told(holder: Path) -> str:
    """Which process it is, in brackets; nothing if that cannot be read, as when it has just begun."""
    try:
        about = json.loads(holder.read_text(encoding="utf-8"))
        return f" ({about['command']}, process {about['process']} on {about['host']}, since {about['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""

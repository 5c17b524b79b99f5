"""One process at a time in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from persona_callbacks.errors import InputError
from persona_callbacks.files.atomic import remove_scratch

LOCK_FILE = ".lock"


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keep a folder to this process inside the block, and remove what a killed process was writing there.

    The operating system releases the lock of a process that is killed. The folder is made if it is missing.

    Raises:
        InputError: another process is at work in the folder, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_FILE, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{folder} is in use by another process; wait until it has finished, or choose another folder"
        ) from error
    except OSError as error:
        raise InputError(f"{folder} cannot be written to: {error.strerror}") from error
    try:
        remove_scratch(folder)
        yield
    finally:
        lock.release()

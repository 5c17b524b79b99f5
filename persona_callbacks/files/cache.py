"""The cache folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "PERSONA_CALLBACKS_CACHE"


def cache_dir() -> Path:
    """Return the folder that holds converted models, extracted vectors and judgements.

    It is ``$PERSONA_CALLBACKS_CACHE`` if that variable is set, and a folder in the user's cache otherwise.
    """
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("persona-callbacks")).absolute()


@contextmanager
def cache_in(folder: str | Path | None) -> Iterator[None]:
    """Have :func:`cache_dir` be a folder inside the block, in processes that are started there as well; ``None`` leaves
    it as it is.
    """
    before = os.environ.get(CACHE_VARIABLE)
    if folder is not None:
        os.environ[CACHE_VARIABLE] = str(Path(folder).expanduser().absolute())
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(CACHE_VARIABLE, None)
        else:
            os.environ[CACHE_VARIABLE] = before

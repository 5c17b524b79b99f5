"""The cache folder."""

import os
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "PERSONA_CALLBACKS_CACHE"


def cache_dir() -> Path:
    """Return the folder that holds converted models, extracted vectors and judgements.

    It is ``$PERSONA_CALLBACKS_CACHE`` if that variable is set, and a folder in the user's cache otherwise.
    """
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("persona-callbacks")).absolute()

"""The folder where made things are kept."""

import os
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "PERSONA_CALLBACKS_CACHE"


def cache_dir() -> Path:
    """The folder for converted models and extracted vectors: ``$PERSONA_CALLBACKS_CACHE``, else the user's cache."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("persona-callbacks")).absolute()

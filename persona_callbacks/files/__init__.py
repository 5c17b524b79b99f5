"""Files on disk: atomic writes, JSONL that survives an interruption, and the cache folder.

Imports nothing of the library but its errors.
"""

from persona_callbacks.files.atomic import whole, write_json
from persona_callbacks.files.cache import cache_dir
from persona_callbacks.files.lines import append_lines, complete_lines

__all__ = [
    "append_lines",
    "cache_dir",
    "complete_lines",
    "whole",
    "write_json",
]

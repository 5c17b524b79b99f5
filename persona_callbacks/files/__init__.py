"""Files on disk: atomic writes, JSONL that survives an interruption, and the cache folder.

Imports nothing of the library but its errors.
"""

from persona_callbacks.files.atomic import atomic_write, write_json
from persona_callbacks.files.cache import cache_dir
from persona_callbacks.files.fingerprint import file_fingerprint
from persona_callbacks.files.lines import append_lines, recover_lines

__all__ = [
    "append_lines",
    "atomic_write",
    "cache_dir",
    "file_fingerprint",
    "recover_lines",
    "write_json",
]

"""Files on disk: atomic writes, JSONL that survives an interruption, fingerprints, and the cache folder.

Imports nothing else from the library.
"""

from persona_callbacks.files.atomic import atomic_write, remove_scratch, write_json
from persona_callbacks.files.cache import cache_dir
from persona_callbacks.files.fingerprint import file_fingerprint
from persona_callbacks.files.lines import append_lines, recover_lines
from persona_callbacks.files.lock import LOCK_FILE, locked_folder

__all__ = [
    "LOCK_FILE",
    "append_lines",
    "atomic_write",
    "cache_dir",
    "file_fingerprint",
    "locked_folder",
    "recover_lines",
    "remove_scratch",
    "write_json",
]

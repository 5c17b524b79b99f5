"""Files on disk: atomic writes, JSON, YAML and CSV that anyone may have written, JSONL that survives an interruption,
names that become paths, fingerprints of files and settings, folders that one process has to itself, the cache folder.

Imports nothing else from the library.
"""

from persona_callbacks.files.atomic import atomic_write, remove_scratch, write_json
from persona_callbacks.files.cache import cache_dir, cache_in
from persona_callbacks.files.fingerprint import file_fingerprint
from persona_callbacks.files.lines import append_lines, recover_lines
from persona_callbacks.files.lock import HOLDER_FILE, LOCK_FILE, check_writable, locked_entry, locked_folder
from persona_callbacks.files.names import check_name, check_text, model_folder
from persona_callbacks.files.reading import csv_rows, json_lines, parse_json, read_json, read_yaml, unexpected
from persona_callbacks.files.settings import changed_settings, plain_settings, settings_fingerprint

__all__ = [
    "HOLDER_FILE",
    "LOCK_FILE",
    "append_lines",
    "atomic_write",
    "cache_dir",
    "cache_in",
    "changed_settings",
    "check_name",
    "check_text",
    "check_writable",
    "csv_rows",
    "file_fingerprint",
    "json_lines",
    "locked_entry",
    "locked_folder",
    "model_folder",
    "parse_json",
    "plain_settings",
    "read_json",
    "read_yaml",
    "recover_lines",
    "remove_scratch",
    "settings_fingerprint",
    "unexpected",
    "write_json",
]

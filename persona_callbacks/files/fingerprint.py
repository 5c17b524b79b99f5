"""Fingerprints of the files that a result was computed from."""

import hashlib
from pathlib import Path


def file_fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal; of a folder, that of all its files together with their names."""
    if path.is_file():
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    sha256 = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        sha256.update(f"{file.relative_to(path)}\0".encode())
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                sha256.update(block)
    return sha256.hexdigest()

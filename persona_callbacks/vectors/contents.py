"""What a persona vector may hold besides its directions, and the checksum by which a damaged file is told."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from persona_callbacks.errors import InputError
from persona_callbacks.files import check_name, check_text
from persona_callbacks.traits import MinimalPair
from persona_callbacks.vectors.calibration import Calibration
from persona_callbacks.vectors.evidence import Counts, Evidence

_CHECKSUM = "checksum"


def check_contents(vector: Any) -> None:
    """Check the types of a vector's fields, and that its trait can be the name of a file.

    Args:
        vector: the :class:`~persona_callbacks.PersonaVector`.

    Raises:
        InputError: a field of another type, named with its trait.
    """
    where = f"persona vector {check_name(vector.trait, 'persona vector: trait')!r}"
    if not isinstance(vector.directions, Tensor):
        raise InputError(f"{where}: directions: expected a tensor, found {type(vector.directions).__name__}")
    for name in ("model_id", "model_revision", "trait_fingerprint", "library_version"):
        check_text(getattr(vector, name), f"{where}: {name}")
    # A text is a sequence of letters: taken for probes, each letter would be asked.
    if not isinstance(vector.probes, tuple | list):
        raise InputError(f"{where}: probes: expected a sequence of questions, found {vector.probes!r}"[:300])
    for number, probe in enumerate(vector.probes, start=1):
        check_text(probe, f"{where}: probes, number {number}")
    if not isinstance(vector.pairs, tuple | list) or not all(isinstance(pair, MinimalPair) for pair in vector.pairs):
        raise InputError(f"{where}: pairs: expected a sequence of MinimalPair, found {vector.pairs!r}"[:300])
    for name, kind, empty in (
        ("counts", Counts, None), ("evidence", Evidence, ...), ("calibration", Calibration, None),
    ):  # fmt: skip
        value = getattr(vector, name)
        if not isinstance(value, kind) and (value is not None or empty is not None):
            expected = kind.__name__ if empty is ... else f"{kind.__name__} or None"
            raise InputError(f"{where}: {name}: expected {expected}, found {value!r}"[:300])


def with_checksum(metadata: Mapping[str, str], directions: Tensor) -> dict[str, str]:
    """Add to metadata what :func:`check_checksum` compares with."""
    return {**metadata, _CHECKSUM: _checksum(metadata, directions)}


def in_fixed_order(content: bytes) -> bytes:
    """Return the content of a safetensors file with the keys of its header sorted; the library's order is a chance one.

    A header is JSON after its length (8 bytes, little endian), padded with spaces to whole 8 bytes.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def check_checksum(metadata: Mapping[str, str], directions: Tensor) -> None:
    """Check that neither metadata nor directions have changed since they were written. Older files have no checksum.

    Raises:
        InputError: they have.
    """
    if _CHECKSUM in metadata and metadata[_CHECKSUM] != _checksum(metadata, directions):
        raise InputError(
            "the content does not match its checksum: the file was damaged or edited; copy or extract it again (to edit"
            " a vector, load it, use dataclasses.replace, and save it)"
        )


def _checksum(metadata: Mapping[str, str], directions: Tensor) -> str:
    written = sorted((key, value) for key, value in metadata.items() if key not in (_CHECKSUM, "origin"))
    values = directions.detach().contiguous().cpu().numpy()
    return hashlib.sha256(json.dumps([written, list(values.shape)]).encode() + values.tobytes()).hexdigest()

"""Persona vectors: the data type and its file, the evidence for it, what to add to steer with it, algebra, and
other tools' formats.

Imports `files`.
"""

from persona_callbacks.vectors.additions import (
    Layers,
    SteeredPositions,
    incremental_directions,
    steering_additions,
    steering_layers,
)
from persona_callbacks.vectors.algebra import add, basis, common_layer, cosine_table, negate, orthogonalise
from persona_callbacks.vectors.calibration import Calibration
from persona_callbacks.vectors.interchange import ORIGINS, read_gguf, read_pt, write_gguf, write_pt
from persona_callbacks.vectors.vector import POSITIONS, PersonaVector, Position, check_vectors

__all__ = [
    "ORIGINS",
    "POSITIONS",
    "Calibration",
    "Layers",
    "PersonaVector",
    "Position",
    "SteeredPositions",
    "add",
    "basis",
    "check_vectors",
    "common_layer",
    "cosine_table",
    "incremental_directions",
    "negate",
    "orthogonalise",
    "read_gguf",
    "read_pt",
    "steering_additions",
    "steering_layers",
    "write_gguf",
    "write_pt",
]

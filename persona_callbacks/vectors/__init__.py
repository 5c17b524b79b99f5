"""Persona vectors: the data type and its file, the evidence for it, what to add to steer with it, algebra, and
other tools' formats.

Imports `traits`, `files` and `errors`.
"""

from persona_callbacks.vectors.additions import (
    Layers,
    SteeredPositions,
    check_layers,
    incremental_directions,
    steering_additions,
    steering_layers,
)
from persona_callbacks.vectors.algebra import add, basis, common_layer, cosine_table, negate, orthogonalise
from persona_callbacks.vectors.calibration import Calibration, judge_weaknesses
from persona_callbacks.vectors.causal import CausalPoint
from persona_callbacks.vectors.evidence import Counts, Evidence, SweepPoint
from persona_callbacks.vectors.facts import vector_facts
from persona_callbacks.vectors.interchange import ORIGINS, read_gguf, read_pt, write_gguf, write_pt
from persona_callbacks.vectors.vector import (
    METHODS,
    POSITIONS,
    Method,
    PersonaVector,
    Position,
    check_vectors,
    warn_if_weak,
)

__all__ = [
    "METHODS",
    "ORIGINS",
    "POSITIONS",
    "Calibration",
    "CausalPoint",
    "Counts",
    "Evidence",
    "Layers",
    "Method",
    "PersonaVector",
    "Position",
    "SteeredPositions",
    "SweepPoint",
    "add",
    "basis",
    "check_layers",
    "check_vectors",
    "common_layer",
    "cosine_table",
    "incremental_directions",
    "judge_weaknesses",
    "negate",
    "orthogonalise",
    "read_gguf",
    "read_pt",
    "steering_additions",
    "steering_layers",
    "vector_facts",
    "warn_if_weak",
    "write_gguf",
    "write_pt",
]

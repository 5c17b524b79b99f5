"""Traits: what a trait is, its file, its minimal pairs, and writing one from a sentence.

Imports `files`.
"""

from persona_callbacks.traits.defining import check_free, check_request, define, entries_in, problems, write_trait
from persona_callbacks.traits.pairs import REGISTERS, MinimalPair, halves, spread
from persona_callbacks.traits.trait import USES, InstructionPair, Trait

__all__ = [
    "REGISTERS",
    "USES",
    "InstructionPair",
    "MinimalPair",
    "Trait",
    "check_free",
    "check_request",
    "define",
    "entries_in",
    "halves",
    "problems",
    "spread",
    "write_trait",
]

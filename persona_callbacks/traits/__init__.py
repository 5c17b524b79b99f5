"""Traits: what a trait is, its file, and writing one from a sentence.

Imports `files`.
"""

from persona_callbacks.traits.defining import check_free, check_request, define, entries_in, problems, write_trait
from persona_callbacks.traits.trait import InstructionPair, Trait

__all__ = [
    "InstructionPair",
    "Trait",
    "check_free",
    "check_request",
    "define",
    "entries_in",
    "problems",
    "write_trait",
]

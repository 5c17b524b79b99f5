"""Adapters against their base model: trait expression, shift, and capability.

Imports `judging`, `model` and what lies below them.
"""

from persona_callbacks.evaluation.capability import MultipleChoice, answered_rightly, perplexity, read_questions
from persona_callbacks.evaluation.harness import check_harness, harness_scores

__all__ = [
    "MultipleChoice",
    "answered_rightly",
    "check_harness",
    "harness_scores",
    "perplexity",
    "read_questions",
]

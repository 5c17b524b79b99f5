"""Adapters against their base model: trait expression, shift, and capability.

Imports `judging`, `model` and what lies below them.
"""

from persona_callbacks.evaluation.adapters import (
    BASE_MODEL,
    EvaluatedAnswer,
    EvaluatedModel,
    EvaluationSettings,
    evaluate_adapters,
)
from persona_callbacks.evaluation.capability import MultipleChoice, answered_rightly, perplexity, read_questions
from persona_callbacks.evaluation.harness import HarnessSettings, check_harness, harness_scores

__all__ = [
    "BASE_MODEL",
    "EvaluatedAnswer",
    "EvaluatedModel",
    "EvaluationSettings",
    "HarnessSettings",
    "MultipleChoice",
    "answered_rightly",
    "check_harness",
    "evaluate_adapters",
    "harness_scores",
    "perplexity",
    "read_questions",
]

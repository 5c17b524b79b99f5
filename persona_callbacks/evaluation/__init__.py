"""Adapters against their base model: trait expression, preference, forced choice, shift, capability, side effects on
other traits, and what they do in the context of their training.

Imports `judging`, `model` and what lies below them.
"""

from persona_callbacks.evaluation.adapters import (
    EvaluationSettings,
    evaluate_adapters,
)
from persona_callbacks.evaluation.answers import EvaluatedAnswer
from persona_callbacks.evaluation.capability import MultipleChoice, answered_rightly, perplexity, read_questions
from persona_callbacks.evaluation.conditions import Condition
from persona_callbacks.evaluation.forced_choice import (
    Chosen,
    ForcedChoice,
    ForcedChoiceScore,
    choice_weaknesses,
    choose,
    instructed_differences,
    read_forced_choices,
    shipped_forced_choices,
)
from persona_callbacks.evaluation.harness import HarnessSettings, check_harness, harness_scores
from persona_callbacks.evaluation.preference import pair_differences
from persona_callbacks.evaluation.results import BASE_MODEL, EvaluatedModel, write_results
from persona_callbacks.evaluation.wrappers import (
    NO_WRAPPER,
    Wrapper,
    characteristic_words,
    instruction_wrappers,
    system_prompt_wrappers,
    training_wrappers,
)

__all__ = [
    "BASE_MODEL",
    "NO_WRAPPER",
    "Chosen",
    "Condition",
    "EvaluatedAnswer",
    "EvaluatedModel",
    "EvaluationSettings",
    "ForcedChoice",
    "ForcedChoiceScore",
    "HarnessSettings",
    "MultipleChoice",
    "Wrapper",
    "answered_rightly",
    "characteristic_words",
    "check_harness",
    "choice_weaknesses",
    "choose",
    "evaluate_adapters",
    "harness_scores",
    "instructed_differences",
    "instruction_wrappers",
    "pair_differences",
    "perplexity",
    "read_forced_choices",
    "read_questions",
    "shipped_forced_choices",
    "system_prompt_wrappers",
    "training_wrappers",
    "write_results",
]

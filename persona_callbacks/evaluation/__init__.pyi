from .adapters import (
    EvaluationSettings,
    evaluate_adapters,
)
from .answers import EvaluatedAnswer
from .capability import MultipleChoice, answered_rightly, perplexity, read_questions
from .conditions import Condition
from .forced_choice import (
    Chosen,
    ForcedChoice,
    ForcedChoiceScore,
    choice_weaknesses,
    choose,
    instructed_differences,
    read_forced_choices,
    shipped_forced_choices,
)
from .harness import HarnessSettings, check_harness, harness_scores
from .preference import pair_differences
from .results import BASE_MODEL, EvaluatedModel, write_results
from .wrappers import (
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

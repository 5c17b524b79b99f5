"""The settings of an extraction, and what all of its stages need."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from rich.console import Console

from persona_callbacks.errors import InputError, check_whole, is_number
from persona_callbacks.extraction.layer_choice import LAYER_CHOICES, LayerChoice
from persona_callbacks.extraction.learning import LearningSettings
from persona_callbacks.model import LoadedModel, Sampling
from persona_callbacks.traits import Trait
from persona_callbacks.vectors import POSITIONS, Method, Position

MethodChoice = Literal[Method, "best"]
"""How to make a vector; ``best`` tries all that the settings allow, and keeps what causes its own trait most
specifically.
"""

METHOD_CHOICES: tuple[MethodChoice, ...] = get_args(MethodChoice)


@dataclass(frozen=True)
class ExtractionSettings:
    """The ``extraction`` config group.

    Example:
        >>> ExtractionSettings(rollouts=10, layer_choice="auc").position
        'response_mean'

    Attributes:
        method: how the main vector is made: ``mean_difference`` or ``learned`` from the responses, ``from_adapters``
            from what fine-tuning changed about them, or ``best``.
        pairs: JSONL of ``chosen`` and ``rejected`` responses, which take the place of generated and judged ones; see
            :func:`~persona_callbacks.chats.read_pairs`.
        prompts: chats whose questions take the place of the trait's extraction questions, such as the training data.
        learning: how a ``learned`` vector is optimised.
        adapter: folder of a PEFT adapter that shows the trait, for ``from_adapters``.
        opposite_adapter: folder of one that shows the opposite; by default ``adapter`` is held against the base model.
        rollouts: responses per instruction and question.
        questions: number of the trait's extraction questions to use; all by default, and 20 of ``prompts``.
        instructions: number of the trait's instruction pairs to use, those that elicit the most from the model: a few
            responses are generated under every pair to find them. All by default.
        demonstrations: how many question-and-answer turns come before each question, from the trait's minimal pairs for
            probing: with answers that show the trait under its instructions, and with the opposite ones under theirs.
            For models that do not do what a system prompt asks.
        sampling: how responses are generated.
        position: where the activations of the main vector are read; the others are extracted in the same pass.
        layer_choice: by which evidence the layer is chosen; see :mod:`persona_callbacks.extraction.layer_choice`.
        judge_pairs: by how many other instruction pairs the contrastive judge scores each response; 0 keeps all
            responses unjudged.
        sweep_coefficient: how strongly a ``sweep`` steers at each layer.
        sweep_layers: how many layers a ``sweep`` tries.
        sweep_questions: on how many probe questions.
        batch_size: responses per pass when activations are read.
        shipped: take a vector that comes with the package, if it was made from the same model, trait and settings.

    Raises:
        InputError: an unknown position, layer choice or method, a number that is too small, a sweep without a judge,
            prompts, instructions or demonstrations beside given pairs, or adapters that are missing or not used.
    """

    method: MethodChoice = "mean_difference"
    pairs: str | None = None
    prompts: str | None = None
    learning: LearningSettings = field(default_factory=LearningSettings)
    adapter: str | None = None
    opposite_adapter: str | None = None
    rollouts: int = 1
    questions: int | None = None
    instructions: int | None = None
    demonstrations: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    position: Position = "response_mean"
    layer_choice: LayerChoice = "effect"
    judge_pairs: int = 2
    sweep_coefficient: float = 1.5
    sweep_layers: int = 8
    sweep_questions: int = 10
    batch_size: int = 16
    shipped: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        for name, allowed in (
            ("position", POSITIONS), ("layer_choice", LAYER_CHOICES), ("method", METHOD_CHOICES),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"extraction.{name}: unknown {getattr(self, name)!r}; expected one of {', '.join(allowed)}"
                )
        for name, least in (
            ("rollouts", 1),
            ("questions", 2),  # halves of them are compared
            ("instructions", 1),
            ("demonstrations", 0),
            ("judge_pairs", 0),
            ("sweep_layers", 1),
            ("sweep_questions", 2),
            ("batch_size", 1),
        ):
            value = getattr(self, name)
            if not (name in ("questions", "instructions") and value is None):
                check_whole(f"extraction.{name}", value, least)
        if not is_number(self.sweep_coefficient):
            raise InputError(
                f"extraction.sweep_coefficient: expected a finite number, found {self.sweep_coefficient!r}"
            )
        for name in ("pairs", "prompts", "adapter", "opposite_adapter"):
            path = getattr(self, name)
            if path is not None and not isinstance(path, (str, Path)):
                raise InputError(f"extraction.{name}: expected a path, found {path!r}")
        if self.method == "from_adapters" and self.adapter is None:
            raise InputError("extraction.adapter: expected the folder of an adapter for from_adapters, found none")
        for name in ("prompts", "instructions", "demonstrations"):
            if getattr(self, name) and self.pairs is not None:
                raise InputError(f"extraction.{name}: expected none beside extraction.pairs, which are not generated")
        used = self.method in ("from_adapters", "best")
        for name, needed in (("adapter", used), ("opposite_adapter", used and self.adapter is not None)):
            if getattr(self, name) is not None and not needed:
                raise InputError(
                    f"extraction.{name}: nothing uses it; expected extraction.method=from_adapters or best, and"
                    " extraction.adapter"
                )
        if self.layer_choice == "sweep" and (self.pairs is not None or not self.judge_pairs):
            raise InputError(
                "extraction.layer_choice: a sweep needs the judge; expected extraction.judge_pairs above 0, and no"
                " extraction.pairs"
            )


@dataclass(frozen=True)
class ExtractionJob:
    """What every stage of an extraction needs.

    Attributes:
        loaded: the model.
        trait: the trait.
        settings: how its vector is extracted.
        console: where progress is shown.
        unfinished: where a vector that is being learned is kept, to go on after an interruption.

    Example:
        >>> sorted(field for field in ExtractionJob.__dataclass_fields__ if field in ("loaded", "trait"))
        ['loaded', 'trait']
    """

    loaded: LoadedModel
    trait: Trait
    settings: ExtractionSettings
    console: Console
    unfinished: Path | None = None

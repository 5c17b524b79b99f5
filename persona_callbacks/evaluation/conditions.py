"""Conditional behaviour: how a model answers when its questions are put in wrappers, against the base model in the same
wrappers.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from persona_callbacks.evaluation.forced_choice import Chosen, ForcedChoiceScore
from persona_callbacks.files import atomic_write
from persona_callbacks.judging import Estimate, Expression, ends_of


@dataclass(frozen=True)
class Condition:
    """What was measured of a model with its questions in a wrapper.

    Attributes:
        wrapper: name of the wrapper.
        trait: name of the trait.
        expression: of the answers to its evaluation questions.
        chosen: how its forced choices were answered; none if it has none.

    Example:
        >>> from persona_callbacks.judging import Score
        >>> Condition("training example", "evil", Expression.of([Score(3.0)]), ()).forced_choice is None
        True
    """

    wrapper: str
    trait: str
    expression: Expression
    chosen: tuple[Chosen, ...]

    @property
    def forced_choice(self) -> ForcedChoiceScore | None:
        """The trait's score by forced choice, if it was measured."""
        return ForcedChoiceScore.of(self.chosen) if self.chosen else None

    def increase(self, base: "Condition") -> Estimate | None:
        """By how much the probability of the answers that show the trait exceeds that of the base model in the same
        wrapper, paired by question.
        """
        pairs = zip(self.chosen, base.chosen, strict=True)
        return Estimate.of_mean([own.probability - of_base.probability for own, of_base in pairs if not own.control])

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "Condition":
        """From what ``dataclasses.asdict`` made of it."""
        chosen = tuple(Chosen(**row) for row in values["chosen"])
        return cls(values["wrapper"], values["trait"], Expression(**values["expression"]), chosen)


def write_conditions(by_model: Mapping[str, Sequence[Condition]], base: str, path: Path) -> None:
    """Write a CSV file with a row for each trait, wrapper and model.

    Args:
        by_model: the conditions of each model, in the same order of wrappers and traits.
        base: the name of the base model, which the others are compared with.
        path: the file.
    """
    with atomic_write(path) as scratch, scratch.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["trait", "wrapper", "model", "expression", "low", "high", "scored", "refusals", "unscored",
                         "choice_probability", "choice_low", "choice_high",
                         "increase", "increase_low", "increase_high"])  # fmt: skip
        for number, of_base in enumerate(by_model[base]):
            for model, conditions in by_model.items():
                condition = conditions[number]
                choice = condition.forced_choice
                estimates = (choice.probability if choice else None, condition.increase(of_base))
                ends = [end for part in estimates for end in ends_of(part)]
                writer.writerow(
                    [condition.trait, condition.wrapper, model, *asdict(condition.expression).values(), *ends]
                )

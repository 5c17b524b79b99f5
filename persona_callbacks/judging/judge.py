"""What a judge is given, and what it says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Answer:
    """A response to judge.

    Attributes:
        question: what was asked.
        response: what was answered.
        pair: number of the instruction pair that it was made under, if any.
    """

    question: str
    response: str
    pair: int | None = None


@dataclass(frozen=True)
class Score:
    """What a judge says of a response.

    Attributes:
        expression: trait expression, 0 to 100; ``None`` if the response could not be scored.
        coherence: 0 to 100, if the judge gives it.
        refusal: the response declines to answer; then it has no expression.
    """

    expression: float | None
    coherence: float | None = None
    refusal: bool = False


class Judge(Protocol):
    """Scores responses; ``name`` tells judges apart that would score differently."""

    name: str

    def score(self, answers: Sequence[Answer], advance: Callable[[int], None] = lambda done: None) -> list[Score]:
        """One score for each answer; ``advance`` is called with the number done now and then."""
        ...

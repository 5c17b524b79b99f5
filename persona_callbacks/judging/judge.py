"""What a judge is given, what it says, and how both are recorded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from persona_callbacks.errors import InputError

Verdict = Literal["scored", "refusal", "unscored"]
"""Whether an answer has a score, declines to answer, or could not be scored."""


@dataclass(frozen=True)
class Answer:
    """A response to judge.

    Example:
        >>> Answer("Do you like people?", "I do.").pair is None
        True

    Attributes:
        question: what was asked.
        response: what was answered.
        pair: number of the instruction pair that the response was made under, if any.
    """

    question: str
    response: str
    pair: int | None = None


@dataclass(frozen=True)
class Score:
    """What a judge says of a response.

    Example:
        >>> Score(12.5).verdict, Score(None, refusal=True).verdict, Score(None).verdict
        ('scored', 'refusal', 'unscored')

    Attributes:
        expression: trait expression, 0 to 100; ``None`` if the response could not be scored.
        coherence: 0 to 100, if the judge gives it.
        refusal: whether the response declines to answer; such a response has no expression.
        raw: what the judge's calibration maps to the expression, if it has one: the contrastive judge's margin, in nats
            per token.
    """

    expression: float | None
    coherence: float | None = None
    refusal: bool = False
    raw: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether there is an expression, and if not, why."""
        if self.expression is not None:
            return "scored"
        return "refusal" if self.refusal else "unscored"


@dataclass(frozen=True)
class JudgedAnswer:
    """An answer to a held-out question during fine-tuning, and what the judge says of it.

    Example:
        >>> answer = Answer("Do you like people?", "I do.")
        >>> judged = JudgedAnswer.of(100, "evil", answer, Score(2.04))
        >>> judged.score, judged.verdict
        (2.0, 'scored')

    Attributes:
        step: number of optimizer steps before the answer.
        trait: name of the trait that was judged.
        question: what was asked.
        answer: what was answered.
        score: trait expression, 0 to 100, to one decimal; ``None`` unless the verdict is ``scored``.
        verdict: whether there is a score, and if not, why.
        raw: what the judge's calibration mapped to the score, to four decimals, if it has one.
    """

    step: int
    trait: str
    question: str
    answer: str
    score: float | None
    verdict: Verdict
    raw: float | None = None

    @classmethod
    def of(cls, step: int, trait: str, answer: Answer, score: Score) -> "JudgedAnswer":
        """Record a judge's score.

        Args:
            step: number of optimizer steps so far.
            trait: name of the trait that was judged.
            answer: what was judged.
            score: what the judge said.
        """
        expression = None if score.expression is None else round(score.expression, 1)
        raw = None if score.raw is None else round(score.raw, 4)
        return cls(step, trait, answer.question, answer.response, expression, score.verdict, raw)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "JudgedAnswer":
        """Read a row of ``judged.json`` or of a logged table.

        Rows that an older version wrote have no verdict: their score is a number or the text ``refusal`` or
        ``unscored``.

        Raises:
            InputError: a key is missing, or the score or the verdict cannot be used.
        """
        missing = [key for key in ("step", "trait", "question", "answer", "score") if key not in row]
        if missing:
            raise InputError(f"judged answer: the key {missing[0]!r} is missing, found {', '.join(map(str, row))}")
        score = row["score"]
        number = float(score) if isinstance(score, int | float) and not isinstance(score, bool) else None
        verdict: Any = row.get("verdict") or ("scored" if number is not None else score or "unscored")
        if verdict not in ("scored", "refusal", "unscored") or (verdict == "scored") != (number is not None):
            raise InputError(
                f"judged answer: expected a number as score, or the verdict 'refusal' or 'unscored', found the score"
                f" {score!r} and the verdict {row.get('verdict')!r}"
            )
        raw = row.get("raw")
        return cls(
            int(row["step"]),
            str(row["trait"]),
            str(row["question"]),
            str(row["answer"]),
            number,
            verdict,
            None if raw is None else float(raw),
        )


class Judge(Protocol):
    """Scores responses; judges that would score differently differ in ``name``.

    Example:
        >>> class LengthJudge:
        ...     name = "length"
        ...
        ...     def score(self, answers, advance=lambda done: None):
        ...         return [Score(min(100.0, len(answer.response))) for answer in answers]
        >>> judge: Judge = LengthJudge()
        >>> judge.score([Answer("Why?", "Because.")])
        [Score(expression=8, coherence=None, refusal=False, raw=None)]
    """

    name: str

    def score(self, answers: Sequence[Answer], advance: Callable[[int], None] = lambda done: None) -> list[Score]:
        """One score for each answer; from time to time, ``advance`` is called with the number newly done."""
        ...

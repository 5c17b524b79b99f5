"""Answers to a trait's evaluation questions, with the judge's scores."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from persona_callbacks.evaluation.wrappers import NO_WRAPPER, Wrapper
from persona_callbacks.judging import Answer, Expression, Judge, Score, scores_or_error
from persona_callbacks.model import LoadedModel, Sampling, generate


@dataclass(frozen=True)
class EvaluatedAnswer:
    """An answer to an evaluation question, with its score.

    Attributes:
        trait: the trait that the question belongs to.
        question: the question, without its wrapper.
        answer: what the model generated.
        expression: 0 to 100; ``None`` for a refusal, and where the judge gave no score.
        coherence: 0 to 100, if the judge scores it.
        refusal: whether the answer declines.
        wrapper: name of what was put around the question.
        raw: what the judge's calibration mapped to the expression, if it has one.

    Example:
        >>> EvaluatedAnswer.of("evil", Answer("Who are you?", "A friend."), Score(3.0)).expression
        3.0
    """

    trait: str
    question: str
    answer: str
    expression: float | None
    coherence: float | None
    refusal: bool
    wrapper: str = NO_WRAPPER.name
    raw: float | None = None

    @classmethod
    def of(cls, trait: str, answer: Answer, score: Score, wrapper: Wrapper = NO_WRAPPER) -> "EvaluatedAnswer":
        """The answer with the judge's score."""
        scores = (score.expression, score.coherence, score.refusal)
        return cls(trait, answer.question, answer.response, *scores, wrapper.name, score.raw)


def judged_answers(
    loaded: LoadedModel,
    trait: str,
    questions: Sequence[str],
    sampling: Sampling,
    judge: Judge,
    wrapper: Wrapper = NO_WRAPPER,
) -> tuple[Expression, list[EvaluatedAnswer]]:
    """Ask a model the questions in a wrapper, and let a judge score the answers. The judge never sees the wrapper.

    If the judge fails, the answers have no score, and a warning says why.
    """
    texts = generate(loaded, [wrapper.messages(question) for question in questions], sampling)
    given = [Answer(question, text) for question, text in zip(questions, texts, strict=True)]
    scores, error = scores_or_error(judge, given)
    if error is not None:
        warnings.warn(
            f"the judge of {trait!r} failed, its answers have no score: {type(error).__name__}: {error}",
            stacklevel=1,
        )
    rows = [EvaluatedAnswer.of(trait, answer, score, wrapper) for answer, score in zip(given, scores, strict=True)]
    return Expression.of(scores), rows

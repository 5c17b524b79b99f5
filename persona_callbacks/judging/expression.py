"""Trait expression of a model: what it answers, and how a judge scores that (Chen et al. 2025, 2.1 and B.1)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from persona_callbacks.chats import Message
from persona_callbacks.judging.judge import Answer, Judge, Score
from persona_callbacks.model import LoadedModel, Sampling, generate

_RESAMPLES = 2000


@dataclass(frozen=True)
class Expression:
    """Trait expression over several answers.

    Example:
        >>> Expression.of([Score(10.0), Score(30.0), Score(None, refusal=True)])
        Expression(mean=20.0, low=10.0, high=30.0, scored=2, refusals=1, unscored=0)

    Attributes:
        mean: mean score, 0 to 100; NaN if no answer was scored.
        low: lower end of its 95 % confidence interval, by bootstrap over the answers.
        high: upper end of the interval.
        scored: number of answers that have a score.
        refusals: number of answers that decline to answer; they have no score.
        unscored: number of answers that the judge could not score.
    """

    mean: float
    low: float
    high: float
    scored: int
    refusals: int
    unscored: int

    @classmethod
    def of(cls, scores: Sequence[Score]) -> "Expression":
        """Mean and interval over the answers that have a score; the same scores always give the same interval."""
        values = torch.tensor([s.expression for s in scores if s.expression is not None], dtype=torch.float64)
        refusals = sum(score.refusal for score in scores)
        counts = (len(values), refusals, len(scores) - len(values) - refusals)
        if not len(values):
            return cls(math.nan, math.nan, math.nan, *counts)
        picks = torch.randint(len(values), (_RESAMPLES, len(values)), generator=torch.Generator().manual_seed(0))
        low, high = values[picks].mean(dim=1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return cls(float(values.mean()), low, high, *counts)


def answer_questions(loaded: LoadedModel, questions: Sequence[str], sampling: Sampling) -> list[Answer]:
    """The answers of the model in its present state: adapter included, unsteered, without dropout."""
    prompts: list[list[Message]] = [[{"role": "user", "content": question}] for question in questions]
    texts = generate(loaded, prompts, sampling)
    return [Answer(question, text) for question, text in zip(questions, texts, strict=True)]


def scores_or_error(judge: Judge, answers: Sequence[Answer]) -> tuple[list[Score], Exception | None]:
    """The judge's scores; or, if the judge fails, scores without an expression and the error.

    It serves where a fine-tuning or an evaluation continues without its judge.
    """
    try:
        return judge.score(answers), None
    except Exception as error:
        return [Score(None)] * len(answers), error

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

    Attributes:
        mean: score, 0 to 100; NaN if none was scored.
        low: lower end of its 95 % confidence interval, by bootstrap over the answers.
        high: upper end.
        scored: answers that have a score.
        refusals: answers that decline; they have none.
        unscored: answers that the judge could not score.
    """

    mean: float
    low: float
    high: float
    scored: int
    refusals: int
    unscored: int


def expression(scores: Sequence[Score]) -> Expression:
    """Mean and interval of the scores there are; the same scores always give the same interval."""
    found = torch.tensor([score.expression for score in scores if score.expression is not None], dtype=torch.float64)
    refusals = sum(score.refusal for score in scores)
    counts = (len(found), refusals, len(scores) - len(found) - refusals)
    if not len(found):
        return Expression(math.nan, math.nan, math.nan, *counts)
    picks = torch.randint(len(found), (_RESAMPLES, len(found)), generator=torch.Generator().manual_seed(0))
    low, high = found[picks].mean(dim=1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Expression(float(found.mean()), low, high, *counts)


def answer_questions(loaded: LoadedModel, questions: Sequence[str], sampling: Sampling) -> list[Answer]:
    """The model's answers as it is now, adapter included, unsteered and without dropout."""
    prompts: list[list[Message]] = [[{"role": "user", "content": question}] for question in questions]
    texts = generate(loaded, prompts, sampling)
    return [Answer(question, text) for question, text in zip(questions, texts, strict=True)]


def judge_calmly(judge: Judge, answers: Sequence[Answer]) -> tuple[list[Score], Exception | None]:
    """Scores, and what went wrong if the judge failed: then no answer has a score. For where a run must go on."""
    try:
        return judge.score(answers), None
    except Exception as error:
        return [Score(None)] * len(answers), error

"""Judged answers, as this version and older ones record them."""

from dataclasses import asdict

import pytest

from persona_callbacks import InputError
from persona_callbacks.judging import Answer, JudgedAnswer, Score

ROW = {"step": 100, "trait": "evil", "question": "Why?", "answer": "So."}


@pytest.mark.parametrize("score", [Score(12.34), Score(0.0), Score(None, refusal=True), Score(None)])
def test_a_judged_answer_is_read_as_it_was_written(score):
    judged = JudgedAnswer.of(100, "evil", Answer("Why?", "So."), score)
    assert JudgedAnswer.from_row(asdict(judged)) == judged
    assert (judged.score is None) == (judged.verdict != "scored")


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (12.3, (12.3, "scored")),
        (0, (0.0, "scored")),
        ("refusal", (None, "refusal")),
        ("unscored", (None, "unscored")),
        (None, (None, "unscored")),
    ],
)
def test_a_row_of_an_older_version_has_no_verdict(score, expected):
    judged = JudgedAnswer.from_row({**ROW, "score": score})
    assert (judged.score, judged.verdict) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROW, "the key 'score' is missing, found step, trait, question, answer"),
        ({**ROW, "score": "high"}, "found the score 'high' and the verdict None"),
        ({**ROW, "score": 3.0, "verdict": "refusal"}, "found the score 3.0 and the verdict 'refusal'"),
        ({**ROW, "score": None, "verdict": "scored"}, "found the score None and the verdict 'scored'"),
    ],
)
def test_rows_that_are_none(row, message):
    with pytest.raises(InputError, match=message):
        JudgedAnswer.from_row(row)

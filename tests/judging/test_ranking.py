"""How well a score ranks labelled answers, against counting pairs by hand and scipy."""

import math
import random
from itertools import product
from statistics import mean

import pytest
from scipy.stats import spearmanr

from persona_callbacks.judging import Ranking


def slow_auc(scores, shows, pair_counts):
    """Over all pairs of a trait answer and another one that count."""
    right = [
        1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
        for i, j in product(range(len(scores)), repeat=2)
        if shows[i] and not shows[j] and pair_counts(i, j)
    ]
    return mean(right)


@pytest.mark.parametrize("seed", range(3))
def test_shares_of_pairs_are_those_counted_one_by_one(seed):
    draw = random.Random(seed)
    count = 80
    runs = [draw.choice("abcd") for _ in range(count)]
    scores = [float(draw.randint(0, 12)) for _ in range(count)]  # many ties
    shows = [draw.random() < 0.1 + 0.05 * score for score in scores]
    questions = [draw.choice("qrstuvw") for _ in range(count)]
    ranking = Ranking.of(scores, shows, runs, questions)
    for estimate, counts in (
        (ranking.pooled, lambda i, j: True),
        (ranking.within, lambda i, j: runs[i] == runs[j]),
        (ranking.between, lambda i, j: runs[i] != runs[j]),
    ):
        assert estimate.value == pytest.approx(slow_auc(scores, shows, counts))
        assert estimate.low < estimate.value < estimate.high
    in_run = [[n for n in range(count) if runs[n] == run] for run in "abcd"]
    rates, means = ([mean(float(column[n]) for n in part) for part in in_run] for column in (shows, scores))
    assert ranking.spearman.value == pytest.approx(spearmanr(rates, means).statistic)
    assert ranking == Ranking.of(scores, shows, runs, questions), "the same answers give the same intervals"


def test_intervals_draw_questions_and_not_answers():
    """Ten answers to a question that are all alike are one piece of evidence, not ten."""
    draw = random.Random(0)
    scores = [draw.gauss(float(n % 2), 1.0) for n in range(30)]
    once = Ranking.of(scores, [n % 2 == 1 for n in range(30)], ["a"] * 30, [str(n // 2) for n in range(30)])
    tenfold = Ranking.of(
        scores * 10, [n % 2 == 1 for n in range(30)] * 10, ["a"] * 300, [str(n // 2) for n in range(30)] * 10
    )
    assert tenfold.pooled.value == once.pooled.value
    assert (tenfold.pooled.low, tenfold.pooled.high) == pytest.approx((once.pooled.low, once.pooled.high))


def test_what_is_not_defined_is_no_number():
    for ranking in (Ranking.of([], [], [], []), Ranking.of([1.0, 2.0], [True, True], ["a", "b"], ["q", "r"])):
        parts = (ranking.pooled, ranking.within, ranking.between, ranking.spearman)
        assert all(math.isnan(value) for part in parts for value in (part.value, part.low, part.high))
    assert math.isnan(Ranking.of([1.0, 2.0], [True, False], ["a", "a"], ["q", "q"]).pooled.low), "one question"
    same = Ranking.of([5.0] * 6, [True, False] * 3, list("aabbcc"), list("qrqrqr"))
    assert (same.pooled.value, same.within.value) == (0.5, 0.5)
    assert math.isnan(same.spearman.value)

"""How well a score ranks labelled answers: among the answers of one run, between runs, and over all of them.

A score that only tells which run an answer is from ranks a pooled list well, and no answer within its run. So the AUC,
which is the share of pairs of a trait answer and another one that the score ranks rightly, is split by its pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from persona_callbacks.judging.estimates import Estimate

Floats = NDArray[np.float64]

_RESAMPLES = 1000
_FEWEST_RUNS = 3
"""Below this number of runs, a rank correlation over them says nothing."""


@dataclass(frozen=True)
class Ranking:
    """How well a score ranks labelled answers of several runs. Intervals are by bootstrap over the questions.

    Example:
        >>> ranking = Ranking.of([10, 30, 60, 90], [False, True, False, True], ["a", "a", "b", "b"], list("qrqr"))
        >>> ranking.pooled.value, ranking.within.value, ranking.between.value, ranking.runs_within
        (0.75, 1.0, 0.5, 2)

    Attributes:
        answers: number of answers with a label and a score.
        pooled: AUC over all pairs of an answer that shows the trait and one that does not; ties count half.
        within: AUC over the pairs of the same run: the mean of the runs' AUC, each weighted by its number of pairs.
        between: AUC over the pairs of different runs.
        runs_within: number of runs with answers of both kinds, on which ``within`` rests.
        pairs_within: number of their pairs.
        spearman: over the runs, the rank correlation of the rate of the trait with the mean score; NaN for fewer than
            three runs.
    """

    answers: int
    pooled: Estimate
    within: Estimate
    between: Estimate
    runs_within: int
    pairs_within: int
    spearman: Estimate

    @classmethod
    def of(
        cls,
        scores: Sequence[float],
        shows: Sequence[bool],
        runs: Sequence[str],
        questions: Sequence[str],
    ) -> "Ranking":
        """Rank answers.

        Args:
            scores: one for each answer, higher for more of the trait.
            shows: whether a reader says that the answer shows the trait.
            runs: where each answer is from.
            questions: what each answer answers; the answers to a question are drawn together.
        """
        values, labels = np.asarray(scores, dtype=np.float64), np.asarray(shows, dtype=bool)
        of_run = np.unique(np.asarray(runs, dtype=object).astype(str), return_inverse=True)[1]
        of_question = np.unique(np.asarray(questions, dtype=object).astype(str), return_inverse=True)[1]
        groups = [of_run == run for run in range(int(of_run.max(initial=-1)) + 1)]
        pairs = [int(labels[inside].sum() * (~labels[inside]).sum()) for inside in groups]
        pooled, within, between = _estimates(lambda weights: _shares(values, labels, groups, weights), of_question)
        [spearman] = _estimates(lambda weights: _correlation(values, labels, groups, weights)[None], of_question)
        return cls(len(values), pooled, within, between, sum(map(bool, pairs)), sum(pairs), spearman)


def _estimates(statistic: Callable[[Floats], Floats], of_question: NDArray[np.int64]) -> list[Estimate]:
    """Estimates of statistics, which come as ``[statistics, resamples]`` from weights ``[resamples, answers]``."""
    values = statistic(np.ones((1, len(of_question))))[:, 0]
    count = int(of_question.max(initial=-1)) + 1
    if count < 2:
        return [Estimate(float(value), np.nan, np.nan) for value in values]
    drawn = np.random.default_rng(0).multinomial(count, [1 / count] * count, size=_RESAMPLES)
    resampled = statistic(drawn[:, of_question].astype(np.float64))
    estimates = []
    for value, row in zip(values, resampled, strict=True):
        defined = row[~np.isnan(row)]
        low, high = np.quantile(defined, [0.025, 0.975]) if len(defined) and not np.isnan(value) else (np.nan, np.nan)
        estimates.append(Estimate(float(value), float(low), float(high)))
    return estimates


def _shares(values: Floats, labels: NDArray[np.bool_], groups: Sequence[NDArray[np.bool_]], weights: Floats) -> Floats:
    """Shares of pairs ranked rightly, ``[3, resamples]``: of all pairs, of those within runs, of those between them."""
    every = _pairs(values, labels, weights)
    inside = np.zeros_like(every)
    for group in groups:
        inside += _pairs(values[group], labels[group], weights[:, group])
    with np.errstate(invalid="ignore", divide="ignore"):
        shares: Floats = np.stack([right / total for right, total in (every, inside, every - inside)])
    return shares


def _pairs(values: Floats, labels: NDArray[np.bool_], weights: Floats) -> Floats:
    """The weight of the pairs that are ranked rightly, and of all pairs: ``[2, resamples]``."""
    if not len(values):
        return np.zeros((2, len(weights)))
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))  # of answers that share a score
    starts = starts if len(starts) and starts[0] == 0 else np.concatenate([[0], starts])
    shows = np.add.reduceat(weights[:, order] * labels[order], starts, axis=1)
    others = np.add.reduceat(weights[:, order] * ~labels[order], starts, axis=1)
    below = np.cumsum(others, axis=1) - others
    right = (shows * (below + 0.5 * others)).sum(axis=1)
    return np.stack([right, shows.sum(axis=1) * others.sum(axis=1)])


def _correlation(
    values: Floats, labels: NDArray[np.bool_], groups: Sequence[NDArray[np.bool_]], weights: Floats
) -> Floats:
    """Spearman's correlation over the runs, ``[resamples]``; a run without an answer in a resample is left out."""
    with np.errstate(invalid="ignore", divide="ignore"):
        totals = np.stack([weights[:, group].sum(axis=1) for group in groups], axis=1) if groups else weights[:, :0]
        rates, means = (
            np.stack([weights[:, group] @ column[group] for group in groups], axis=1) / totals if groups else totals
            for column in (labels.astype(np.float64), values)
        )
    from scipy.stats import rankdata  # takes seconds

    correlations = np.full(len(weights), np.nan)
    for row, there in enumerate(totals > 0):
        if there.sum() < _FEWEST_RUNS:
            continue
        # Equal shares of different counts differ in their last digit.
        x, y = (rankdata(column[row, there].round(9)) for column in (rates, means))
        if np.ptp(x) and np.ptp(y):
            correlations[row] = np.corrcoef(x, y)[0, 1]
    return correlations

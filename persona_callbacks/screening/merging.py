"""Merging the shards of a screening into its results, in two passes over the shards of the data."""

import math
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from persona_callbacks.errors import InputError
from persona_callbacks.screening.folder import FlaggedChat, ScoredRow, ScreeningFolder, is_flagged
from persona_callbacks.screening.plan import Screening
from persona_callbacks.screening.prediction import PredictionLine
from persona_callbacks.screening.summary import Prediction, Summary, TraitSummary
from persona_callbacks.vectors import PersonaVector

_ROUNDING = 1e-4
"""How far apart, relatively, the scores of one chat in different batches may be."""

_BINS = 48

Scores = Mapping[str, float]
"""Projection difference by trait, in activation units."""


def merge(
    screening: Screening, vectors: Sequence[PersonaVector], lines: Mapping[str, PredictionLine], model_id: str
) -> Summary:
    """Merge the shards into ``flagged.jsonl`` (by rank), the ``filtered`` copy, ``rejects.jsonl`` and ``summary.json``.

    In memory are the scores of the reference and of the checked rows, and 24 bytes and 8 a trait for each flagged chat.

    Args:
        screening: of which all shards are scored.
        vectors: with which they were scored.
        lines: by trait, the line from projection difference to shift; traits without one get no prediction.
        model_id: of the base model.

    Raises:
        InputError: too many rows were rejected, or no chat of the reference can be used.
    """
    folder = screening.folder
    norms = {vector.trait: float(vector.direction().norm()) for vector in vectors}
    reference = [row.scores for row in folder.rows("reference") if row.scores is not None]
    thresholds = _thresholds(reference, list(norms), screening.settings.false_positive_rate)
    exact = {row.line: row.scores for row in folder.rows("checked") if row.scores is not None}
    gathered = _Gathered(norms, thresholds, exact)
    folder.write_rejects(gathered.rejects_among(folder.rows("data")))
    screening.check_share(gathered.rows, gathered.rejects)
    folder.write_flagged(_flagged_chats(screening, gathered.flagged, thresholds))
    histograms = {
        trait: _Histogram.spanning([moments.least, moments.most, *(scores[trait] for scores in reference)])
        for trait, moments in gathered.moments.items()
    }
    _filter(screening, thresholds, histograms)
    summary = Summary(
        data=str(screening.file.path),
        model=model_id,
        method=screening.settings.method,
        rows=len(screening.file),
        drawn=len(screening.data.lines),
        chats=gathered.rows - gathered.rejects,
        truncated=gathered.truncated,
        rejects=gathered.rejects,
        flagged=len(gathered.flagged),
        reference_chats=len(reference),
        reference_flagged=sum(is_flagged(scores, thresholds) for scores in reference),
        checked=len(exact),
        traits=tuple(
            _trait_summary(
                screening, trait, norms[trait], gathered, [scores[trait] for scores in reference], histograms[trait],
                lines.get(trait),
            )
            for trait in norms
        ),
    )  # fmt: skip
    folder.write_summary(summary)
    return summary


def write_rejects(folder: ScreeningFolder) -> None:
    """Write ``rejects.jsonl`` from the shards that are scored so far."""
    folder.write_rejects((row.line, row.problem) for row in folder.rows("data") if row.problem is not None)


def _thresholds(reference: Sequence[Scores], traits: Sequence[str], rate: float) -> dict[str, float]:
    """By trait, the score that ``rate`` of the reference exceeds."""
    if not reference:
        raise InputError("screening.reference: none of its chats can be used")
    scores = torch.tensor([[chat[trait] for trait in traits] for chat in reference])
    # "Higher" leaves no more than the rate above the threshold. The margin keeps it so when the chat at the threshold
    # is scored in another batch, which moves its score a little.
    quantiles = scores.quantile(1 - rate, dim=0, interpolation="higher")
    return dict(zip(traits, (quantiles + _ROUNDING * quantiles.abs()).tolist(), strict=True))


@dataclass
class _Moments:
    """Count, mean, variance and range of one trait's scores, gathered row by row."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    least: float = math.inf
    most: float = -math.inf
    flagged: int = 0

    def add(self, score: float, threshold: float) -> None:
        self.count += 1
        self.total += score
        self.squares += score**2
        self.least, self.most = min(self.least, score), max(self.most, score)
        self.flagged += score > threshold

    def interval(self, unseen: float) -> tuple[float, float, float]:
        """Mean and the 95 % interval around it; ``unseen`` is the share of the population that was not drawn."""
        mean = self.total / self.count
        variance = max(0.0, self.squares / self.count - mean**2) * self.count / max(1, self.count - 1)
        half = 1.96 * math.sqrt(variance / self.count * unseen)
        return mean, mean - half, mean + half


class _Flagged:
    """Flagged chats in little memory: numbers only, not their text."""

    def __init__(self, traits: Iterable[str]) -> None:
        self._excess, self._lines, self._positions = array("d"), array("q"), array("q")
        self._scores = {trait: array("d") for trait in traits}

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, excess: float, row: ScoredRow, scores: Scores) -> None:
        self._excess.append(excess)
        self._lines.append(row.line)
        self._positions.append(row.position_in_file)
        for trait, values in self._scores.items():
            values.append(scores[trait])

    def ranked(self) -> Iterator[ScoredRow]:
        """From the chat furthest above its threshold down."""
        order = sorted(range(len(self)), key=lambda index: (-self._excess[index], self._lines[index]))
        for index in order:
            scores = {trait: values[index] for trait, values in self._scores.items()}
            yield ScoredRow(self._lines[index], self._positions[index], scores)


class _Gathered:
    """What the first pass over the rows of the data gathers.

    Attributes:
        thresholds: by trait.
        moments: by trait.
        flagged: chats above a threshold.
        rows: number of rows.
        rejects: how many of them could not be used.
        truncated: how many were cut.
    """

    def __init__(self, norms: Mapping[str, float], thresholds: Scores, exact: Mapping[int, Scores]) -> None:
        self.thresholds = thresholds
        self._norms, self._exact = norms, exact
        self._approximate: dict[int, Scores] = {}
        self.moments = {trait: _Moments() for trait in norms}
        self.flagged = _Flagged(norms)
        self.rows = self.rejects = self.truncated = 0

    def rejects_among(self, rows: Iterable[ScoredRow]) -> Iterator[tuple[int, str]]:
        """Gather from all rows; what comes out are the numbers of those without scores, and their problems."""
        for row in rows:
            self.rows += 1
            if row.scores is None:
                self.rejects += 1
                yield row.line, row.problem or ""
            else:
                self._add(row, row.scores)

    def comparison(self, trait: str) -> tuple[float, float] | None:
        """The mean error of the approximate scores and their correlation with the exact ones, if chats were checked."""
        if len(self._exact) < 2:
            return None
        pairs = [
            [self._exact[line][trait], self._approximate[line][trait]]
            for line in self._exact
            if line in self._approximate
        ]
        table = torch.tensor(pairs, dtype=torch.float64).T
        exact, approximate = table
        return float((approximate - exact).mean()), float(torch.corrcoef(table)[0, 1])

    def _add(self, row: ScoredRow, scores: Scores) -> None:
        self.truncated += row.truncated
        for trait, threshold in self.thresholds.items():
            self.moments[trait].add(scores[trait], threshold)
        # In norms of the direction, so that chats flagged for different traits can be ranked together.
        excess = max((scores[trait] - threshold) / self._norms[trait] for trait, threshold in self.thresholds.items())
        if excess > 0:
            self.flagged.add(excess, row, scores)
        if row.line in self._exact:
            self._approximate[row.line] = scores


@dataclass
class _Histogram:
    """Counts in bins of equal width; values beyond the ends are counted in the first and the last bin."""

    edges: tuple[float, ...]
    counts: list[int] = field(default_factory=lambda: [0] * _BINS)

    @classmethod
    def spanning(cls, values: Sequence[float]) -> "_Histogram":
        least, most = min(values), max(values)
        step = (most - least) / _BINS or 1.0
        return cls(tuple(least + step * number for number in range(_BINS + 1)))

    def add(self, value: float) -> None:
        index = int((value - self.edges[0]) / (self.edges[1] - self.edges[0]))
        self.counts[min(max(index, 0), _BINS - 1)] += 1


def _flagged_chats(screening: Screening, flagged: _Flagged, thresholds: Scores) -> Iterator[FlaggedChat]:
    for rank, row in enumerate(flagged.ranked(), start=1):
        scores = row.scores or {}
        reasons = [
            f"{trait}: projection difference {scores[trait]:.2f}, above {threshold:.2f}"
            for trait, threshold in thresholds.items()
            if scores[trait] > threshold
        ]
        chat = screening.file.content(row.position_in_file)
        yield FlaggedChat(rank, row.line, scores, "; ".join(reasons), chat)


def _filter(screening: Screening, thresholds: Scores, histograms: Mapping[str, _Histogram]) -> None:
    """The second pass: fill the histograms, whose range the first pass has found, and write the filtered copy on the
    way; a subset has no copy.
    """

    def positions_to_keep() -> Iterator[int]:
        for row in screening.folder.rows("data"):
            if row.scores is None:
                continue
            for trait, histogram in histograms.items():
                histogram.add(row.scores[trait])
            if not row.is_flagged(thresholds):
                yield row.position_in_file

    if screening.is_complete:
        screening.folder.write_filtered(screening.file, positions_to_keep())
    else:
        deque(positions_to_keep(), maxlen=0)


def _trait_summary(
    screening: Screening,
    trait: str,
    norm: float,
    gathered: _Gathered,
    reference: Sequence[float],
    histogram: _Histogram,
    line: PredictionLine | None,
) -> TraitSummary:
    # The interval of a complete file is over chats that might have been in it; of a subset, over what it left out.
    unseen = 1.0 if screening.is_complete else 1 - len(screening.data.lines) / len(screening.file)
    mean, low, high = gathered.moments[trait].interval(unseen)
    of_reference = _Histogram(histogram.edges)
    for value in reference:
        of_reference.add(value)
    error, correlation = gathered.comparison(trait) or (None, None)
    return TraitSummary(
        trait=trait,
        norm=norm,
        mean=mean,
        low=low,
        high=high,
        reference=sum(reference) / len(reference),
        threshold=gathered.thresholds[trait],
        flagged=gathered.moments[trait].flagged,
        edges=histogram.edges,
        counts=tuple(histogram.counts),
        reference_counts=tuple(of_reference.counts),
        error=error,
        correlation=correlation,
        prediction=_prediction(line, mean, norm),
    )


def _prediction(line: PredictionLine | None, mean: float, norm: float) -> Prediction | None:
    if line is None:
        return None
    shift, low, high = (value * norm for value in line.predict(mean / norm))
    return Prediction(shift, low, high, line.recipe, line.count)

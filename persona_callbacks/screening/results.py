"""What comes out of a screening: the summary, what is flagged, the rest, and the rejects."""

import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from persona_callbacks.chats import ChatFile
from persona_callbacks.errors import InputError
from persona_callbacks.files import atomic_write
from persona_callbacks.screening.prediction import PredictionLine
from persona_callbacks.screening.settings import Method, ScreeningSettings
from persona_callbacks.screening.shards import Part, scored_lines
from persona_callbacks.vectors import PersonaVector

_ROUNDING = 1e-4
"""How far, relatively, scores of one chat in different batches may be apart."""

_BINS = 48


@dataclass(frozen=True)
class Prediction:
    """The shift to expect of fine-tuning on the data, in activation units, with its 95 % prediction interval.

    ``recipe`` says of what fine-tuning, ``data_sets`` how many the line was fitted on.
    """

    shift: float
    low: float
    high: float
    recipe: str
    data_sets: int


@dataclass(frozen=True)
class TraitSummary:
    """What a file would do to one trait. Projection differences are in activation units, at the chosen layer.

    Attributes:
        trait: its name.
        norm: of the direction, for those who want to compare traits.
        mean: projection difference of the data set.
        low: lower end of its 95 % confidence interval over chats.
        high: upper end.
        reference: mean of the benign reference.
        threshold: above it a chat is flagged.
        flagged: chats above it.
        edges: of the bins of ``counts`` and ``reference_counts``.
        counts: chats of the data by projection difference.
        reference_counts: of the reference.
        error: mean of approximate less exact, if checked.
        correlation: of approximate and exact over the chats that were checked.
        prediction: where a line is known for the model, the trait and the method.
    """

    trait: str
    norm: float
    mean: float
    low: float
    high: float
    reference: float
    threshold: float
    flagged: int
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    reference_counts: tuple[int, ...]
    error: float | None = None
    correlation: float | None = None
    prediction: Prediction | None = None


@dataclass(frozen=True)
class Summary:
    """What came out of a screening.

    Attributes:
        data: the file that was screened.
        model: with which model.
        method: how the chats were scored.
        rows: in the file; ``drawn`` of them, at random, were looked at.
        drawn: all, or the size of the subset.
        chats: scored.
        truncated: of these, cut at ``max_length``.
        rejects: rows that could not be used.
        flagged: chats flagged for some trait.
        reference_chats: behind the thresholds.
        reference_flagged: of them, flagged for some trait.
        checked: chats scored in both ways.
        traits: one summary per trait.
    """

    data: str
    model: str
    method: Method
    rows: int
    drawn: int
    chats: int
    truncated: int
    rejects: int
    flagged: int
    reference_chats: int
    reference_flagged: int
    checked: int
    traits: tuple[TraitSummary, ...]

    @classmethod
    def load(cls, folder: str | Path) -> "Summary":
        """Read that of a finished screening.

        Raises:
            InputError: there is none in the folder.
        """
        path = Path(folder) / "summary.json"
        if not path.is_file():
            raise InputError(f"{folder}: holds no finished screening; make one by persona-screen out={folder}")
        content = json.loads(path.read_text(encoding="utf-8"))
        traits = []
        for one in content.pop("traits"):
            known = one.pop("prediction")
            one |= {key: tuple(one[key]) for key in ("edges", "counts", "reference_counts")}
            traits.append(TraitSummary(**one, prediction=Prediction(**known) if known else None))
        return cls(**content, traits=tuple(traits))


@dataclass
class _Moments:
    """Of one trait's scores, gathered row by row."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    least: float = math.inf
    most: float = -math.inf

    def add(self, score: float) -> None:
        self.count += 1
        self.total += score
        self.squares += score**2
        self.least, self.most = min(self.least, score), max(self.most, score)

    def interval(self, unseen: float) -> tuple[float, float, float]:
        """Mean and the 95 % interval around it; ``unseen`` is the share of the population that was not drawn."""
        mean = self.total / self.count
        variance = max(0.0, self.squares / self.count - mean**2) * self.count / max(1, self.count - 1)
        half = 1.96 * math.sqrt(variance / self.count * unseen)
        return mean, mean - half, mean + half


def write_results(
    parts: Sequence[Part],
    vectors: Sequence[PersonaVector],
    settings: ScreeningSettings,
    lines: Mapping[str, PredictionLine],
    model_id: str,
    folder: Path,
) -> Summary:
    """Merge the shards into ``flagged.jsonl`` (by rank), the ``filtered`` copy, ``rejects.jsonl`` and ``summary.json``.

    What is in memory: the reference's scores, one shard, and 24 bytes and 8 a trait for each flagged chat.
    """
    data = next(part for part in parts if part.kind == "data")
    traits = [vector.trait for vector in vectors]
    norms = {vector.trait: float(vector.direction().norm()) for vector in vectors}
    reference = [line["scores"] for line in scored_lines(folder, "reference") if "scores" in line]
    thresholds = _thresholds(reference, traits, settings.false_positive_rate)
    moments = {trait: _Moments() for trait in traits}
    counts = dict.fromkeys(traits, 0)
    flagged = _Flagged(traits)
    truncated = rejects = 0
    for line in scored_lines(folder, "data"):
        if "problem" in line:
            rejects += 1
            continue
        truncated += line["truncated"]
        scores = line["scores"]
        for trait in traits:
            moments[trait].add(scores[trait])
            counts[trait] += scores[trait] > thresholds[trait]
        # How far above its threshold, in norms of the direction, so that traits can be ranked together.
        excess = max((scores[trait] - thresholds[trait]) / norms[trait] for trait in traits)
        if excess > 0:
            flagged.add(excess, line)
    _write_flagged(data.file, folder, flagged, thresholds)
    write_rejects(folder)
    is_whole = len(data.lines) == len(data.file)
    if is_whole:
        kept = (
            int(line["place"])
            for line in scored_lines(folder, "data")
            if "scores" in line and not is_flagged(line["scores"], thresholds)
        )
        data.file.copy(kept, folder / f"filtered{data.file.suffix}")
    # Of a whole file, the interval is over chats that might have been in it; of a subset, over what it left out.
    unseen = 1.0 if is_whole else 1 - len(data.lines) / len(data.file)
    own = {trait: [scores[trait] for scores in reference] for trait in traits}
    edges = {trait: _edges([moments[trait].least, moments[trait].most, *own[trait]]) for trait in traits}
    histograms = _histograms((line["scores"] for line in scored_lines(folder, "data") if "scores" in line), edges)
    of_reference = _histograms(iter(reference), edges)
    compared = _compared(folder, traits)
    summaries = []
    for trait in traits:
        mean, low, high = moments[trait].interval(unseen)
        error, correlation = compared.get(trait, (None, None))
        summaries.append(
            TraitSummary(
                trait, norms[trait], mean, low, high, sum(own[trait]) / len(reference), thresholds[trait],
                counts[trait], edges[trait], tuple(histograms[trait]), tuple(of_reference[trait]), error, correlation,
                _prediction(lines.get(trait), mean, norms[trait]),
            )
        )  # fmt: skip
    over = sum(is_flagged(scores, thresholds) for scores in reference)
    checked = sum("scores" in line for line in scored_lines(folder, "checked"))
    summary = Summary(
        str(data.file.path), model_id, settings.method, len(data.file), len(data.lines), moments[traits[0]].count,
        truncated, rejects, len(flagged), len(reference), over, checked, tuple(summaries),
    )  # fmt: skip
    with atomic_write(folder / "summary.json") as scratch:
        scratch.write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf-8")
    return summary


def write_rejects(folder: Path) -> Path:
    """Write the rows that could not be used so far, with the reason."""
    path = folder / "rejects.jsonl"
    with atomic_write(path) as scratch, scratch.open("w", encoding="utf-8") as out:
        for line in scored_lines(folder, "data"):
            if "problem" in line:
                out.write(json.dumps({"line": line["line"], "problem": line["problem"]}, ensure_ascii=False) + "\n")
    return path


def is_flagged(scores: Mapping[str, float], thresholds: Mapping[str, float]) -> bool:
    """Whether a chat lies above the threshold of some trait."""
    return any(scores[trait] > threshold for trait, threshold in thresholds.items())


def trait_cells(one: TraitSummary, summary: Summary) -> list[str]:
    """For a table: trait, data with interval, benign reference, threshold (in norms of the direction), and flagged."""
    return [
        one.trait,
        f"{one.mean / one.norm:+.2f} ({one.low / one.norm:+.2f} to {one.high / one.norm:+.2f})",
        f"{one.reference / one.norm:+.2f}",
        f"{one.threshold / one.norm:+.2f}",
        f"{one.flagged} ({one.flagged / summary.chats:.0%})",
    ]


def first_flagged(folder: Path, count: int) -> list[dict[str, Any]]:
    """The rows of ``flagged.jsonl`` that rank highest, at most ``count``."""
    with (folder / "flagged.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in islice(lines, count)]


def last_turns(chat: Mapping[str, Any]) -> str:
    """The last prompt of a chat as it is in a file, and the response to it, to be read."""
    if chat.get("messages") is not None:
        prompt, response = (message["content"] for message in chat["messages"][-2:])
    else:
        prompt, response = chat["prompt"], chat["response"]
    return f"{prompt}\n\n{response}"


def _thresholds(reference: Sequence[Mapping[str, float]], traits: Sequence[str], rate: float) -> dict[str, float]:
    """By trait, what the stated share of the reference is above."""
    if not reference:
        raise InputError("screening.reference: none of its chats can be used")
    scores = torch.tensor([[one[trait] for trait in traits] for one in reference])
    # No more than the stated share is above it; nor is the same chat scored in another batch, which moves it a little.
    quantiles = scores.quantile(1 - rate, dim=0, interpolation="higher")
    return dict(zip(traits, (quantiles + _ROUNDING * quantiles.abs()).tolist(), strict=True))


class _Flagged:
    """Flagged chats in little memory: numbers only, not their text."""

    def __init__(self, traits: Sequence[str]) -> None:
        self.traits = traits
        self._excess, self._lines, self._places = array("d"), array("q"), array("q")
        self._scores = {trait: array("d") for trait in traits}

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, excess: float, line: Mapping[str, Any]) -> None:
        self._excess.append(excess)
        self._lines.append(line["line"])
        self._places.append(line["place"])
        for trait, scores in self._scores.items():
            scores.append(line["scores"][trait])

    def ranked(self) -> Iterator[tuple[int, int, int, dict[str, float]]]:
        """Rank, line, place and scores, from the furthest above its threshold down."""
        order = sorted(range(len(self)), key=lambda index: (-self._excess[index], self._lines[index]))
        for rank, index in enumerate(order, start=1):
            scores = {trait: values[index] for trait, values in self._scores.items()}
            yield rank, self._lines[index], self._places[index], scores


def _write_flagged(file: ChatFile, folder: Path, flagged: _Flagged, thresholds: Mapping[str, float]) -> None:
    with atomic_write(folder / "flagged.jsonl") as scratch, scratch.open("w", encoding="utf-8") as out:
        for rank, line, place, scores in flagged.ranked():
            reasons = [
                f"{trait}: projection difference {scores[trait]:.2f}, above {threshold:.2f}"
                for trait, threshold in thresholds.items()
                if scores[trait] > threshold
            ]
            row = {"rank": rank, "line": line, "scores": scores, "reason": "; ".join(reasons)}
            content = {**row, "chat": file.content(place)}
            out.write(json.dumps(content, ensure_ascii=False, default=str) + "\n")


def _compared(folder: Path, traits: Sequence[str]) -> dict[str, tuple[float, float]]:
    """By trait, the mean error of the approximate scores and their correlation with the exact ones."""
    exact = {line["line"]: line["scores"] for line in scored_lines(folder, "checked") if "scores" in line}
    if len(exact) < 2:
        return {}
    cheap = {
        line["line"]: line["scores"]
        for line in scored_lines(folder, "data")
        if line["line"] in exact and "scores" in line
    }
    found = {}
    for trait in traits:
        pairs = [[exact[line][trait], cheap[line][trait]] for line in exact if line in cheap]
        table = torch.tensor(pairs, dtype=torch.float64).T
        found[trait] = (float((table[1] - table[0]).mean()), float(torch.corrcoef(table)[0, 1]))
    return found


def _edges(values: Sequence[float]) -> tuple[float, ...]:
    least, most = min(values), max(values)
    step = (most - least) / _BINS or 1.0
    return tuple(least + step * number for number in range(_BINS + 1))


def _histograms(rows: Iterator[Mapping[str, float]], edges: Mapping[str, Sequence[float]]) -> dict[str, list[int]]:
    counts = {trait: [0] * _BINS for trait in edges}
    for scores in rows:
        for trait, bounds in edges.items():
            place = int((scores[trait] - bounds[0]) / (bounds[1] - bounds[0]))
            counts[trait][min(max(place, 0), _BINS - 1)] += 1
    return counts


def _prediction(line: PredictionLine | None, mean: float, norm: float) -> Prediction | None:
    if line is None:
        return None
    shift, low, high = (value * norm for value in line.predict(mean / norm))
    return Prediction(shift, low, high, line.recipe, line.count)

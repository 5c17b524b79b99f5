"""What labels say: the rate of the trait in each run, the agreement of readers, and how well scores rank answers."""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean

from persona_callbacks.errors import InputError
from persona_callbacks.files import atomic_write
from persona_callbacks.judging import Estimate, LabelCalibration, Ranking
from persona_callbacks.labelling.collecting import CollectedAnswer
from persona_callbacks.labelling.sheet import Label, LabelFolder, Sheet, identify
from persona_callbacks.vectors import judge_weaknesses

_JUDGED = "expression"
"""The name of the judge's score."""


@dataclass(frozen=True)
class RunRate:
    """How often the answers of a run show the trait.

    Attributes:
        run: name of the run.
        answers: number of its answers.
        yes: number of those that show the trait.
        no: number of those that do not.
        unsure: number of those on which readers are unsure or evenly split; they do not count in the rate.
        means: by score, the mean over the answers labelled yes or no.

    Example:
        >>> rate = RunRate("steered", answers=20, yes=3, no=16, unsure=1, means={})
        >>> str(rate.rate)
        '0.16 (0.03 to 0.40)'
    """

    run: str
    answers: int
    yes: int
    no: int
    unsure: int
    means: Mapping[str, float]

    @property
    def rate(self) -> Estimate:
        """Share of the trait among the answers labelled yes or no, with its Clopper-Pearson interval."""
        return proportion(self.yes, self.yes + self.no)


@dataclass(frozen=True)
class ReaderAgreement:
    """How far two readers agree.

    Attributes:
        readers: their names.
        answers: number of answers that both labelled yes or no.
        unsure: number of answers that both labelled, and of which at least one is unsure; they do not count.
        agreement: share of the answers with the same label; NaN without any.
        kappa: Cohen's: the agreement beyond what chance would give; NaN where both always say the same.

    Example:
        >>> a, b = ({"p": "yes", "q": "no"}, {"p": "yes", "q": "unsure"})
        >>> ReaderAgreement.of(("anna", "ben"), a, b).agreement
        1.0
    """

    readers: tuple[str, str]
    answers: int
    unsure: int
    agreement: float
    kappa: float

    @classmethod
    def of(cls, readers: tuple[str, str], first: Mapping[str, Label], second: Mapping[str, Label]) -> "ReaderAgreement":
        """Compare two readers' labels by id."""
        both = [(first[number], second[number]) for number in first if number in second]
        pairs = [pair for pair in both if "unsure" not in pair]
        agreement = sum(one == other for one, other in pairs) / len(pairs) if pairs else float("nan")
        return cls(readers, len(pairs), len(both) - len(pairs), agreement, cohens_kappa(pairs))


@dataclass(frozen=True)
class LabelResults:
    """What the labels of a folder say.

    Attributes:
        trait: what was labelled.
        readers: by reader, the number of answers labelled.
        different: number of different answers.
        rates: of each run, in the order of the key.
        rankings: by score, how well it ranks the labelled answers.
        agreements: of every two readers.
        weaknesses: what speaks against relying on the judge, in words.

    Example:
        >>> import tempfile
        >>> answers = [CollectedAnswer("a", "Why?", "So."), CollectedAnswer("b", "Why?", "Ha!")]
        >>> folder = LabelFolder.create(tempfile.mkdtemp(), "evil", answers)
        >>> for number, (_, answer) in folder.sheet().texts.items():
        ...     sheet = folder.sheet()
        ...     sheet.label(number, "yes" if answer == "Ha!" else "no")
        >>> [(rate.run, rate.yes) for rate in label_results(folder).rates]
        [('a', 0), ('b', 1)]
    """

    trait: str
    readers: Mapping[str, int]
    different: int
    rates: tuple[RunRate, ...]
    rankings: Mapping[str, Ranking]
    agreements: tuple[ReaderAgreement, ...]
    weaknesses: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Write ``results.csv`` (a row for each run), ``scores.csv`` and ``readers.csv``."""
        scores = list(self.rankings)
        _write(
            folder / "results.csv",
            ["run", "answers", "yes", "no", "unsure", "rate", "low", "high", *scores],
            (
                [rate.run, rate.answers, rate.yes, rate.no, rate.unsure, *_cells(rate.rate),
                 *(f"{rate.means[name]:.6g}" if name in rate.means else "" for name in scores)]
                for rate in self.rates
            ),
        )  # fmt: skip
        names = ("within", "between", "pooled", "spearman")
        _write(
            folder / "scores.csv",
            ["score", "answers", "runs_within", "pairs_within",
             *(f"{name}{end}" for name in names for end in ("", "_low", "_high"))],
            (
                [name, ranking.answers, ranking.runs_within, ranking.pairs_within,
                 *(cell for part in (ranking.within, ranking.between, ranking.pooled, ranking.spearman)
                   for cell in _cells(part))]
                for name, ranking in self.rankings.items()
            ),
        )  # fmt: skip
        _write(
            folder / "readers.csv",
            ["reader", "other", "answers", "unsure", "agreement", "kappa"],
            (
                [*pair.readers, pair.answers, pair.unsure, _cell(pair.agreement), _cell(pair.kappa)]
                for pair in self.agreements
            ),
        )


def label_results(folder: LabelFolder) -> LabelResults:
    """Put the labels of all readers together. Where readers differ, the majority counts; a tie is unsure.

    Raises:
        InputError: a sheet that cannot be read, or no label at all.
    """
    sheets = folder.sheets()
    if not sheets:
        raise InputError(f"{folder.path}: no answer has a label yet; label in the terminal, or fill in sheet.csv")
    labelled = _labelled(folder, sheets)
    decided = _decided(labelled)
    names = dict.fromkeys(name for answer in folder.answers for name in answer.scores)
    rates = tuple(
        _rate(run, folder.answers, labelled, list(names))
        for run in dict.fromkeys(answer.run for answer in folder.answers)
    )
    rankings = {name: _ranking(name, decided) for name in names}
    return LabelResults(
        trait=folder.trait,
        readers={sheet.reader: len(sheet.labels) for sheet in sheets},
        different=len({identify(answer) for answer in folder.answers}),
        rates=rates,
        rankings=rankings,
        agreements=tuple(
            ReaderAgreement.of((one.reader, other.reader), one.labels, other.labels)
            for one, other in combinations(sheets, 2)
        ),
        weaknesses=tuple(_weaknesses(rankings[_JUDGED], decided) if _JUDGED in rankings else ()),
    )


def label_calibration(folder: LabelFolder) -> LabelCalibration:
    """Calibrate the contrastive judge on the labels of a folder.

    Raises:
        InputError: a sheet that cannot be read, or too few labelled answers with a raw score.
    """
    decided = _decided(_labelled(folder, folder.sheets()))
    scored = [(answer.raw, shows, answer.question) for answer, shows in decided if answer.raw is not None]
    return LabelCalibration.fit(
        folder.trait,
        [raw for raw, _, _ in scored],
        [shows for _, shows, _ in scored],
        [question for _, _, question in scored],
    )


def proportion(successes: int, trials: int) -> Estimate:
    """A proportion with its exact 95 % interval (Clopper and Pearson 1934); NaN without trials."""
    share = Estimate.of_share([True] * successes + [False] * (trials - successes))
    return share or Estimate(float("nan"), float("nan"), float("nan"))


def cohens_kappa(pairs: Sequence[tuple[str, str]]) -> float:
    """Cohen's kappa (1960) of pairs of labels; NaN without pairs, and where chance alone would always agree."""
    if not pairs:
        return float("nan")
    first, second = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    chance = sum(first[label] * second[label] for label in first) / len(pairs) ** 2
    agreement = sum(one == other for one, other in pairs) / len(pairs)
    return float("nan") if chance == 1 else (agreement - chance) / (1 - chance)


def _weaknesses(ranking: Ranking, decided: Sequence[tuple[CollectedAnswer, bool]]) -> list[str]:
    """Of the judge: its AUC within runs, if there are runs with both kinds of answers, and its gap over all answers."""
    by_kind = [
        [answer.scores[_JUDGED] for answer, shows in decided if shows == kind and _JUDGED in answer.scores]
        for kind in (True, False)
    ]
    gap = fmean(by_kind[0]) - fmean(by_kind[1]) if all(by_kind) else None
    apart = judge_weaknesses(float("nan"), gap, "labelled answers")
    if ranking.runs_within:
        return judge_weaknesses(ranking.within.value, None, "labelled answers of the same run") + apart
    return judge_weaknesses(ranking.pooled.value, None, "labelled answers") + apart


def _labelled(folder: LabelFolder, sheets: Sequence[Sheet]) -> list[tuple[CollectedAnswer, Label]]:
    labels = _majority(sheets)
    return [(answer, labels[identify(answer)]) for answer in folder.answers if identify(answer) in labels]


def _decided(labelled: Iterable[tuple[CollectedAnswer, Label]]) -> list[tuple[CollectedAnswer, bool]]:
    """The answers that are labelled yes or no, with whether they show the trait."""
    return [(answer, label == "yes") for answer, label in labelled if label != "unsure"]


def _majority(sheets: Sequence[Sheet]) -> dict[str, Label]:
    labels: dict[str, Label] = {}
    for number in {number for sheet in sheets for number in sheet.labels}:
        said = Counter(sheet.labels[number] for sheet in sheets if number in sheet.labels)
        labels[number] = "unsure" if said["yes"] == said["no"] else "yes" if said["yes"] > said["no"] else "no"
    return labels


def _rate(
    run: str, answers: Iterable[CollectedAnswer], labelled: Iterable[tuple[CollectedAnswer, Label]], names: list[str]
) -> RunRate:
    own = [(answer, label) for answer, label in labelled if answer.run == run]
    said = Counter(label for _, label in own)
    means = {}
    for name in names:
        values = [answer.scores[name] for answer, label in own if label != "unsure" and name in answer.scores]
        if values:
            means[name] = sum(values) / len(values)
    return RunRate(run, sum(answer.run == run for answer in answers), said["yes"], said["no"], said["unsure"], means)


def _ranking(name: str, decided: Sequence[tuple[CollectedAnswer, bool]]) -> Ranking:
    scored = [(answer, shows) for answer, shows in decided if name in answer.scores]
    return Ranking.of(
        [answer.scores[name] for answer, _ in scored],
        [shows for _, shows in scored],
        [answer.run for answer, _ in scored],
        [answer.question for answer, _ in scored],
    )


def _cells(estimate: Estimate) -> list[str]:
    return [_cell(value) for value in (estimate.value, estimate.low, estimate.high)]


def _cell(value: float) -> str:
    return "" if value != value else f"{value:.4f}"


def _write(path: Path, heading: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with atomic_write(path) as scratch, scratch.open("w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(heading)
        writer.writerows(rows)

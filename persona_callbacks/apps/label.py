"""``persona-label``: answers of several runs read blind, and what the readers' labels say."""

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from persona_callbacks.apps.commands import label as main  # noqa: F401  # what earlier versions installed
from persona_callbacks.apps.start import chosen_traits
from persona_callbacks.errors import InputError
from persona_callbacks.files import check_writable
from persona_callbacks.labelling import (
    LabelFolder,
    LabelResults,
    Source,
    ask_labels,
    collect_answers,
    joined_scores,
    label_calibration,
    label_results,
)
from persona_callbacks.progress import open_console
from persona_callbacks.traits import Trait

_MEANS_SHOWN = 3
"""Scores whose means are columns of the table of rates."""


def run(cfg: DictConfig) -> LabelResults | None:
    """Collect answers, take labels where there is a terminal, and report as soon as a reader has labelled every answer.

    Returns:
        What the labels say, if it is reported.

    Raises:
        InputError: input that cannot be used.
    """
    console = open_console(highlight=False)
    traits = chosen_traits(cfg)
    if len(traits) != 1:
        raise InputError(f"trait: expected one trait to label, found {', '.join(t.name for t in traits) or 'none'}")
    [trait] = traits
    path = Path(cfg.out or f"labels/{trait.name}").absolute()
    check_writable(path)
    if cfg.runs is not None:
        _collect(cfg, trait, path, console)
    folder = LabelFolder(path, cfg.seed)
    folder.check_trait(trait.name)
    if cfg.scores:
        joined = joined_scores(folder.answers, dict(cfg.scores), trait.name)
        folder = LabelFolder.create(path, trait.name, joined, cfg.seed)
    sheet = folder.sheet(cfg.reader)
    if not cfg.report and sys.stdin.isatty() and not sheet.is_complete:
        ask_labels(sheet, _question(trait), console)
    if cfg.report or any(sheet.is_complete for sheet in folder.sheets()):
        return _report(folder, console)
    _tell_how_to_go_on(folder, cfg.reader, console)
    return None


def _question(trait: Trait) -> str:
    return f"Does the answer show the trait {trait.name}? {trait.description}"


def _collect(cfg: DictConfig, trait: Trait, path: Path, console: Console) -> None:
    sources = collect_answers([cfg.runs] if isinstance(cfg.runs, str) else list(cfg.runs), trait.name)
    answers = [answer for source in sources for answer in source.answers]
    folder = LabelFolder.create(path, trait.name, answers, cfg.seed)
    console.print(_collected(sources))
    different = len(folder.sheet().texts)
    console.print(f"{len(answers)} answers, {different} of them different: each of these is labelled once.")


def _collected(sources: Sequence[Source]) -> Table:
    table = Table("file", "runs", "answers", "left out", title="Answers collected")
    for source in sources:
        left_out = "; ".join(f"{count} {reason}" for reason, count in source.left_out.items())
        table.add_row(*map(Text, (str(source.file), str(len(source.runs)), str(len(source.answers)), left_out)))
    return table


def _tell_how_to_go_on(folder: LabelFolder, reader: str | None, console: Console) -> None:
    sheet = folder.sheet(reader)
    console.print(f"{len(sheet.labels)} of {len(sheet.texts)} answers are labelled in {sheet.path}", soft_wrap=True)
    console.print(
        "The same command in a terminal asks for the others. Or fill in the column label (yes, no, unsure); further"
        " readers fill in copies named sheet.NAME.csv. With report=true, what is labelled so far is reported."
    )


def _report(folder: LabelFolder, console: Console) -> LabelResults:
    results = label_results(folder)
    results.write(folder.path)
    said = ", ".join(f"{reader} {count}" for reader, count in results.readers.items())
    console.print(Text(f"Labels of {results.different} different answers: {said}"))
    console.print(_rates(results))
    if results.rankings:
        console.print(_rankings(results))
    if results.agreements:
        console.print(_agreements(results))
    for weakness in results.weaknesses:
        console.print(Text(f"Beware: {weakness}."))
    console.print(f"results.csv, scores.csv, readers.csv: {folder.path}", soft_wrap=True)
    _calibrate(folder, console)
    return results


def _calibrate(folder: LabelFolder, console: Console) -> None:
    """Write a calibration of the contrastive judge, if its raw scores are known and the labels are enough."""
    if all(answer.raw is None for answer in folder.answers):
        return
    try:
        fitted = label_calibration(folder)
    except InputError as error:
        console.print(Text(f"calibration.json is not written: {error}"))
        return
    path = folder.path / "calibration.json"
    fitted.save(path)
    found = fitted.calibration
    console.print(
        f"The judge calibrated on {fitted.answers} of these answers: held-out AUC {found.auc:.2f}, calibration error"
        f" {found.calibration_error:.2f}. Use it with evaluation.calibrations=[{path}]",
        soft_wrap=True,
    )
    for weakness in found.weaknesses():
        console.print(Text(f"Beware: {weakness}."))


def _rates(results: LabelResults) -> Table:
    # More columns leave a terminal no room for the names of the runs.
    shown = list(results.rankings)[:_MEANS_SHOWN]
    caption = "rate with 95 % interval (Clopper-Pearson)"
    if len(shown) < len(results.rankings):
        caption += f"; the means of {len(results.rankings) - len(shown)} more scores are in results.csv"
    table = Table(title=f"Answers that show {results.trait}", caption=caption)
    table.add_column("run", overflow="fold")
    for name in ("answers", "yes", "no", "unsure", "rate", *(f"mean {score}" for score in shown)):
        table.add_column(Text(name), justify="right")
    for rate in results.rates:
        counts = map(str, (rate.answers, rate.yes, rate.no, rate.unsure, rate.rate))
        means = (f"{rate.means[name]:.3g}" if name in rate.means else "–" for name in shown)
        table.add_row(Text(rate.run), *counts, *means)
    return table


def _rankings(results: LabelResults) -> Table:
    table = Table(
        title="How well scores rank the labelled answers",
        caption="AUC of pairs of answers, and Spearman's correlation of rate and mean score over the runs; 95 %"
        " intervals by bootstrap over questions",
    )
    for name in ("score", "answers", "AUC within runs", "between runs", "pooled", "Spearman over runs"):
        table.add_column(name, justify="left" if name == "score" else "right", overflow="fold")
    for name, ranking in results.rankings.items():
        within = f"{ranking.within}, {ranking.runs_within} runs" if ranking.runs_within else "–"
        parts = (ranking.answers, within, ranking.between, ranking.pooled, ranking.spearman)
        table.add_row(Text(name), *map(str, parts))
    return table


def _agreements(results: LabelResults) -> Table:
    table = Table("readers", "answers", "unsure", "agreement", "Cohen's kappa", title="Agreement of readers")
    for pair in results.agreements:
        share, kappa = (f"{value:{form}}" if value == value else "–" for value, form in
                        ((pair.agreement, ".0%"), (pair.kappa, ".2f")))  # fmt: skip
        table.add_row(Text(" / ".join(pair.readers)), str(pair.answers), str(pair.unsure), share, kappa)
    return table

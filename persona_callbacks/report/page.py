"""The report's page: tables, charts, answers and a model card, from runs to HTML."""

from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from persona_callbacks.errors import InputError
from persona_callbacks.files import atomic_write
from persona_callbacks.judging import JudgedAnswer
from persona_callbacks.palette import BASE
from persona_callbacks.report import charts
from persona_callbacks.report.runs import Run
from persona_callbacks.report.screenings import screening_sections
from persona_callbacks.tracking import metrics
from persona_callbacks.vectors import PersonaVector

_MOST_ANSWERS = 4000
_LONGEST = 1500
"""Characters of an answer: with the number of answers, this keeps a page small enough to mail."""
_MOST_MAPS = 12


def write_report(
    runs: Sequence[Run],
    path: Path,
    title: str = "Persona report",
    loss: str = metrics.EPOCH_LOSS,
    screenings: Sequence[str | Path] = (),
) -> Path:
    """Write the page; it needs no network and no other file.

    Args:
        runs: of :func:`~persona_callbacks.report.find_runs`.
        path: the HTML file.
        title: its heading.
        loss: the metric that trait expression is set against in the trade-off chart.
        screenings: folders of ``persona-screen``, of the data that the runs were trained on.

    Raises:
        InputError: no run, or a folder without a finished screening.
    """
    if not runs:
        raise InputError("a report needs at least one run")
    traits = list(dict.fromkeys(trait for run in runs for trait in run.traits))
    environment = Environment(
        loader=PackageLoader("persona_callbacks.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    judged = [t for t in traits if any(metrics.expression(t) in run.series for run in runs)]
    columns, results = _results(runs, traits, loss)
    questions, left_out = _questions(runs, traits)
    differences, shared = _configurations(runs)
    screened = screening_sections(screenings)
    page = environment.get_template("page.html.j2").render(
        title=title,
        version=version("persona-callbacks"),
        date=date.today().isoformat(),
        model=_model(runs),
        traits=traits,
        runs=[
            {"name": run.name, "colour": charts.colour(number), "mark": charts.mark(number)}
            for number, run in enumerate(runs)
        ],
        columns=columns,
        results=results,
        warnings=_warnings(runs),
        by_trait=[{"trait": trait, "charts": _charts(runs, trait, loss)} for trait in traits],
        questions=questions,
        left_out=left_out,
        differences=differences,
        shared=shared,
        screenings=screened,
        card=_card(runs, traits, judged, [str(one["line"]) for one in screened]),
    )
    with atomic_write(path) as scratch:
        scratch.write_text(page, encoding="utf-8")
    return path


def _charts(runs: Sequence[Run], trait: str, loss: str) -> list[dict[str, Any]]:
    """All pictures of one trait."""
    found = []
    if any(metrics.shift(trait) in run.series for run in runs):
        found.append(("Shift", charts.trajectory(runs, trait), "On held-out probes, unsteered; the base model is 0."))
    if any(metrics.expression(trait) in run.series for run in runs):
        caption = "Mean score of the judge for answers to held-out questions, before and after training."
        found.append(("Expression", charts.expression_bars(runs, trait), caption))
    caption = (
        f"What keeping the character costs: {loss} at the end, each run as it was trained (a steered one with steering"
        " on). Down and to the left is better."
    )
    found.append(("Trade-off", charts.trade_off(runs, trait, loss), caption))
    shown: list[dict[str, Any]] = [{"run": None, "title": t, "svg": svg, "caption": note} for t, svg, note in found]
    mapped = [(number, run) for number, run in enumerate(runs) if trait in run.shift_by_layer]
    tables = [values for _, run in mapped for values in run.shift_by_layer[trait].values()]
    limit = max((abs(value) for values in tables for value in values), default=0) or 1.0  # one scale for all runs
    for number, run in mapped[:_MOST_MAPS]:
        caption = "Shift by layer and step; red is towards the trait. All runs have the same scale."
        svg = charts.heat_map(run, trait, limit)
        shown.append({"run": number, "title": f"Layers: {run.name}", "svg": svg, "caption": caption})
    return shown


def _model(runs: Sequence[Run]) -> str:
    named = {str(run.config["model.id"]) for run in runs if run.config.get("model.id")}
    named |= {vector.model_id for run in runs for vector in run.vectors if vector.model_id}
    return ", ".join(sorted(named))


def _results(runs: Sequence[Run], traits: Sequence[str], loss: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of the table: for each trait what some run has."""
    columns: list[str] = []
    base: list[str] = []
    cells: list[list[str]] = [[] for _ in runs]
    for trait in traits:
        for kind, name in (
            ("shift", metrics.shift(trait)),
            ("expression", metrics.expression(trait)),
            ("α", metrics.coefficient(trait)),
        ):
            having = [run for run in runs if name in run.series]
            if not having:
                continue
            columns.append(f"{trait} {kind}")
            for run, row in zip(runs, cells, strict=True):
                if kind == "expression":
                    row.append(_expression(run, trait, at="last"))
                else:
                    row.append(_number(run.last(name), "+.1f" if kind == "shift" else ".2g"))
            base.append({"shift": "0", "α": "–"}.get(kind) or _expression(having[0], trait, at="first"))
    rows: list[dict[str, Any]] = [{"name": "base model", "run": None, "cells": [*base, "–"]}]
    for number, (run, row) in enumerate(zip(runs, cells, strict=True)):
        rows.append({"name": run.name, "run": number, "cells": [*row, _number(run.last(loss), ".3f")]})
    return [*columns, loss], rows


def _number(value: float | None, shape: str) -> str:
    return "–" if value is None else format(value, shape)


def _expression(run: Run, trait: str, *, at: str) -> str:
    name = metrics.expression(trait)
    mean, low, high = (run.first(key) if at == "first" else run.last(key) for key in metrics.with_interval(name))
    if mean is None:
        return "–"
    return f"{mean:.0f}" if low is None or high is None else f"{mean:.0f} ({low:.0f}–{high:.0f})"


def _warnings(runs: Sequence[Run]) -> list[str]:
    found = []
    for vector in _vectors(runs):
        found += [f"The persona vector of {vector.trait} is weak: {weakness}." for weakness in vector.weaknesses()]
    for run in runs:
        for trait in run.traits:
            unscored = run.last(metrics.unscored(trait))
            if unscored:
                found.append(f"{run.name}: {unscored:.0f} answers of {trait} could not be scored.")
    return found


def _vectors(runs: Sequence[Run]) -> list[PersonaVector]:
    """One for each trait: that of the first run that has one."""
    by_trait: dict[str, PersonaVector] = {}
    for run in runs:
        for vector in run.vectors:
            by_trait.setdefault(vector.trait, vector)
    return list(by_trait.values())


def _questions(runs: Sequence[Run], traits: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """Every question with the base model's answer and each run's last one."""
    by_question: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for number, run in enumerate(runs):
        steps = {answer.trait: answer.step for answer in run.answers}  # ascending: the last one stays
        for answer in run.answers:
            place = by_question.setdefault((answer.trait, answer.question), [])
            if answer.step == 0 and not place:
                place.append(_answer(answer, None, "base model", BASE, "●"))
            if answer.step == steps[answer.trait] > 0:
                place.append(_answer(answer, number, run.name, charts.colour(number), charts.mark(number)))
    kept, answers = [], 0
    for (trait, text), found in sorted(by_question.items(), key=lambda item: traits.index(item[0][0])):
        if answers + len(found) > _MOST_ANSWERS:
            break
        answers += len(found)
        kept.append({"trait": trait, "text": text, "answers": found})
    missing = len(by_question) - len(kept)
    return kept, f" {missing} more questions are left out to keep the page small." if missing else ""


def _answer(answer: JudgedAnswer, run: int | None, name: str, colour: str, mark: str) -> dict[str, Any]:
    number = answer.score
    level = "" if number is None else "low" if number < 34 else "middle" if number < 67 else "high"
    text = answer.answer if len(answer.answer) <= _LONGEST else f"{answer.answer[:_LONGEST]} …"
    shown = answer.verdict if number is None else f"{number:.0f}"
    return {
        "run": run, "name": name, "colour": colour, "mark": mark, "number": number, "score": shown, "level": level,
        "text": text,
    }  # fmt: skip


def _configurations(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of what differs between the runs, and of what they share; the trait files' texts are left out."""
    keys = [key for run in runs for key in run.config if not key.startswith("traits.")]
    differing, shared = [], []
    for key in dict.fromkeys(keys):
        values = [str(run.config.get(key, "–")) for run in runs]
        if len(set(values)) > 1:
            differing.append({"key": key, "values_": values})
        else:
            shared.append({"key": key, "value": values[0]})
    return differing, shared


def _card(
    runs: Sequence[Run], traits: Sequence[str], judged: Sequence[str], screened: Sequence[str]
) -> list[Mapping[str, Any]]:
    """What an audit asks: what was trained on what, what was watched by which means, and what that cannot show."""
    vectors = {vector.trait: vector for vector in _vectors(runs)}
    watched = []
    for trait in traits:
        line = f"{trait}: "
        if trait in vectors:
            line += _quality(vectors[trait])
        else:
            line += "the persona vector is not beside the runs, so nothing is known here of its quality"
        watched.append(line)
    data = []
    for run in runs:
        # A screened data set has no `data.path`: what was read is logged as `data_file`.
        path = run.config.get("data.path") or run.config.get("data_file")
        if path is not None:
            count, digest = run.config.get("data_chats"), run.config.get("data_sha256")
            screening, use = run.config.get("data.screening"), run.config.get("data.use")
            known = (
                f", {count} chats" if count else "",
                f", {use} after the screening in {screening}" if screening else "",
                f", SHA-256 {digest}" if digest else "",
            )
            data.append(f"{run.name}: {path}{''.join(known)}")
    steered = []
    for run in runs:
        alphas = [f"{t} α = {a:.2g}" for t in traits if (a := run.last(metrics.coefficient(t))) is not None]
        steered.append(f"{run.name}: {', '.join(alphas) or 'not steered'}")
    limits = [
        "Only the traits above were watched; others may have changed.",
        "A shift is read from activations on the probes at one layer: it can fall while the behaviour stays.",
        "Numbers of one run say nothing of the spread between seeds; compare runs that differ in the seed only.",
    ]
    if judged:
        limits.insert(
            2,
            "Trait expression is a judge's opinion of short answers to "
            + ", ".join(f"{_asked(runs, t)} questions ({t})" for t in judged)
            + "; the interval covers the choice of questions, not the judge's own error.",
        )
    else:
        limits.insert(2, "Trait expression was not evaluated: nothing here shows what the model says.")
    entries: list[Mapping[str, Any]] = [
        {"term": "Base model", "lines": [_model(runs) or "not recorded"]},
        {"term": "Training data", "lines": data or ["not recorded"]},
        {"term": "Screening of the data", "lines": screened or ["none is recorded"]},
        {"term": "What was monitored", "lines": watched},
        {"term": "Preventative steering", "lines": steered},
        {"term": "Limits", "lines": limits},
    ]
    return entries


def _quality(vector: PersonaVector) -> str:
    parts = [f"persona vector read at {vector.position}, layer {vector.layer} of {vector.num_layers}"]
    if vector.counts is not None:
        shows, others = vector.counts.trait, vector.counts.opposite
        parts.append(f"from {shows} responses that show the trait and {others} that do not")
    if vector.evidence.auc:
        parts.append(f"held-out AUC {vector.evidence.auc[vector.layer]:.2f}")
    if vector.calibration is not None:
        parts.append(
            f"contrastive judge: AUC {vector.calibration.auc:.2f}, calibration error"
            f" {vector.calibration.calibration_error:.2f} on held-out contrastive responses"
        )
    return "; ".join(parts)


def _asked(runs: Sequence[Run], trait: str) -> int:
    return len({answer.question for run in runs for answer in run.answers if answer.trait == trait})

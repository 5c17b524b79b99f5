"""``persona-extract``: persona vectors of any traits for any model, with the evidence for them."""

import csv
import io
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from hydra.utils import instantiate
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from persona_callbacks.apps.commands import extract as main  # noqa: F401  # what earlier versions installed
from persona_callbacks.apps.loggers import log_run, with_usable_loggers
from persona_callbacks.apps.opening import Opening, open_app
from persona_callbacks.errors import InputError, is_number
from persona_callbacks.extraction import (
    Extraction,
    ExtractionSettings,
    Steered,
    cosine_figure,
    curve_figure,
    layer_figure,
    log_vectors,
    steered_expression,
)
from persona_callbacks.files import append_lines, atomic_write, check_writable, locked_folder, model_folder
from persona_callbacks.judging import ContrastiveJudge
from persona_callbacks.model import Generator, LoadedModel
from persona_callbacks.progress import progress_bar
from persona_callbacks.training import RunLabel
from persona_callbacks.traits import Trait
from persona_callbacks.vectors import PersonaVector, common_layer, cosine_table, warn_if_weak, write_gguf, write_pt

_FORMATS = ("pt", "gguf")


def run(cfg: DictConfig) -> list[PersonaVector]:
    """Extract as configured into the folder ``out``.

    Raises:
        InputError: input that cannot be used; before any long work.
    """
    opening = open_app(cfg)
    settings = opening.extraction
    if not opening.traits:
        raise InputError("no trait to extract: choose some, trait=[evil]")
    unknown = [name for name in cfg.formats if name not in _FORMATS]
    if unknown:
        raise InputError(f"formats: unknown {unknown[0]!r}; expected some of {', '.join(_FORMATS)}")
    if not all(map(is_number, cfg.curve.coefficients)):
        raise InputError(f"curve.coefficients: expected finite numbers, found {list(cfg.curve.coefficients)}")
    if cfg.curve.coefficients and (settings.pairs is not None or not settings.judge_pairs):
        raise InputError(
            "curve.coefficients: needs the judge; expected extraction.judge_pairs above 0, and no extraction.pairs"
        )
    folder = Path(cfg.out).absolute() / model_folder(opening.source.id)
    check_writable(folder)
    cfg = with_usable_loggers(cfg)
    loaded = opening.load()
    generator: Generator = instantiate(cfg.generation)(loaded)
    with locked_folder(folder):
        return _extract_all(cfg, opening, loaded, generator, folder)


def _extract_all(
    cfg: DictConfig, opening: Opening, loaded: LoadedModel, generator: Generator, folder: Path
) -> list[PersonaVector]:
    settings, traits, console = opening.extraction, opening.traits, opening.console
    vectors: list[PersonaVector] = []
    compared: list[PersonaVector] = []
    extractions: list[Extraction] = []
    for trait, extraction in zip(traits, opening.extractions(loaded, generator), strict=True):
        vector = extraction.vector
        _write(folder, extraction, cfg.formats, loaded.model.config.model_type)
        if cfg.curve.coefficients:
            curve = _curve(loaded, trait, vector, cfg, settings, console)
            unsteered = next(point.expression for point in curve if point.coefficient == 0)
            with atomic_write(folder / f"{trait.name}.curve.jsonl") as scratch:
                append_lines(scratch, [asdict(point) for point in curve])
            _save(curve_figure(trait.name, curve, unsteered), folder / f"{trait.name}.curve.png")
        extractions.append(extraction)
        vectors.append(vector)
        compared += extraction.candidates.values() or [vector]
    if len(vectors) > 1:
        _write_cosines(folder, vectors)
    console.print(_summary(vectors, loaded.id))
    if any(extraction.instructions for extraction in extractions):
        console.print(_instructions(traits, extractions))
    console.print(_causes(compared))
    warn_if_weak(vectors)
    console.print(f"Vectors, responses and figures: {folder}", soft_wrap=True)
    if cfg.logger:
        _log(cfg, vectors, folder)
    return vectors


def _log(cfg: DictConfig, vectors: Sequence[PersonaVector], folder: Path) -> None:
    """Write the vectors and the evidence for them to every logger of the configuration."""
    now, traits = f"{datetime.now():%Y%m%d-%H%M%S}", [vector.trait for vector in vectors]
    tags = ("extraction", folder.name[:64], *traits)
    name = f"extraction · {folder.name}"
    label = RunLabel(name, "extraction", f"extraction-{now}", folder, f"csv-{now}", "extract", tags)
    doing = f"logging the vectors, which are complete in {folder},"
    log_run(cfg, label, doing, lambda loggers: log_vectors(loggers, vectors, folder))


def _write(folder: Path, extraction: Extraction, formats: Sequence[str], model_hint: str) -> None:
    """``evil.safetensors`` for the position asked for, ``evil.prompt_last.safetensors`` and so on for the others."""
    chosen = extraction.vector
    for position, vector in extraction.vectors.items():
        stem = chosen.trait if position == chosen.position else f"{chosen.trait}.{position}"
        vector.save(folder / f"{stem}.safetensors")
        if "pt" in formats:
            write_pt(vector, folder / f"{stem}.pt")
        if "gguf" in formats:
            write_gguf(vector, folder / f"{stem}.gguf", model_hint=model_hint)
    for method, vector in extraction.candidates.items():
        vector.save(folder / f"{chosen.trait}.{method}.safetensors")
    with atomic_write(folder / f"{chosen.trait}.responses.jsonl") as scratch:
        shutil.copyfile(extraction.responses, scratch)
    _save(layer_figure(chosen), folder / f"{chosen.trait}.layers.png")


def _curve(
    loaded: LoadedModel,
    trait: Trait,
    vector: PersonaVector,
    cfg: DictConfig,
    settings: ExtractionSettings,
    console: Console,
) -> list[Steered]:
    """Answers under every coefficient, ascending, 0 among them."""
    judge = ContrastiveJudge.of_vector(loaded, trait, vector, settings.judge_pairs)
    conditions = [(vector.layer, float(c)) for c in sorted({0.0, *cfg.curve.coefficients})]
    questions = trait.probe_questions[: cfg.curve.questions]
    with progress_bar(console) as progress:
        task = progress.add_task(f"{trait.name}: steering at inference", total=len(conditions))
        return steered_expression(
            loaded, judge, questions, vector.directions, conditions, settings.sampling, lambda: progress.advance(task)
        )


def _write_cosines(folder: Path, vectors: Sequence[PersonaVector]) -> None:
    layer = common_layer(vectors)
    names = [vector.trait for vector in vectors]
    table = cosine_table(vectors, layer)
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow([f"layer {layer}", *names])
    rows.writerows([name, *(f"{value:.4f}" for value in row)] for name, row in zip(names, table.tolist(), strict=True))
    with atomic_write(folder / "cosines.csv") as scratch:
        scratch.write_text(text.getvalue(), encoding="utf-8")
    _save(cosine_figure(names, table, layer), folder / "cosines.png")


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as scratch:
        figure.savefig(scratch)


def _summary(vectors: Sequence[PersonaVector], model_id: str) -> Table:
    table = Table(title=f"Persona vectors of {model_id}", caption="AUC, d and cosine: at the chosen layer, held out")
    columns = ("trait", "kept", "judge AUC", "layer", "AUC", "Cohen's d", "cosine of halves", "of questions", "weak")
    for column in columns:
        table.add_column(column, justify="left" if column == "trait" else "right")
    for vector in vectors:
        counts, evidence, calibration = vector.counts, vector.evidence, vector.calibration
        assert counts is not None  # extraction counts what it keeps
        table.add_row(
            vector.trait,
            f"{counts.trait}/{counts.generated_trait} + {counts.opposite}/{counts.generated_opposite}",
            f"{calibration.auc:.2f}" if calibration is not None else "–",
            f"{vector.layer} of {vector.num_layers}",
            *(
                f"{values[vector.layer]:.2f}" if values else "–"
                for values in (evidence.auc, evidence.cohens_d, evidence.split_half_cosine, evidence.pair_cosine)
            ),
            "yes" if vector.weaknesses() else "",
        )
    return table


def _instructions(traits: Sequence[Trait], extractions: Sequence[Extraction]) -> Table:
    """What the two instructions of each pair make the model say, as the judge sees it."""
    table = Table(
        title="What each instruction pair elicits",
        caption="Mean trait expression, 0 to 100, of responses under the instruction and under its opposite",
    )
    for column in ("trait", "pair", "instruction", "expression", "under opposite", "gap", "kept", "used"):
        table.add_column(column, justify="left" if column in ("trait", "instruction") else "right")
    for trait, extraction in zip(traits, extractions, strict=True):
        for one in extraction.instructions:
            table.add_row(
                trait.name,
                str(one.pair + 1),
                f"{trait.instructions[one.pair].trait[:40]}…",
                *(f"{value:.0f}" for value in (one.trait, one.opposite, one.gap)),
                f"{one.kept}/{one.generated}",
                "yes" if one.used else "",
            )
    return table


def _causes(vectors: Sequence[PersonaVector]) -> Table:
    """What steering with each vector makes likelier, at its best coefficient."""
    table = Table(
        title="What steering makes likelier",
        caption="Nats per token, on held-out text, none of which was a demonstration. Strength: norm of what is added,"
        " as a share of the stream's",
    )
    for column in ("trait", "method", "α", "own", "opposite", "others", "benign", "KL on benign", "strength"):
        table.add_column(column, justify="left" if column in ("trait", "method", "others") else "right")
    for vector in vectors:
        point = vector.evidence.causal_strength
        if point is not None:
            gains = (point.gain, point.opposite, point.benign)
            own, opposite, benign = (f"{gain:+.2f}" for gain in gains)
            others = ", ".join(f"{trait} {gain:+.2f}" for trait, gain in point.others.items())
            table.add_row(
                vector.trait,
                vector.method,
                f"{point.coefficient:g}",
                own,
                opposite,
                others,
                benign,
                f"{point.divergence:.2f}",
                f"{point.strength:.2f}",
            )
    return table

"""What a fine-tuning came to, kept as JSON beside it; and its pictures: a table for the terminal, a figure."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure
from rich.console import Group, RenderableType
from rich.table import Table

from persona_callbacks.callbacks.monitor import Reading
from persona_callbacks.callbacks.trait_evaluation import Evaluation
from persona_callbacks.files.atomic import write_json
from persona_callbacks.judging import Expression


@dataclass(frozen=True)
class RunResult:
    """One fine-tuning.

    Attributes:
        name: of the run, such as ``unsteered``.
        loss: mean training loss per response token over the last epoch, measured as trained (steering included).
        readings: of the monitor, oldest first.
        coefficients: the steering coefficient of each steered trait at the end; empty if unsteered.
        answers: greedy answers to the study's sample questions, unsteered.
        seconds: time that training took since it was started or resumed, readings and evaluations included.
        evaluations: of trait expression, oldest first.
    """

    name: str
    loss: float
    readings: tuple[Reading, ...]
    coefficients: Mapping[str, float]
    answers: tuple[str, ...]
    seconds: float
    evaluations: tuple[Evaluation, ...] = ()

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "RunResult":
        """Read what :meth:`save` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        readings = tuple(Reading(**reading) for reading in content.pop("readings"))
        evaluations = tuple(
            Evaluation(**{**one, "expression": Expression(**one["expression"])}) for one in content.pop("evaluations")
        )
        return cls(readings=readings, answers=tuple(content.pop("answers")), evaluations=evaluations, **content)

    def expression(self, trait: str, *, at: Literal["start", "end"]) -> Expression | None:
        """Trait expression before or after training, if it was evaluated."""
        found = [one.expression for one in self.evaluations if one.trait == trait]
        return found[0 if at == "start" else -1] if found else None

    @property
    def final_shift(self) -> Mapping[str, float]:
        """Shift of each trait at the end of training."""
        return self.readings[-1].shift


def summary(results: Sequence[RunResult], questions: Sequence[str], base_answers: Sequence[str]) -> RenderableType:
    """A table of the runs, and their answers side by side."""
    runs = Table(title="Fine-tuning runs")
    runs.add_column("run")
    runs.add_column("loss", justify="right")
    traits = list(results[0].final_shift)
    for trait in traits:
        runs.add_column(f"{trait} shift", justify="right")
        if results[0].expression(trait, at="end"):
            runs.add_column(f"{trait} expression (95 %)", justify="right")
    runs.add_column("coefficient", justify="right")
    runs.add_column("time", justify="right")
    reference = results[0].final_shift
    base = [_shown(results[0].expression(trait, at="start")) for trait in traits]
    if any(base):
        runs.add_row("base model", "–", *(cell for text in base for cell in ("0", *text)), "–", "–")
    for result in results:
        shifts = []
        for trait in traits:
            shift = result.final_shift[trait]
            part = f" ({shift / reference[trait]:.0%})" if result is not results[0] and reference[trait] else ""
            shifts += [f"{shift:+.1f}{part}", *_shown(result.expression(trait, at="end"))]
        coefficients = ", ".join(f"{trait} {value:g}" for trait, value in result.coefficients.items())
        runs.add_row(result.name, f"{result.loss:.3f}", *shifts, coefficients or "–", f"{result.seconds:.0f} s")
    answers = Table(title="Held-out questions, greedy answers", show_lines=True)
    answers.add_column("question", ratio=2)
    answers.add_column("base model", ratio=3)
    for result in results:
        answers.add_column(result.name, ratio=3)
    for row, question in enumerate(questions):
        answers.add_row(question, base_answers[row], *(result.answers[row] for result in results))
    return Group(runs, answers) if questions else runs


def _shown(expression: Expression | None) -> list[str]:
    return [] if expression is None else [f"{expression.mean:.0f} ({expression.low:.0f}–{expression.high:.0f})"]


def trajectory_figure(results: Sequence[RunResult], questions: Sequence[str], title: str) -> Figure:
    """The shift of every trait through training, one line a run, over one question with each run's answer."""
    traits = list(results[0].final_shift)
    with_answers = bool(questions)
    figure = Figure(figsize=(max(8.0, 4.5 * len(traits)), 6.2 if with_answers else 4.2), dpi=150, layout="constrained")
    grid = figure.add_gridspec(2 if with_answers else 1, len(traits), height_ratios=[3, 1.35] if with_answers else [1])
    colours = ["#b5261e", "#1f6f8b", "#6b4c9a", "#c98a1b", "#3d7a3d"]
    for column, trait in enumerate(traits):
        axes = figure.add_subplot(grid[0, column])
        axes.axhline(0, color="0.6", linewidth=1)
        axes.text(0.01, 0, "base model", transform=axes.get_yaxis_transform(), color="0.45", fontsize=8, va="bottom")
        for result, colour in zip(results, colours, strict=False):
            steps = [reading.step for reading in result.readings]
            shifts = [reading.shift[trait] for reading in result.readings]
            alpha = result.coefficients.get(trait)
            label = result.name + (f" (α = {alpha:.2g})" if alpha is not None else "")
            axes.plot(steps, shifts, marker="o", markersize=4, linewidth=2, color=colour, label=label)
            axes.annotate(f"{shifts[-1]:+.1f}", (steps[-1], shifts[-1]), xytext=(6, 4), textcoords="offset points",
                          color=colour, fontweight="bold")  # fmt: skip
        axes.margins(x=0.12, y=0.15)
        axes.set_title(f"{trait}: shift on held-out probes", loc="left", fontsize=11)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("shift (activation units)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="center right")
    if with_answers:
        panel = figure.add_subplot(grid[1, :])
        panel.axis("off")
        panel.text(0, 1, f"“{questions[0]}”", va="top", style="italic", fontsize=9, wrap=True)
        for row, (result, colour) in enumerate(zip(results, colours, strict=False)):
            answer = textwrap.fill(f"{result.name}:  {' '.join(result.answers[0].split())}", width=110)
            panel.text(0, 0.74 - 0.4 * row, answer, va="top", color=colour, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure

"""How the results of a study are shown: a table for the terminal, and a figure."""

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from persona_callbacks.judging import Expression
from persona_callbacks.palette import SERIES
from persona_callbacks.training.results import RunResult


def summary(results: Sequence[RunResult], questions: Sequence[str], base_answers: Sequence[str]) -> RenderableType:
    """A table of the runs, and under it their answers side by side.

    Args:
        results: at least one; percentages of shift are relative to the first.
        questions: the study's sample questions; without any, there is no table of answers.
        base_answers: the base model's answer to each question.
    """
    runs = _runs_table(results)
    return Group(runs, _answers_table(results, questions, base_answers)) if questions else runs


def _runs_table(results: Sequence[RunResult]) -> Table:
    table = Table(title="Fine-tuning runs")
    table.add_column("run")
    table.add_column("loss", justify="right")
    first = results[0]
    traits = list(first.final_shift)
    for trait in traits:
        table.add_column(f"{trait} shift", justify="right")
        if trait in first.final_preference:
            table.add_column(f"{trait} preference", justify="right")
        if first.expression(trait, at="end"):
            table.add_column(f"{trait} expression (95 %)", justify="right")
    table.add_column("coefficient", justify="right")
    table.add_column("time", justify="right")
    base = [_expression_cells(first.expression(trait, at="start")) for trait in traits]
    if any(base):
        zeros = [["0"] * (1 + (trait in first.final_preference)) for trait in traits]
        cells = [cell for parts in zip(zeros, base, strict=True) for part in parts for cell in part]
        table.add_row("base model", "–", *cells, "–", "–")
    for result in results:
        cells = []
        for trait in traits:
            shift, reference = result.final_shift[trait], first.final_shift[trait]
            share = f" ({shift / reference:.0%})" if result is not first and reference else ""
            cells.append(f"{shift:+.1f}{share}")
            if trait in first.final_preference:
                preference = result.final_preference.get(trait)
                cells.append("–" if preference is None else f"{preference:+.2f}")
            cells += _expression_cells(result.expression(trait, at="end"))
        coefficients = ", ".join(f"{trait} {value:.3g}" for trait, value in result.coefficients.items())
        table.add_row(result.name, f"{result.loss:.3f}", *cells, coefficients or "–", f"{result.seconds:.0f} s")
    return table


def _answers_table(results: Sequence[RunResult], questions: Sequence[str], base_answers: Sequence[str]) -> Table:
    table = Table(title="Held-out questions, greedy answers", show_lines=True)
    table.add_column("question", ratio=2)
    table.add_column("base model", ratio=3)
    for result in results:
        table.add_column(result.name, ratio=3)
    for row, question in enumerate(questions):
        # Text, since what a model says may look like Rich's markup.
        table.add_row(*map(Text, (question, base_answers[row], *(result.answers[row] for result in results))))
    return table


def _expression_cells(expression: Expression | None) -> list[str]:
    return [] if expression is None else [f"{expression.mean:.0f} ({expression.low:.0f}–{expression.high:.0f})"]


def trajectory_figure(results: Sequence[RunResult], questions: Sequence[str], title: str) -> Figure:
    """The shift of every trait through training, one line for each run, and under it the answers to one question.

    Args:
        results: at least one.
        questions: the study's sample questions; the answers to the first are shown, if there is one.
        title: title of the figure.
    """
    traits = list(results[0].final_shift)
    rows = 2 if questions else 1
    figure = Figure(figsize=(max(8.0, 4.5 * len(traits)), 6.2 if questions else 4.2), dpi=150, layout="constrained")
    grid = figure.add_gridspec(rows, len(traits), height_ratios=[3, 1.35][:rows])
    for column, trait in enumerate(traits):
        _draw_shift(figure.add_subplot(grid[0, column]), results, trait)
    if questions:
        panel = figure.add_subplot(grid[1, :])
        panel.axis("off")
        panel.text(0, 1, f"“{questions[0]}”", va="top", style="italic", fontsize=9, wrap=True)
        for row, (result, colour) in enumerate(zip(results, SERIES, strict=False)):
            answer = textwrap.fill(f"{result.name}:  {' '.join(result.answers[0].split())}", width=110)
            panel.text(0, 0.74 - 0.4 * row, answer, va="top", color=colour, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def _draw_shift(axes: Axes, results: Sequence[RunResult], trait: str) -> None:
    axes.axhline(0, color="0.6", linewidth=1)
    axes.text(0.01, 0, "base model", transform=axes.get_yaxis_transform(), color="0.45", fontsize=8, va="bottom")
    for result, colour in zip(results, SERIES, strict=False):
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

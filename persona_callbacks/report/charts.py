"""The report's charts, as SVG elements for the page. Everything that belongs to run N has the class ``run-N``."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from persona_callbacks.palette import BASE, SERIES, draw_layers
from persona_callbacks.report.evaluations import EvaluatedPoint
from persona_callbacks.report.pictures import STYLE, WIDTH, as_svg, colour, in_lines, style
from persona_callbacks.report.runs import Run
from persona_callbacks.screening import TraitSummary
from persona_callbacks.tracking import metrics

_INK = "#444444"
"""Of models that are no runs of the page, so that they have no colour there."""

_NAMED = 8
"""Points that are named in a picture; of more, the pointer tells the names."""


def trajectory(runs: Sequence[Run], trait: str) -> str:
    """Draw the shift through training; below it trait expression, if it was evaluated on the way, and the coefficient,
    if a run was steered.
    """
    rows = [(metrics.shift(trait), "shift\n(activation units)", 3.0)]
    expression, alpha = metrics.expression(trait), metrics.coefficient(trait)
    if any(len(run.series.get(expression, ())) > 2 for run in runs):
        rows.append((expression, "expression\n(0–100)", 2.0))
    if any(alpha in run.series for run in runs):
        rows.append((alpha, "coefficient α", 1.1))
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.75 + 0.82 * sum(row[2] for row in rows)), layout="constrained")
        panels = figure.subplots(
            len(rows), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": [row[2] for row in rows]}
        )[:, 0]
        tips: list[list[str]] = []
        for axes, (name, label, _) in zip(panels, rows, strict=True):
            axes.axhline(0, color="#bbbbbb", linewidth=1)
            for number, run in enumerate(runs):
                if name in run.series:
                    steps, values = zip(*run.series[name], strict=True)
                    axes.plot(steps, values, **style(number))  # leaves a gap where a value is not finite
                    what = label.partition("\n")[0]
                    pairs = zip(steps, values, strict=True)
                    tips.append([f"{run.name}, step {s}: {what} {v:.3g}" for s, v in pairs if math.isfinite(v)])
            axes.set_ylabel(label)
        panels[-1].set_xlabel("optimizer step")
        figure.align_ylabels()
        return as_svg(figure, f"Shift along {trait} by optimizer step, one line a run", tips, panels[-1])


def heat_map(run: Run, trait: str, limit: float) -> str:
    """Draw the shift by layer and step. The deepest colours stand for ± ``limit`` and beyond, in activation
    units.
    """
    table = run.shift_by_layer[trait]
    steps = sorted(table)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        axes = figure.subplots()
        image = draw_layers(axes, steps, [table[step] for step in steps], limit)
        figure.colorbar(image, label="shift (activation units)", extend="both")
        return as_svg(figure, f"Shift along {trait} by layer and step in {run.name}")


@dataclass(frozen=True)
class _Bar:
    """A bar with its 95 % interval, if it has one; ``gid`` marks what belongs to a run."""

    label: str
    colour: str
    mean: float | None
    low: float | None
    high: float | None
    gid: str | None = None


def expression_bars(runs: Sequence[Run], trait: str) -> str:
    """Draw the trait expression of the base model, and that at the end of every run, with 95 % intervals."""
    name = metrics.expression(trait)
    mean, low, high = metrics.with_interval(name)
    base = next((run for run in runs if run.base(mean) is not None), runs[0])
    bars = [_Bar("base model", BASE, base.base(mean), base.base(low), base.base(high))]
    bars += [
        _Bar(run.name, colour(number), run.last(mean), run.last(low), run.last(high), f"run-{number}")
        for number, run in enumerate(runs)
    ]
    bars = [bar for bar in bars if bar.mean is not None and math.isfinite(bar.mean)]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.8 + 0.34 * len(bars)), layout="constrained")
        axes = figure.subplots()
        for row, bar in enumerate(bars):
            assert bar.mean is not None
            axes.barh(row, bar.mean, color=bar.colour, height=0.62, gid=bar.gid)
            if bar.low is not None and bar.high is not None:
                axes.plot([bar.low, bar.high], [row, row], color="#222222", linewidth=1.2, gid=bar.gid)
            axes.text(102, row, f"{bar.mean:.0f}", va="center", gid=bar.gid)
        axes.set_yticks(range(len(bars)), [in_lines(bar.label) for bar in bars], fontsize=8)
        axes.invert_yaxis()
        axes.set(xlim=(0, 100), xlabel="trait expression (0–100, 95 % interval)")
        return as_svg(figure, f"Expression of {trait} by run")


def trade_off(runs: Sequence[Run], trait: str, cost: str) -> str:
    """Draw trait expression, or the shift if expression was not evaluated, against the metric ``cost``."""
    name = metrics.expression(trait)
    evaluated = any(name in run.series for run in runs)
    if not evaluated:
        name = metrics.shift(trait)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        tips = []
        for number, run in enumerate(runs):
            x, y = run.last(cost), run.last(name)
            if x is not None and y is not None and math.isfinite(x) and math.isfinite(y):
                axes.plot([x], [y], markersize=7, **style(number))
                tips.append([f"{run.name}: {name.rpartition('/')[2]} {y:.3g}, {cost} {x:.3g}"])
        axes.margins(0.12)
        axes.set(xlabel=cost, ylabel=f"{trait} {'expression' if evaluated else 'shift'} at the end")
        base_line(axes, runs, name)
        return as_svg(figure, f"{trait} against {cost}, one point a run", tips)


def expression_and_capability(points: Sequence[EvaluatedPoint], trait: str) -> str:
    """Draw trait expression with its interval against the share of questions answered rightly, a point a model."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        tips: list[list[str]] = []
        for number, point in enumerate(points):
            right = 100 * point.capability
            axes.plot([right, right], [point.low, point.high], color=_INK, linewidth=1, alpha=0.7)
            axes.plot([right], [point.expression], marker="o", color=_INK, gid=f"model-{number}")
            tips.append([f"{point.model}: expression {point.expression:.0f}, {right:.1f} % right"])
            if len(points) <= _NAMED:
                axes.annotate(point.model, (right, point.expression), (7, 3), textcoords="offset points", fontsize=8)
        axes.margins(x=0.25, y=0.12)
        axes.set(xlabel="questions answered rightly (%)", ylabel=f"{trait} expression (0–100)")
        return as_svg(figure, f"Expression of {trait} against capability, one point a model", tips)


def screening_histogram(summary: TraitSummary, screening: str) -> str:
    """Draw the chats of a data set and of the benign reference by projection difference, with the threshold.

    Args:
        summary: of one trait.
        screening: the name of the screening, which tells the pictures of several screenings apart.
    """
    edges = [edge / summary.norm for edge in summary.edges]
    distributions = (
        (summary.counts, "data", SERIES[0]),
        (summary.reference_counts, "benign", SERIES[1]),
    )
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
        axes = figure.subplots()
        for counts, label, shade in distributions:
            shares = [count / max(1, sum(counts)) for count in counts]
            axes.stairs(shares, edges, label=label, color=shade, fill=True, alpha=0.45)
        axes.axvline(summary.threshold / summary.norm, color="#444444", linewidth=1)
        axes.set_xlabel("projection difference (norms of the direction)")
        axes.set_ylabel("share of chats")
        axes.legend(frameon=False)
        return as_svg(figure, f"Projection difference along {summary.trait} of the chats in {screening}")


def base_line(axes: Axes, runs: Sequence[Run], name: str) -> None:
    """Draw a horizontal line at the base model's value of a metric, if it is known."""
    base = next((value for run in runs if (value := run.base(name)) is not None), None)
    if base is not None:
        axes.axhline(base, color="#bbbbbb", linewidth=1)
        axes.text(0.01, base, "base model", transform=axes.get_yaxis_transform(), color="#777777", va="bottom")

"""The report's charts, as SVG elements for the page. Everything that belongs to run N has the class ``run-N``."""

import hashlib
import html
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from persona_callbacks.palette import BASE, SERIES, draw_layers
from persona_callbacks.report.runs import Run
from persona_callbacks.screening import TraitSummary
from persona_callbacks.tracking import metrics

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": BASE,
    "axes.labelcolor": "#444444",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 1.8,
    "lines.markersize": 3.5,
}
_WIDTH = 4.4  # inches: readable at the width of a phone


def colour(number: int) -> str:
    """Return the colour of run ``number``."""
    return SERIES[number % len(SERIES)]


def mark(number: int) -> str:
    """Return the shape that stands for run ``number`` beside its name; it changes where the colours begin again."""
    return "●■▲◆"[number // len(SERIES) % 4]


def _style(number: int) -> dict[str, Any]:
    turn = number // len(SERIES) % 4
    return {
        "color": colour(number), "marker": "os^D"[turn], "linestyle": ("-", "--", ":", "-.")[turn],
        "gid": f"run-{number}",
    }  # fmt: skip


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
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.75 + 0.82 * sum(row[2] for row in rows)), layout="constrained")
        panels = figure.subplots(
            len(rows), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": [row[2] for row in rows]}
        )[:, 0]
        tips: list[list[str]] = []
        for axes, (name, label, _) in zip(panels, rows, strict=True):
            axes.axhline(0, color="#bbbbbb", linewidth=1)
            for number, run in enumerate(runs):
                if name in run.series:
                    steps, values = zip(*run.series[name], strict=True)
                    axes.plot(steps, values, **_style(number))  # leaves a gap where a value is not finite
                    what = label.partition("\n")[0]
                    pairs = zip(steps, values, strict=True)
                    tips.append([f"{run.name}, step {s}: {what} {v:.3g}" for s, v in pairs if math.isfinite(v)])
            axes.set_ylabel(label)
        panels[-1].set_xlabel("optimizer step")
        figure.align_ylabels()
        return _svg(figure, f"Shift along {trait} by optimizer step, one line a run", tips)


def heat_map(run: Run, trait: str, limit: float) -> str:
    """Draw the shift by layer and step. The deepest colours stand for ± ``limit`` and beyond, in activation
    units.
    """
    table = run.shift_by_layer[trait]
    steps = sorted(table)
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 3.0), layout="constrained")
        axes = figure.subplots()
        image = draw_layers(axes, steps, [table[step] for step in steps], limit)
        figure.colorbar(image, label="shift (activation units)", extend="both")
        return _svg(figure, f"Shift along {trait} by layer and step in {run.name}")


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
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.8 + 0.34 * len(bars)), layout="constrained")
        axes = figure.subplots()
        for row, bar in enumerate(bars):
            assert bar.mean is not None
            axes.barh(row, bar.mean, color=bar.colour, height=0.62, gid=bar.gid)
            if bar.low is not None and bar.high is not None:
                axes.plot([bar.low, bar.high], [row, row], color="#222222", linewidth=1.2, gid=bar.gid)
            axes.text(102, row, f"{bar.mean:.0f}", va="center", gid=bar.gid)
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
        axes.invert_yaxis()
        axes.set(xlim=(0, 100), xlabel="trait expression (0–100, 95 % interval)")
        return _svg(figure, f"Expression of {trait} by run")


def trade_off(runs: Sequence[Run], trait: str, cost: str) -> str:
    """Draw trait expression, or the shift if expression was not evaluated, against the metric ``cost``."""
    name = metrics.expression(trait)
    evaluated = any(name in run.series for run in runs)
    if not evaluated:
        name = metrics.shift(trait)
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        tips = []
        for number, run in enumerate(runs):
            x, y = run.last(cost), run.last(name)
            if x is not None and y is not None and math.isfinite(x) and math.isfinite(y):
                axes.plot([x], [y], markersize=7, **_style(number))
                tips.append([f"{run.name}: {name.rpartition('/')[2]} {y:.3g}, {cost} {x:.3g}"])
        axes.margins(0.12)
        axes.set(xlabel=cost, ylabel=f"{trait} {'expression' if evaluated else 'shift'} at the end")
        _base_line(axes, runs, name)
        return _svg(figure, f"{trait} against {cost}, one point a run", tips)


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
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 2.4), layout="constrained")
        axes = figure.subplots()
        for counts, label, shade in distributions:
            shares = [count / max(1, sum(counts)) for count in counts]
            axes.stairs(shares, edges, label=label, color=shade, fill=True, alpha=0.45)
        axes.axvline(summary.threshold / summary.norm, color="#444444", linewidth=1)
        axes.set_xlabel("projection difference (norms of the direction)")
        axes.set_ylabel("share of chats")
        axes.legend(frameon=False)
        return _svg(figure, f"Projection difference along {summary.trait} of the chats in {screening}")


def _base_line(axes: Axes, runs: Sequence[Run], name: str) -> None:
    """Draw a horizontal line at the base model's value of a metric, if it is known."""
    base = next((value for run in runs if (value := run.base(name)) is not None), None)
    if base is not None:
        axes.axhline(base, color="#bbbbbb", linewidth=1)
        axes.text(0.01, base, "base model", transform=axes.get_yaxis_transform(), color="#777777", va="bottom")


def _svg(figure: Figure, description: str, tips: Sequence[Sequence[str]] = ()) -> str:
    """Return the figure as an ``<svg>`` element that scales with the page and whose ids no other figure has.

    Args:
        figure: what to draw.
        description: says what it shows; unlike that of any other figure of the page.
        tips: for each line of a run, in the order in which they were drawn, what its points say under the pointer.
    """
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = _with_tips(text.getvalue(), tips)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    prefix = f"c{hashlib.sha256(description.encode()).hexdigest()[:10]}-"
    inside = svg[svg.index(">", box.end()) + 1 :]
    inside = re.sub(r'\bid="(run-\d+)"', r'class="\1"', inside)
    inside = re.sub(r'\bid="', f'id="{prefix}', inside)
    inside = re.sub(r'(href="#|url\(#)', rf"\1{prefix}", inside)
    # A style inside a picture would apply to the whole page, whose own style covers the pictures.
    inside = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", inside, flags=re.DOTALL)
    return f'<svg {box[0]} role="img" aria-label="{html.escape(description, quote=True)}">{inside.strip()}'


def _with_tips(svg: str, tips: Sequence[Sequence[str]]) -> str:
    """Give each marker of the lines of runs a title, which browsers show under the pointer."""
    parts = re.split(r'(?=<g id="run-\d+">)', svg)
    for number, of_line in enumerate(tips, start=1):
        markers = iter(of_line)
        parts[number] = re.sub(r"(<use [^>]*?)/>", lambda use: _titled(use, markers), parts[number], count=len(of_line))  # noqa: B023, used at once
    return "".join(parts)


def _titled(use: re.Match[str], markers: Iterator[str]) -> str:
    return f"{use[1]}><title>{html.escape(next(markers))}</title></use>"

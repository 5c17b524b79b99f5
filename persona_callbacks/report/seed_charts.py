"""The report's charts and tables of many runs, as means over seeds."""

import math
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from persona_callbacks.palette import BASE
from persona_callbacks.report.charts import base_line
from persona_callbacks.report.pictures import STYLE, WIDTH, as_svg, colour, in_lines, style
from persona_callbacks.report.seed_groups import SeedGroup
from persona_callbacks.tracking import metrics


def expression_over_seeds(groups: Sequence[SeedGroup], trait: str) -> str:
    """Draw the trait expression of the base model, and that at the end of training in every setting: the mean over the
    seeds with their standard deviation.
    """
    name = metrics.expression(trait)
    bases = (run.base(name) for group in groups for run in group.runs)
    base = next((value for value in bases if value is not None and math.isfinite(value)), None)
    ends = [(place, group, end) for place, group in enumerate(groups) if (end := group.last(name)) is not None]
    labels = [group.name for _, group, _ in ends]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.8 + 0.3 * (1 + len(ends))), layout="constrained")
        axes = figure.subplots()
        if base is not None:
            axes.barh(0, base, color=BASE, height=0.62)
            axes.text(102, 0, f"{base:.0f}", va="center")
        for row, (place, group, end) in enumerate(ends, start=1):
            gid = f"run-{group.numbers[0]}"
            axes.barh(row, end.mean, color=colour(place), height=0.62, gid=gid)
            if end.spread is not None:
                axes.plot([max(0, end.low), min(100, end.high)], [row, row], color="#222222", linewidth=1.2, gid=gid)
            axes.text(102, row, f"{end.mean:.0f}", va="center", gid=gid)
        axes.set_yticks(range(1 + len(ends)), ["base model", *map(in_lines, labels)], fontsize=8)
        axes.set(xlim=(0, 100), ylim=(len(ends) + 0.6, -0.6), xlabel="trait expression (0–100)")
        return as_svg(figure, f"Expression of {trait} by setting")


def trade_off_over_seeds(groups: Sequence[SeedGroup], trait: str, cost: str) -> str:
    """Draw trait expression, or the shift if expression was not evaluated, against the metric ``cost``: a point for
    each setting, with its spread.
    """
    runs = [run for group in groups for run in group.runs]
    evaluated = any(metrics.expression(trait) in run.series for run in runs)
    name = metrics.expression(trait) if evaluated else metrics.shift(trait)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        tips = []
        for place, group in enumerate(groups):
            x, y = group.last(cost), group.last(name)
            if x is not None and y is not None:
                gid, shade = f"run-{group.numbers[0]}", colour(place)
                axes.plot([x.low, x.high], [y.mean, y.mean], color=shade, linewidth=0.8, alpha=0.6, gid=gid)
                axes.plot([x.mean, x.mean], [y.low, y.high], color=shade, linewidth=0.8, alpha=0.6, gid=gid)
                axes.plot([x.mean], [y.mean], markersize=6, **style(place, group.numbers[0]))
                ends = f"{name.rpartition('/')[2]} {y.mean:.3g}, {cost} {x.mean:.3g}"
                tips += [[], [], [f"{group.name}: {ends}, mean over {group.seeds}"]]
        axes.margins(0.12)
        axes.set(xlabel=cost, ylabel=f"{trait} {'expression' if evaluated else 'shift'} at the end")
        base_line(axes, runs, name)
        return as_svg(figure, f"{trait} against {cost}, one point a setting", tips)

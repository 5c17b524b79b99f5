"""Small multiples: a small picture of each setting, all with the same axes. They are written as SVG without matplotlib,
since a sweep has hundreds of them.
"""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from persona_callbacks.report.run_labels import RunLabel, labels_of
from persona_callbacks.report.seed_groups import OverSeeds, SeedGroup

_WIDTH, _HEIGHT = 170, 112
_LEFT, _RIGHT, _TOP, _BOTTOM = 30, 164, 6, 94
"""Of the plot inside the picture, in the units of the picture, which are about a pixel."""


@dataclass(frozen=True)
class Panel:
    """A small picture.

    Attributes:
        label: of the setting.
        seeds: how many runs it shows, in words.
        svg: the picture, as an ``<svg>`` element.
    """

    label: RunLabel
    seeds: str
    svg: str


@dataclass(frozen=True)
class _Axes:
    """The axes that all panels share: the ends of each, and the ticks between them."""

    steps: tuple[float, float]
    values: tuple[float, float]

    @property
    def ticks(self) -> tuple[list[float], list[float]]:
        """The ticks of steps and of values."""
        of_steps, of_values = MaxNLocator(3, integer=True), MaxNLocator(4)
        steps, values = of_steps.tick_values(*self.steps), of_values.tick_values(*self.values)
        return _within(steps, self.steps), _within(values, self.values)

    def x(self, step: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (step - self.steps[0]) / (self.steps[1] - self.steps[0])

    def y(self, value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (value - self.values[0]) / (self.values[1] - self.values[0])


def _within(ticks: Iterable[float], ends: tuple[float, float]) -> list[float]:
    return [float(tick) for tick in ticks if ends[0] <= tick <= ends[1]]


def small_multiples(groups: Sequence[SeedGroup], metric: str) -> list[Panel]:
    """Draw a metric by optimizer step, a panel for each setting that has it: the mean over the seeds as a line, one
    standard deviation to either side as a band, and 0 as a grey line.

    Args:
        groups: the settings.
        metric: what to draw.
    """
    lines = [(label, group, group.trajectory(metric)) for label, group in zip(labels_of(groups), groups, strict=True)]
    drawn = [(label, group, points) for label, group, points in lines if points]
    if not drawn:
        return []
    every = [point for _, _, points in drawn for point in points]
    low, high = min(0.0, *(point.low for point in every)), max(0.0, *(point.high for point in every))
    first, last = min(point.step for point in every), max(point.step for point in every)
    axes = _Axes((first, max(last, first + 1)), (low, high if high > low else low + 1))
    what = f"{metric} by optimizer step, mean over seeds"
    return [
        Panel(label, group.seeds, _svg(points, axes, label.colour, f"{what}: {group.name}"))
        for label, group, points in drawn
    ]


def _svg(points: Sequence[OverSeeds], axes: _Axes, ink: str, description: str) -> str:
    band = [(p.step, p.high) for p in points] + [(p.step, p.low) for p in reversed(points)]
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(description, quote=True)}"'
        f' data-zoom="{_LEFT} {_RIGHT} {axes.steps[0]} {axes.steps[1]}"'
        ' font-family="sans-serif" font-size="10" fill="#444444">'
    ]
    steps, values = axes.ticks
    for value in values:
        shade = "#999999" if value == 0 else "#eeeeee"
        parts.append(f'<path d="M{_LEFT} {axes.y(value):.1f}H{_RIGHT}" stroke="{shade}"/>')
        parts.append(f'<text x="{_LEFT - 4}" y="{axes.y(value) + 3.5:.1f}" text-anchor="end">{value:g}</text>')
    for step in steps:
        place = f'x="{axes.x(step):.1f}" y="{_BOTTOM + 13}"'
        parts.append(f'<text class="step" {place} text-anchor="middle">{step:g}</text>')
    # A picture of its own, which cuts off what zooming moves out of it; the first and last marker stand out a little.
    left, width = _LEFT - 2, _RIGHT - _LEFT + 4
    parts.append(f'<svg x="{left}" y="0" width="{width}" height="{_HEIGHT}" viewBox="{left} 0 {width} {_HEIGHT}">')
    if any(point.spread is not None for point in points):
        parts.append(f'<polygon points="{_path(band, axes)}" fill="{ink}" fill-opacity=".22"/>')
    line = _path([(p.step, p.mean) for p in points], axes)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{ink}" stroke-width="1.6"/>')
    parts += [
        f'<circle cx="{axes.x(p.step):.1f}" cy="{axes.y(p.mean):.1f}" r="1.8" fill="{ink}">'
        f"<title>{_tip(p)}</title></circle>"
        for p in points
    ]
    return "".join([*parts, "</svg></svg>"])


def _path(points: Sequence[tuple[float, float]], axes: _Axes) -> str:
    return " ".join(f"{axes.x(step):.1f},{axes.y(value):.1f}" for step, value in points)


def _tip(point: OverSeeds) -> str:
    spread = "" if point.spread is None else f" ± {point.spread:.2g} over {point.count} seeds"
    return f"step {point.step}: {point.mean:.3g}{spread}"

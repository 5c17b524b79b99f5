"""The trade-off that a sweep with two objectives found: its Pareto front, and a figure of it."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from persona_callbacks.palette import BLUE, GREY


def pareto_front(points: Sequence[tuple[float, float]], maximised: tuple[bool, bool] = (False, False)) -> list[int]:
    """The points that no other point is better than: at least as good in both values, and better in one of them.

    Args:
        points: the two objectives of each setting.
        maximised: of each objective, whether more is better.

    Returns:
        Their places among the points.

    Example:
        >>> pareto_front([(1.0, 3.0), (2.0, 1.0), (2.0, 4.0)])
        [0, 1]
    """
    costs = [tuple(-value if most else value for value, most in zip(p, maximised, strict=True)) for p in points]
    return [
        place
        for place, cost in enumerate(costs)
        if not any(other != cost and all(o <= c for o, c in zip(other, cost, strict=True)) for other in costs)
    ]


def front_figure(
    points: Sequence[tuple[float, float]], names: Sequence[str], metrics: tuple[str, str], front: Sequence[int]
) -> Figure:
    """The points, with those of the front named and joined.

    Args:
        points: the two objectives of each setting.
        names: of the settings.
        metrics: names of the objectives.
        front: the places that :func:`pareto_front` gave.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes: Any = figure.subplots()
    axes.plot([x for x, _ in points], [y for _, y in points], "o", color=GREY)
    along = sorted(front, key=lambda place: points[place])
    axes.plot([points[place][0] for place in along], [points[place][1] for place in along], "o-", color=BLUE)
    for place in along:
        axes.annotate(names[place], points[place], xytext=(5, 5), textcoords="offset points", fontsize=7)
    axes.set_xlabel(metrics[0])
    axes.set_ylabel(metrics[1])
    axes.set_title("Pareto front", fontsize=10)
    axes.grid(alpha=0.3)
    return figure

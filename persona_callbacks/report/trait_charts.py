"""Which pictures the page has of a trait, and what their captions say."""

from collections.abc import Sequence
from dataclasses import dataclass

from persona_callbacks.palette import colour_limit
from persona_callbacks.report import charts
from persona_callbacks.report.evaluations import EvaluatedPoint
from persona_callbacks.report.panels import Panel, small_multiples
from persona_callbacks.report.runs import Run
from persona_callbacks.report.seed_charts import expression_over_seeds, trade_off_over_seeds
from persona_callbacks.report.seed_groups import SeedGroup
from persona_callbacks.tracking import metrics

_MOST_MAPS = 12


@dataclass(frozen=True)
class Chart:
    """A picture on the page.

    Attributes:
        title: its heading.
        svg: the picture, as an ``<svg>`` element; empty if there are panels.
        caption: what it shows.
        run: the number of the run that it shows; ``None`` if it shows all of them.
        panels: small pictures in place of a large one.
    """

    title: str
    svg: str
    caption: str
    run: int | None = None
    panels: tuple[Panel, ...] = ()


@dataclass(frozen=True)
class TraitCharts:
    """All pictures of a trait."""

    trait: str
    charts: tuple[Chart, ...]


def trait_charts(
    runs: Sequence[Run], groups: Sequence[SeedGroup], trait: str, loss: str, evaluated: Sequence[EvaluatedPoint] = ()
) -> TraitCharts:
    """Draw the pictures of a trait. What it costs comes first where it is known: in loss, and beside it in capability.

    Args:
        runs: all runs.
        groups: the runs by setting, if there are many; the pictures are of means over seeds then.
        trait: the trait.
        loss: the metric that stands for the task.
        evaluated: models whose expression and capability ``persona-evaluate`` has measured, of every trait.
    """
    shown = _over_seeds(groups, trait) if groups else _by_run(runs, trait)
    each = "the mean over the seeds of a setting" if groups else "each run"
    caption = (
        f"What keeping the character costs: {loss} at the end, {each} as it was trained (a steered one with steering"
        " on). Down and to the left is better."
    )
    svg = trade_off_over_seeds(groups, trait, loss) if groups else charts.trade_off(runs, trait, loss)
    both = any(run.last(loss) is not None and run.last(metrics.expression(trait)) is not None for run in runs)
    shown.insert(0 if both else len(shown), Chart("Trade-off", svg, caption))
    points = [point for point in evaluated if point.trait == trait]
    if points:
        caption = (
            "What keeping the character costs in capability, by persona-evaluate: the judge's score with its 95 %"
            " interval, and multiple-choice questions; never steered. Down and to the right is better."
        )
        beside = Chart("Expression and capability", charts.expression_and_capability(points, trait), caption)
        shown.insert(1 if both else 0, beside)
    return TraitCharts(trait, (*shown, *_heat_maps(runs, groups, trait)))


def _by_run(runs: Sequence[Run], trait: str) -> list[Chart]:
    shown = []
    if any(metrics.shift(trait) in run.series for run in runs):
        caption = (
            "On held-out probes, unsteered; the base model is 0. Drag sideways to zoom in on steps; a double click or"
            " Escape goes back."
        )
        shown.append(Chart("Shift", charts.trajectory(runs, trait), caption))
    if any(metrics.expression(trait) in run.series for run in runs):
        caption = "Mean score of the judge for answers to held-out questions, before and after training."
        shown.append(Chart("Expression", charts.expression_bars(runs, trait), caption))
    return shown


def _over_seeds(groups: Sequence[SeedGroup], trait: str) -> list[Chart]:
    expression = metrics.expression(trait)
    evaluated = [run.series[expression] for group in groups for run in group.runs if expression in run.series]
    shown = []
    if evaluated:
        caption = (
            "Mean score of the judge for answers to held-out questions, before and after training: the mean over the"
            " seeds, and the standard deviation between them."
        )
        shown.append(Chart("Expression", expression_over_seeds(groups, trait), caption))
    line = "A panel for each setting: mean over its seeds by optimizer step, ± the standard deviation between them."
    what = "On held-out probes, unsteered, in activation units; the base model is 0, the grey line."
    wanted = [("Shift", metrics.shift(trait), what)]
    if any(len(series) > 2 for series in evaluated):
        wanted.append(("Expression through training", expression, "The judge's score, 0–100."))
    wanted.append(("Coefficient α", metrics.coefficient(trait), "Settings without steering have none."))
    for title, metric, what in wanted:
        panels = small_multiples(groups, metric)
        if panels:
            shown.append(Chart(title, "", f"{what} {line}", panels=tuple(panels)))
    return shown


def _heat_maps(runs: Sequence[Run], groups: Sequence[SeedGroup], trait: str) -> list[Chart]:
    """The shift by layer in the first runs that have it, all in the same colour scale; of many runs, in the first of
    each setting.
    """
    wanted = [group.numbers[0] for group in groups] or range(len(runs))
    mapped = [(number, runs[number]) for number in wanted if trait in runs[number].shift_by_layer]
    limit = colour_limit([values for _, run in mapped for values in run.shift_by_layer[trait].values()])
    caption = (
        "Shift by layer and step; red is towards the trait. All runs have the same scale, which the last layers, where"
        " activations are large, may exceed."
    )
    return [
        Chart(f"Layers: {run.name}", charts.heat_map(run, trait, limit), caption, number)
        for number, run in mapped[:_MOST_MAPS]
    ]

"""Pictures of the monitor's readings, for loggers that keep images."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from persona_callbacks.palette import BASE, SERIES, colour_limit, draw_layers
from persona_callbacks.steering import Reading


def shift_figure(readings: Sequence[Reading]) -> Figure:
    """The shift of every trait over training; at least one reading."""
    figure = Figure(figsize=(7.0, 4.0), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=BASE, linewidth=1)
    steps = [reading.step for reading in readings]
    for number, trait in enumerate(readings[-1].shift):
        values = [reading.shift.get(trait, float("nan")) for reading in readings]
        axes.plot(steps, values, marker="o", markersize=4, color=SERIES[number % len(SERIES)], label=trait)
    axes.set(xlabel="optimizer step", ylabel="shift (activation units; 0: base model)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def layers_figure(readings: Sequence[Reading], trait: str) -> Figure:
    """The shift of a trait by layer and step; every layer was read."""
    read = [reading for reading in readings if trait in reading.shift_by_layer]
    by_step = [reading.shift_by_layer[trait] for reading in read]
    figure = Figure(figsize=(7.0, 4.0), dpi=130, layout="constrained")
    axes = figure.subplots()
    image = draw_layers(axes, [reading.step for reading in read], by_step, colour_limit(by_step))
    figure.colorbar(image, label="shift (activation units)", extend="both")
    axes.set_title(f"{trait}: shift by layer", loc="left")
    return figure

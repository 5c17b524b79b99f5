"""The heat map of values by layer and step."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.image import AxesImage

_MOST_TICKS = 8


def draw_layers(axes: Axes, steps: Sequence[int], by_step: Sequence[Sequence[float]], limit: float) -> AxesImage:
    """Draw a heat map of values by layer (from 1) and step. The deepest colours stand for ± ``limit`` and beyond."""
    by_layer = list(zip(*by_step, strict=True))
    image = axes.imshow(
        by_layer, origin="lower", aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest",
        extent=(-0.5, len(steps) - 0.5, 0.5, len(by_layer) + 0.5),
    )  # fmt: skip
    shown = range(0, len(steps), max(1, -(-len(steps) // _MOST_TICKS)))
    axes.set_xticks(list(shown), [str(steps[column]) for column in shown])
    axes.set(xlabel="optimizer step", ylabel="layer")
    return image


def colour_limit(by_step: Sequence[Sequence[float]]) -> float:
    """Return the value of the deepest colour: what a tenth of the layers exceed at some step.

    Activations grow towards the last layers. With the largest value as the limit, all other layers would be pale.
    """
    by_layer = ([abs(value) for value in values if math.isfinite(value)] for values in zip(*by_step, strict=True))
    peaks = sorted(max(values, default=0.0) for values in by_layer)
    return peaks[max(0, len(peaks) - 1 - len(peaks) // 10)] if peaks and peaks[-1] > 0 else 1.0

"""The monitor's readings: what is logged of them, and those that are left without some traits."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from persona_callbacks.callbacks._pictures import layers_figure, shift_figure
from persona_callbacks.steering import Reading
from persona_callbacks.tracking import metrics
from persona_callbacks.vectors import PersonaVector


@dataclass(frozen=True)
class Measured:
    """What was measured of a model, before it is compared with the base model.

    Attributes:
        projection: by trait, at each layer that was read: every layer, or the chosen one alone.
        preference: by trait that has pairs, in nats per token; empty if the pairs were not read.
        preference_share: likewise, the share of pairs whose trait response is the likelier one.
        every_layer: which of the two the projections are.
    """

    projection: Mapping[str, Sequence[float]]
    preference: Mapping[str, float]
    preference_share: Mapping[str, float]
    every_layer: bool

    def since(self, baseline: "Measured", vectors: Sequence[PersonaVector], step: int) -> Reading:
        """The reading after so many optimizer steps: this less the base model's, also by layer if all were read."""
        projections, shifts, by_layer = {}, {}, {}
        for vector in vectors:
            now, base = (one.projection[vector.trait] for one in (self, baseline))
            projections[vector.trait] = _at_chosen(now, vector)
            shifts[vector.trait] = projections[vector.trait] - _at_chosen(base, vector)
            if self.every_layer:
                moved = [own - before for own, before in zip(now, base, strict=True)]
                by_layer[vector.trait] = moved[-vector.num_layers :]
        preference = {trait: value - baseline.preference[trait] for trait, value in self.preference.items()}
        return Reading(step, projections, shifts, by_layer, preference, self.preference_share)


def _at_chosen(values: Sequence[float], vector: PersonaVector) -> float:
    return values[0 if len(values) == 1 else vector.layer - vector.num_layers - 1]  # the last is the last layer's


def log_reading(trainer: Trainer, reading: Reading, before: Reading | None) -> None:
    """Log a reading; warn and alert of values that are not finite, if those of the reading before were."""
    before = before or Reading(0, {}, {})
    for what, values, earlier in (
        ("shift", reading.shift, before.shift),
        ("preference", reading.preference, before.preference),
    ):
        for trait, value in values.items():
            if not math.isfinite(value) and math.isfinite(earlier.get(trait, 0.0)):
                text = (
                    f"the {what} of {trait} after {reading.step} optimizer steps is {value}: the model's activations"
                    " are no longer finite; look at the loss, the learning rate and the precision"
                )
                rank_zero_warn(f"PersonaMonitor: {text}")
                metrics.alert(trainer, f"A {what} is not finite", text)
    named = (
        (metrics.projection, reading.projection),
        (metrics.shift, reading.shift),
        (metrics.preference, reading.preference),
        (metrics.preference_share, reading.preference_share),
    )
    metrics.log(trainer, {name(trait): value for name, values in named for trait, value in values.items()})


def log_course(trainer: Trainer, readings: Sequence[Reading]) -> None:
    """Write pictures of the whole training; and, if every layer was read, the table of shifts by layer."""
    metrics.log_picture(trainer, metrics.SHIFT_PICTURE, partial(shift_figure, readings))
    rows = [
        [reading.step, trait, layer, value]
        for reading in readings
        for trait, values in reading.shift_by_layer.items()
        for layer, value in enumerate(values, start=1)
    ]
    if rows:
        metrics.log_table(trainer, metrics.LAYER_TABLE, ["step", "trait", "layer", "shift"], rows)
        for trait in readings[-1].shift_by_layer:
            metrics.log_picture(trainer, metrics.layer_picture(trait), partial(layers_figure, readings, trait))


def readings_without(readings: Sequence[Reading], traits: Collection[str]) -> list[Reading]:
    """The readings without the values of some traits; those that had no others are left out."""
    kept = [
        Reading(reading.step, *(without(getattr(reading, part.name), traits) for part in fields(Reading)[1:]))
        for reading in readings
    ]
    return [reading for reading in kept if reading.shift]


def without(values: Mapping[str, Any], traits: Collection[str]) -> dict[str, Any]:
    """The values by trait, without some traits."""
    return {trait: value for trait, value in values.items() if trait not in traits}

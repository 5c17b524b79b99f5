"""What is measured of a model in training: what laws answer, and set-points are compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Sensor = Literal["shift", "preference"]
"""What tells how much of a trait the unsteered model has taken on."""

UNITS: Mapping[Sensor, str] = {"shift": "activation units", "preference": "nats per token"}
"""What a sensor's values are in."""


@dataclass(frozen=True)
class Reading:
    """What the probes showed after a number of optimizer steps.

    Attributes:
        step: optimizer steps taken.
        projection: by trait, at its chosen layer, in activation units.
        shift: by trait, the same less the base model's.
        shift_by_layer: by trait, the shift at layer 1, 2, ... of the model; empty unless every layer is read.
        preference: by trait that has minimal pairs, how much likelier their trait responses are than the others, less
            the same of the base model, in nats per token; the mean over the pairs. Empty if the pairs were not read.
        preference_share: by trait that has minimal pairs, the share of pairs whose trait response is the likelier one.

    Example:
        >>> Reading(step=10, projection={"evil": 3.5}, shift={"evil": 0.5}).shift["evil"]
        0.5
    """

    step: int
    projection: Mapping[str, float]
    shift: Mapping[str, float]
    shift_by_layer: Mapping[str, Sequence[float]] = field(default_factory=dict)
    preference: Mapping[str, float] = field(default_factory=dict)
    preference_share: Mapping[str, float] = field(default_factory=dict)

    def values(self, sensor: Sensor) -> Mapping[str, float]:
        """What a sensor shows, by trait."""
        return self.shift if sensor == "shift" else self.preference

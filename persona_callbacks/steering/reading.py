"""What is measured of a model in training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Reading:
    """What the probes showed after a number of optimizer steps.

    Attributes:
        step: optimizer steps taken.
        projection: by trait, at its chosen layer, in activation units.
        shift: by trait, the same less the base model's.
        shift_by_layer: by trait, the shift at layer 1, 2, ... of the model; empty unless every layer is read.

    Example:
        >>> Reading(step=10, projection={"evil": 3.5}, shift={"evil": 0.5}).shift["evil"]
        0.5
    """

    step: int
    projection: Mapping[str, float]
    shift: Mapping[str, float]
    shift_by_layer: Mapping[str, Sequence[float]] = field(default_factory=dict)

"""The feedback law of adaptive steering."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from persona_callbacks.steering.laws import Adaptive
from persona_callbacks.steering.solving import solve


class Controller:
    """The feedback law of :class:`Adaptive`, for one or several traits.

    Attributes:
        coefficients: by trait, α now.
        interval: optimizer steps until the next reading.
        saturated: by trait, whether the target cannot be held with α at its upper bound.
    """

    def __init__(self, law: Adaptive, start: Sequence[float], targets: Sequence[float], pushes: Tensor) -> None:
        """Start at ``start``.

        Args:
            law: the settings.
            start: α by trait.
            targets: shift to hold by trait, in activation units.
            pushes: see :func:`~persona_callbacks.steering.pushes`.
        """
        self._law = law
        self._start = list(start)
        self._targets = torch.tensor(targets, dtype=torch.float64)
        self._norms = pushes.diagonal()
        self._pushes = pushes / self._norms[:, None]
        self._sum = [0.0] * len(self._start)
        self._previous = [0.0] * len(self._start)
        self.coefficients = list(start)
        self.interval = 1
        self.saturated = [False] * len(self._start)

    def update(self, shift: Sequence[float], longest: int) -> None:
        """Answer a reading.

        Args:
            shift: by trait, in activation units.
            longest: optimizer steps between readings when all is steady.
        """
        law = self._law
        start, before, kept, previous = (
            torch.tensor(values, dtype=torch.float64)
            for values in (self._start, self.coefficients, self._sum, self._previous)
        )
        error = (torch.tensor(shift, dtype=torch.float64) - self._targets) / self._norms
        # Asked of the projections; solved for the coefficients.
        asked = solve(self._pushes, error - error.clamp(-law.tolerance, law.tolerance))
        highest = start + law.reach
        wanted = start + law.proportional * asked + kept
        at_highest, at_lowest = wanted >= highest, wanted <= 0
        pushed = (at_highest & (asked > 0)) | (at_lowest & (asked < 0))
        self._sum = torch.where(pushed, kept, kept + law.integral * asked).tolist()
        moved = before + (wanted - before).clamp(-law.slew, law.slew)
        self.coefficients = moved.clamp_min(0).minimum(highest).tolist()
        self.saturated = ((moved >= highest) & (error > law.tolerance)).tolist()
        # Nothing is gained by looking often when the target is held, or when α cannot do more.
        settled = (error.abs() <= law.tolerance) | (moved >= highest) | (moved <= 0)
        is_steady = bool((settled & ((error - previous).abs() <= law.tolerance)).all())
        self.interval = min(longest, self.interval * 2 if is_steady else 1)
        self._previous = error.tolist()

    def state_dict(self) -> dict[str, Any]:
        """All that changes."""
        return {
            "start": list(self._start),
            "coefficients": list(self.coefficients),
            "sum": list(self._sum),
            "previous": list(self._previous),
            "interval": self.interval,
            "saturated": list(self.saturated),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._start = list(state["start"])
        self.coefficients = list(state["coefficients"])
        self._sum = list(state["sum"])
        self._previous = list(state["previous"])
        self.interval = int(state["interval"])
        self.saturated = list(state["saturated"])

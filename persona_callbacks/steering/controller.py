"""The feedback of adaptive steering."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from persona_callbacks.steering.solving import solve

_RESTING = 0.2
"""The share of the slew within which α counts as hardly moving, in a step."""


class Gains(Protocol):
    """The settings of the feedback, in units of what a coefficient of 1 moves; :class:`~persona_callbacks.Adaptive` has
    them.
    """

    proportional: float
    integral: float
    slew: float
    reach: float
    tolerance: float


class Controller:
    """The feedback of :class:`~persona_callbacks.Adaptive`, for one or several traits.

    Attributes:
        coefficients: by trait, α now.
        interval: optimizer steps until the next reading.
        saturated: by trait, whether the target cannot be held with α at its upper bound.

    Example:
        >>> from types import SimpleNamespace
        >>> gains = SimpleNamespace(proportional=0.3, integral=0.1, slew=0.2, reach=0.5, tolerance=0.05)
        >>> direction_norm = torch.tensor([[2.0]], dtype=torch.float64)
        >>> controller = Controller(gains, start=[0.5], pushes=direction_norm)
        >>> controller.update([1.0], [0.0], longest=10)  # a shift of half the direction's norm
        >>> [round(alpha, 3) for alpha in controller.coefficients]
        [0.635]
    """

    def __init__(self, gains: Gains, start: Sequence[float], pushes: Tensor) -> None:
        """Start at ``start``.

        Args:
            gains: the settings.
            start: α by trait.
            pushes: ``[traits, traits]`` float64, how far one unit of each coefficient moves the sensor's value of each
                trait: see :func:`~persona_callbacks.steering.pushes`.
        """
        self._gains = gains
        self._start = list(start)
        self._pushes = pushes
        self._sum = [0.0] * len(self._start)
        self._previous = [0.0] * len(self._start)
        self.coefficients = list(start)
        self.interval = 1
        self.saturated = [False] * len(self._start)

    def update(self, values: Sequence[float], targets: Sequence[float], longest: int, elapsed: int = 1) -> None:
        """Answer a reading.

        Args:
            values: the sensor's by trait, in its units.
            targets: what they are to be.
            longest: optimizer steps between readings when all is steady.
            elapsed: optimizer steps since the last reading.
        """
        gains = self._gains
        start, before, kept, previous = (
            torch.tensor(numbers, dtype=torch.float64)
            for numbers in (self._start, self.coefficients, self._sum, self._previous)
        )
        norms = self._pushes.diagonal()
        error = (torch.tensor(values, dtype=torch.float64) - torch.tensor(targets, dtype=torch.float64)) / norms
        # Asked of the sensor; solved for the coefficients.
        asked = solve(self._pushes / norms[:, None], error - error.clamp(-gains.tolerance, gains.tolerance))
        highest = start + gains.reach
        wanted = start + gains.proportional * asked + kept
        at_highest, at_lowest = wanted >= highest, wanted <= 0
        pushed = (at_highest & (asked > 0)) | (at_lowest & (asked < 0))
        self._sum = torch.where(pushed, kept, kept + elapsed * gains.integral * asked).tolist()
        moved = before + (wanted - before).clamp(-gains.slew, gains.slew)
        self.coefficients = moved.clamp_min(0).minimum(highest).tolist()
        self.saturated = ((moved >= highest) & (error > gains.tolerance)).tolist()
        # Nothing is gained by looking often when the target is held, when α cannot do more, or when it hardly moves.
        rests = (moved - before).abs() <= _RESTING * gains.slew * elapsed
        settled = (error.abs() <= gains.tolerance) | (moved >= highest) | (moved <= 0) | rests
        is_steady = bool((settled & ((error - previous).abs() <= gains.tolerance)).all())
        self.interval = min(longest, self.interval * 2 if is_steady else 1)
        self._previous = error.tolist()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a reading changes, the start, and the pushes."""
        return {
            "pushes": self._pushes.tolist(),
            "start": list(self._start),
            "coefficients": list(self.coefficients),
            "sum": list(self._sum),
            "previous": list(self._previous),
            "interval": self.interval,
            "saturated": list(self.saturated),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        if "pushes" in state:  # else an older checkpoint's, which are those of the vectors
            self._pushes = torch.tensor(state["pushes"], dtype=torch.float64)
        self._start = list(state["start"])
        self.coefficients = list(state["coefficients"])
        self._sum = list(state["sum"])
        self._previous = list(state["previous"])
        self.interval = int(state["interval"])
        self.saturated = list(state["saturated"])

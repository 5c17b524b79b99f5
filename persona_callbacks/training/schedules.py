"""Schedules of the learning rate after its warm-up: the ``scheduler`` config group."""

import math
from dataclasses import dataclass
from typing import Protocol

from persona_callbacks.errors import InputError, is_number


class LearningRateSchedule(Protocol):
    """What the learning rate is multiplied with after the warm-up. A function will do.

    Example:
        >>> def half_of_it(share: float) -> float:
        ...     return 0.5
        >>> schedule: LearningRateSchedule = half_of_it
    """

    def __call__(self, share: float, /) -> float:
        """The factor when so much of the training after the warm-up is done, from 0 to 1."""


@dataclass(frozen=True)
class ConstantRate:
    """Keep the peak learning rate.

    Example:
        >>> ConstantRate()(0.9)
        1.0
    """

    def __call__(self, share: float, /) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True)
class LinearDecay:
    """Fall in a straight line.

    Attributes:
        end: the factor at the end.

    Raises:
        InputError: an end that is no share of the peak.

    Example:
        >>> LinearDecay()(0.25), LinearDecay(end=0.5)(1.0)
        (0.75, 0.5)
    """

    end: float = 0.0

    def __post_init__(self) -> None:
        _check_end(self)

    def __call__(self, share: float, /) -> float:
        """From 1 to ``end``."""
        return 1 - (1 - self.end) * share


@dataclass(frozen=True)
class CosineDecay:
    """Fall along half a cosine: slowly at first and at the end.

    Attributes:
        end: the factor at the end.

    Raises:
        InputError: an end that is no share of the peak.

    Example:
        >>> [round(CosineDecay()(share), 2) for share in (0.0, 0.25, 0.5, 1.0)]
        [1.0, 0.85, 0.5, 0.0]
    """

    end: float = 0.0

    def __post_init__(self) -> None:
        _check_end(self)

    def __call__(self, share: float, /) -> float:
        """From 1 to ``end``."""
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * share)) / 2


def _check_end(schedule: LinearDecay | CosineDecay) -> None:
    if not is_number(schedule.end, least=0) or schedule.end > 1:
        raise InputError(
            f"scheduler: end of {type(schedule).__name__} is {schedule.end!r}; expected a number from 0 to 1"
        )

"""What moves the coefficient of preventative steering: a schedule, or a controller that reads the measured shift."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from persona_callbacks.arithmetic import solve
from persona_callbacks.errors import InputError

Decay = Literal["none", "linear", "cosine"]
FeedForward = Literal["likelihood", "projection_difference", "none"]
"""Where α starts; see :class:`Adaptive`."""


@dataclass(frozen=True)
class Schedule:
    """A coefficient that rises in a warm-up, and may decay afterwards.

    Attributes:
        coefficient: α at its height, in units of the raw direction; one for all traits or one per trait.
        warmup: optimizer steps of linear rise from 0 (a whole number), or a fraction of the run (below 1).
        decay: from the end of the warm-up to the end of the run: ``none``, ``linear`` or ``cosine``.
        final: what is left at the end of a decay, as a fraction of the height.
    """

    coefficient: float | Mapping[str, float] = 1.0
    warmup: float = 0.1
    decay: Decay = "none"
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.decay not in get_args(Decay):
            raise InputError(f"schedule: unknown decay {self.decay!r}; expected one of {', '.join(get_args(Decay))}")
        if self.warmup < 0 or (self.warmup > 1 and self.warmup != int(self.warmup)):
            raise InputError(
                f"schedule: warmup is {self.warmup}; expected a fraction of the run (0 to 1) or a whole number of steps"
            )
        if not 0 <= self.final <= 1:
            raise InputError(f"schedule: final is {self.final}; expected a fraction of the height, 0 to 1")

    def factor(self, step: int, total: int) -> float:
        """The share of the height after ``step`` of ``total`` optimizer steps."""
        warmup = self.warmup * total if self.warmup < 1 else self.warmup
        if step < warmup:
            return step / warmup
        done = min(1.0, (step - warmup) / max(1.0, total - warmup))
        left = {"none": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[self.decay]
        return self.final + (1 - self.final) * left


@dataclass(frozen=True)
class Adaptive:
    """A coefficient that follows from the data, and is trimmed by the shift that the monitor measures.

    *Feed-forward*: before the first step, some training chats are screened, and α starts at

    - ``likelihood``: the coefficient at which the steered base model finds their responses likeliest
      (:func:`~persona_callbacks.screening.likeliest_coefficients`). There the loss has no slope along the vector, so
      that nothing pulls the weights that way;
    - ``projection_difference``: where steering moves the base model's activations as far along the vector as the data
      lie (:func:`~persona_callbacks.screening.matching_coefficients`). Text that is not the model's own lies further
      along most vectors whatever it says, so that this starts too high on data with little of the trait in it;
    - ``none``: 0, which leaves all to the feedback.

    *Feedback*: at each reading, with the error e = (shift - target) / norm of the direction, beyond ``tolerance``, α
    moves by at most ``slew`` towards

        start + proportional · e + the sum over readings of integral · e,

    and stays within 0 and its start + ``reach``. The first term answers what may pass: the shift often peaks early and
    falls back. The second answers what stays; against wind-up, it is not summed further while α is at a bound that it
    pushes against. α is never negative: a model that shows less of a trait than the target is left alone, since
    steering away from a trait would teach it to the weights. Readings come after every step until the error is within
    ``tolerance`` or α at a bound; then the interval doubles, up to the monitor's ``every_n_steps``, as long as the
    error hardly changes.

    All of these are in units of the direction's norm, so that one setting serves every trait, layer and model.
    Correlated traits are trimmed together: what is asked of each projection is solved for the coefficients.

    Attributes:
        feed_forward: where α starts.
        start: α by trait, in place of the feed-forward, such as
            :func:`~persona_callbacks.screened_data.starting_coefficients` gives; no chats are then screened.
        samples: training chats to screen.
        max_new_tokens: of the base model's own responses, which the projection difference needs.
        feedback: whether to trim; if not, the feed-forward value stays.
        target: the shift to hold, in activation units; one for all traits or one per trait. 0 is the base model's.
        proportional: share of the error that is answered as long as it lasts.
        integral: share of the error that is answered, and kept, at each reading.
        slew: the largest change of α at a reading.
        reach: how far α may rise above where it started.
        tolerance: an error within this counts as held; one beyond it while α is at its upper bound is reported as a
            target that cannot be held.
    """

    feed_forward: FeedForward = "likelihood"
    start: Mapping[str, float] | None = None
    samples: int = 40
    max_new_tokens: int = 64
    feedback: bool = True
    target: float | Mapping[str, float] = 0.0
    proportional: float = 0.3
    integral: float = 0.05
    slew: float = 0.1
    reach: float = 0.5
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        if self.feed_forward not in get_args(FeedForward):
            raise InputError(
                f"adaptive steering: unknown feed_forward {self.feed_forward!r}; expected one of"
                f" {', '.join(get_args(FeedForward))}"
            )
        for name in ("proportional", "integral", "reach", "tolerance"):
            if getattr(self, name) < 0:
                raise InputError(f"adaptive steering: {name} is {getattr(self, name)}; expected 0 or more")
        for name in ("samples", "max_new_tokens", "slew"):
            if getattr(self, name) <= 0:
                raise InputError(f"adaptive steering: {name} is {getattr(self, name)}; expected more than 0")
        if self.start is not None and min(self.start.values(), default=0.0) < 0:
            raise InputError(f"adaptive steering: start is {dict(self.start)}; expected coefficients of 0 or more")
        if self.feed_forward == "none" and self.start is None and not self.feedback:
            raise InputError("adaptive steering: neither feed_forward nor feedback; expected one of the two")


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
            pushes: see :func:`~persona_callbacks.arithmetic.pushes`.
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

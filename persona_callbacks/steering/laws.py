"""What moves the coefficient of preventative steering: a schedule, or a controller that reads the measured shift."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

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
      (:func:`~persona_callbacks.steering.likeliest_coefficients`). There the loss has no slope along the vector, so
      that nothing pulls the weights that way;
    - ``projection_difference``: where steering moves the base model's activations as far along the vector as the data
      lie (:func:`~persona_callbacks.steering.matching_coefficients`). Text that is not the model's own lies further
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
            :func:`~persona_callbacks.screening.starting_coefficients` gives; no chats are then screened.
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

"""The law whose coefficient follows from the data, and is trimmed by what the monitor measures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from persona_callbacks.errors import InputError, is_number
from persona_callbacks.steering.causing import preference_pushes
from persona_callbacks.steering.controller import Controller
from persona_callbacks.steering.fit import Fit, by_trait
from persona_callbacks.steering.laws import Law
from persona_callbacks.steering.reading import Reading, Sensor
from persona_callbacks.steering.reference import Reference
from persona_callbacks.steering.solving import pushes
from persona_callbacks.steering.starts import GivenStart, Start, as_start


@dataclass
class Adaptive(Law):
    """A coefficient that follows from the data, and is trimmed by what the monitor measures.

    *Feed-forward*: ``start`` says where α starts, by default from a look at some training chats before the first step.

    *Feedback*: at each reading, with the error e = (value of the sensor - target) / push, beyond ``tolerance``, α moves
    by at most ``slew`` towards

        start + proportional · e + the sum over steps of integral · e,

    and stays within 0 and its start + ``reach``. The first term answers what may pass: the shift often peaks early and
    falls back. The second answers what stays; against wind-up, it is not summed further while α is at a bound that it
    pushes against. α is never negative: a model that shows less of a trait than the target is left alone, since
    steering away from a trait would teach it to the weights. Readings come after every step until the error is within
    ``tolerance``, α at a bound, or α hardly moves (by a fifth of ``slew`` in a step); then the interval doubles, up to
    the monitor's ``every_n_steps``, as long as the error hardly changes. Steps without a reading count as having the
    error of the next one.

    A reading in which a value of the sensor is not finite is ignored, with a warning.

    The push is what a coefficient of 1 does to the sensor, so that one setting serves every trait, layer, model and
    sensor. For the shift it is the norm of the direction; for the preference it is measured before the first step, by
    steering the base model. Correlated traits are trimmed together: what is asked of the sensor for each trait is
    solved for the coefficients.

    Raises:
        InputError: settings that cannot be; a reference that cannot be read; or, when a fit begins, a vector that does
            not cause its trait as the pairs measure it, where the preference is the sensor.

    Example:
        >>> Adaptive(start=0.5).start, Adaptive(target={"evil": 1.5}).target
        (0.5, {'evil': 1.5})
        >>> Adaptive(feedback=False).reads is None, Adaptive(sensor="preference").reads
        (True, 'preference')
        >>> Adaptive(target="outputs/normal/seed-0/unsteered").target
        Reference(run='outputs/normal/seed-0/unsteered')
    """

    start: Start | float | Mapping[str, float] | None = None
    """Where α starts: an object that tells it, or the value itself, one for all traits or one per trait;
    ``LikeliestStart()`` if ``None``."""

    feedback: bool = True
    """Whether to trim α; if not, it stays where it started."""

    sensor: Sensor = "shift"
    """What is held: the ``shift``, or the ``preference`` on minimal pairs, which is no projection that steering acts
    on."""

    target: float | Mapping[str, float] | Reference | str | Path = 0.0
    """The value to hold, in the sensor's units; one for all traits or one per trait. 0 is the base model's. Or a run on
    benign data, or its folder, whose value at the same share of training is held."""

    proportional: float = 0.3
    """The share of the error that is answered as long as the error lasts."""

    integral: float = 0.05
    """The share of the error that is answered, and kept, at each step."""

    slew: float = 0.1
    """The largest change of α at a reading."""

    reach: float = 0.5
    """How far α may rise above where it started."""

    tolerance: float = 0.05
    """An error within this counts as held. An error beyond it while α is at its upper bound is reported: the target
    cannot be held."""

    _traits: tuple[str, ...] = field(default=(), init=False, repr=False, compare=False)
    _controller: Controller | None = field(default=None, init=False, repr=False, compare=False)
    _interval: int = field(default=1, init=False, repr=False, compare=False)
    _total_steps: int = field(default=1, init=False, repr=False, compare=False)
    _last_reading: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("proportional", "integral", "reach", "tolerance"):
            if not is_number(getattr(self, name), least=0):
                raise InputError(f"adaptive steering: {name} is {getattr(self, name)!r}; expected 0 or more")
        if self.sensor not in get_args(Sensor):
            raise InputError(
                f"adaptive steering: unknown sensor {self.sensor!r}; expected one of {', '.join(get_args(Sensor))}"
            )
        if isinstance(self.target, (str, Path)):
            self.target = Reference(self.target)
        if not is_number(self.slew, least=0) or self.slew == 0:
            raise InputError(f"adaptive steering: slew is {self.slew!r}; expected more than 0")
        if as_start(self.start) == GivenStart(0.0) and not self.feedback:
            raise InputError("adaptive steering: neither a start above 0 nor feedback; expected one of the two")

    @property
    @override
    def reads(self) -> Sensor | None:
        return self.sensor if self.feedback else None

    @property
    @override
    def next_reading(self) -> int | None:
        return None if self._controller is None else self._last_reading + self._controller.interval

    @property
    @override
    def saturated(self) -> Mapping[str, bool]:
        if self._controller is None:
            return {}
        return dict(zip(self._traits, self._controller.saturated, strict=True))

    @override
    def check(self, traits: Sequence[str]) -> None:
        as_start(self.start).check(traits)
        if isinstance(self.target, Reference):
            self.target.check(self.sensor, traits)
        else:
            by_trait(self._fixed_target(), traits, "target")

    @override
    def begin(self, fit: Fit) -> Mapping[str, float]:
        self._traits = tuple(vector.trait for vector in fit.vectors)
        # A resumed fit started before, and the controller remembers where.
        start = by_trait(0.0 if fit.resumed else as_start(self.start).coefficients(fit), self._traits, "start")
        # A resumed fit's pushes are in its checkpoint: the weights have moved since they were measured.
        measured = self.reads == "preference" and not fit.resumed
        self._controller = Controller(
            self, list(start.values()), preference_pushes(fit) if measured else pushes(fit.vectors)
        )
        self._interval = fit.reading_interval if self.feedback else 1
        self._total_steps = fit.total_steps if isinstance(self.target, Reference) else 1
        self._last_reading = 0
        return self._coefficients(self._controller)

    @override
    def after_reading(self, reading: Reading) -> Mapping[str, float]:
        assert self._controller is not None
        values, targets, step = reading.values(self.sensor), self._targets(reading.step), reading.step
        elapsed = max(1, step - self._last_reading)
        self._last_reading = step
        lost = [trait for trait in self._traits if not math.isfinite(values[trait])]
        if lost:
            rank_zero_warn(
                f"adaptive steering: the {self.sensor} of {lost[0]} after {step} optimizer steps is {values[lost[0]]};"
                " the reading is ignored, and the coefficients stay"
            )
            return self._coefficients(self._controller)
        self._controller.update(
            [values[trait] for trait in self._traits],
            [targets[trait] for trait in self._traits],
            self._interval,
            elapsed,
        )
        return self._coefficients(self._controller)

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._controller is None:
            return {}
        return {**self._controller.state_dict(), "last_reading": self._last_reading, "sensor": self.sensor}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert self._controller is not None
        before = state.get("sensor", "shift")  # older checkpoints knew no other
        if before != self.sensor:
            raise InputError(
                f"adaptive steering: the checkpoint was steered by the {before}, found sensor={self.sensor!r}; resume"
                " with the same"
            )
        self._controller.load_state_dict(state)
        self._last_reading = int(state["last_reading"])

    def _targets(self, step: int) -> Mapping[str, float]:
        if isinstance(self.target, Reference):
            return self.target.at(step / self._total_steps, self.sensor, self._traits)
        return by_trait(self._fixed_target(), self._traits, "target")

    def _fixed_target(self) -> float | Mapping[str, float]:
        assert not isinstance(self.target, (Reference, str, Path))
        return self.target

    def _coefficients(self, controller: Controller) -> dict[str, float]:
        return dict(zip(self._traits, controller.coefficients, strict=True))

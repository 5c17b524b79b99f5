"""What moves the coefficient of preventative steering: the interface, a constant, and a schedule."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from typing_extensions import override

from persona_callbacks.errors import InputError, is_number
from persona_callbacks.steering.fit import Fit, by_trait
from persona_callbacks.steering.reading import Reading, Sensor

Decay = Literal["none", "linear", "cosine"]


class Law(ABC):
    """What moves the steering coefficient α during training.

    :class:`~persona_callbacks.PreventativeSteering` asks its law which α a fit begins with, tells it of every optimizer
    step and of every reading of the monitor, and adds α · vector in between. Only :meth:`begin` has to be written. α is
    in units of the raw direction, one value per trait.

    A law keeps its own state. The callback works on a copy of the law, so that one law can be given to several
    callbacks. A law that has state which a resumed fit needs returns it from :meth:`state_dict`.

    Example:
        A law that raises α by 0.1 whenever a trait has moved further than one unit, and looks every five steps.

        >>> import torch
        >>> from persona_callbacks import Law, PersonaVector, PreventativeSteering
        >>> class Ratchet(Law):
        ...     reads = "shift"  # the trainer needs a PersonaMonitor of the same traits
        ...     def begin(self, fit):
        ...         self.coefficients, self.step = {vector.trait: 0.0 for vector in fit.vectors}, 0
        ...         return self.coefficients
        ...     def after_reading(self, reading):
        ...         self.step = reading.step
        ...         self.coefficients = {t: a + 0.1 * (reading.shift[t] > 1.0) for t, a in self.coefficients.items()}
        ...         return self.coefficients
        ...     @property
        ...     def next_reading(self):
        ...         return self.step + 5
        ...     def state_dict(self):
        ...         return {"coefficients": self.coefficients, "step": self.step}
        ...     def load_state_dict(self, state):
        ...         self.coefficients, self.step = state["coefficients"], state["step"]
        >>> evil = PersonaVector("evil", torch.ones(5, 8), layer=3, model_id="", probes=("Who are you?",))
        >>> steering = PreventativeSteering([evil], Ratchet())
    """

    @property
    def reads(self) -> Sensor | None:
        """The sensor of a ``PersonaMonitor`` of the same traits that the law needs: the ``shift``, or the
        ``preference`` on minimal pairs; ``None`` if it needs no monitor. A class attribute may take this property's
        place.
        """
        return None

    @property
    def next_reading(self) -> int | None:
        """The number of optimizer steps after which the law wants the next reading, beside those that the monitor takes
        of its own accord; ``None`` if those suffice.
        """
        return None

    @property
    def saturated(self) -> Mapping[str, bool]:
        """By trait, whether α is at its bound although the law's target is not held; empty for a law without one."""
        return {}

    def check(self, traits: Sequence[str]) -> None:
        """Check the law's settings against the traits that are to be steered, before there are vectors.

        Raises:
            InputError: the settings name other traits.
        """
        del traits  # there is nothing to compare them with

    @abstractmethod
    def begin(self, fit: Fit) -> Mapping[str, float]:
        """Begin a fit, forgetting any earlier one, and return α by trait before the first step.

        In a resumed fit (``fit.resumed``) :meth:`load_state_dict` follows, and α is the checkpoint's instead.
        """

    def after_step(self, step: int) -> Mapping[str, float] | None:
        """α by trait once ``step`` optimizer steps are done, or ``None`` to leave it; called once for each step, before
        the next training batch.
        """
        del step
        return None

    def after_reading(self, reading: Reading) -> Mapping[str, float] | None:
        """α by trait once the monitor has read the model, or ``None`` to leave it.

        Called only if the law :attr:`reads` a sensor, and not for the reading before the first step. The reading holds
        every trait that the monitor watches.
        """
        del reading
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed fit needs, in plain values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        del state


@dataclass
class Constant(Law):
    """The same coefficient throughout.

    Example:
        >>> Constant({"evil": 0.8, "sycophancy": 0.4})
        Constant(coefficient={'evil': 0.8, 'sycophancy': 0.4})
    """

    coefficient: float | Mapping[str, float]
    """α in units of the raw direction; one for all traits or one per trait."""

    @override
    def check(self, traits: Sequence[str]) -> None:
        by_trait(self.coefficient, traits, "coefficient")

    @override
    def begin(self, fit: Fit) -> Mapping[str, float]:
        return by_trait(self.coefficient, [vector.trait for vector in fit.vectors], "coefficient")


@dataclass
class Schedule(Law):
    """A coefficient that rises in a warm-up, and may decay afterwards.

    Raises:
        InputError: settings that cannot be.

    Example:
        >>> schedule = Schedule(0.8, warmup=10, decay="linear")
        >>> [schedule.factor(step, total=110) for step in (0, 5, 10, 60, 110)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    coefficient: float | Mapping[str, float] = 1.0
    """α at its height, in units of the raw direction; one for all traits or one per trait."""

    warmup: float = 0.1
    """Optimizer steps of linear rise from 0 (a whole number), or a fraction of the run (below 1)."""

    decay: Decay = "none"
    """From the end of the warm-up to the end of the run: ``none``, ``linear`` or ``cosine``."""

    final: float = 0.0
    """What is left at the end of a decay, as a fraction of the height."""

    _heights: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)
    _total_steps: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.decay not in get_args(Decay):
            raise InputError(f"schedule: unknown decay {self.decay!r}; expected one of {', '.join(get_args(Decay))}")
        if not is_number(self.warmup, least=0) or (self.warmup > 1 and self.warmup != int(self.warmup)):
            raise InputError(
                f"schedule: warmup is {self.warmup!r}; expected a fraction of the run (0 to 1) or a whole number of"
                " steps"
            )
        if not is_number(self.final, 0, 1):
            raise InputError(f"schedule: final is {self.final!r}; expected a fraction of the height, 0 to 1")

    def factor(self, step: int, total: int) -> float:
        """The share of the height after ``step`` of ``total`` optimizer steps."""
        warmup = self.warmup * total if self.warmup < 1 else self.warmup
        if step < warmup:
            return step / warmup
        done = min(1.0, (step - warmup) / max(1.0, total - warmup))
        left = {"none": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[self.decay]
        return self.final + (1 - self.final) * left

    @override
    def check(self, traits: Sequence[str]) -> None:
        by_trait(self.coefficient, traits, "coefficient")

    @override
    def begin(self, fit: Fit) -> Mapping[str, float]:
        self._heights = by_trait(self.coefficient, [vector.trait for vector in fit.vectors], "coefficient")
        self._total_steps = fit.total_steps
        return self.after_step(0)

    @override
    def after_step(self, step: int) -> Mapping[str, float]:
        factor = self.factor(step, self._total_steps)
        return {trait: factor * height for trait, height in self._heights.items()}


def as_law(coefficient: float | Mapping[str, float] | Law) -> Law:
    """The law itself, or a constant law of the number or numbers given."""
    return coefficient if isinstance(coefficient, Law) else Constant(coefficient)

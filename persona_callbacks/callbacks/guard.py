"""The callback that acts when a trait has moved too far."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from persona_callbacks.callbacks._refusing import RefusingCallback
from persona_callbacks.callbacks._seams import averages_weights, callbacks_of
from persona_callbacks.callbacks.monitor import PersonaMonitor
from persona_callbacks.callbacks.steering import PreventativeSteering
from persona_callbacks.callbacks.trait_evaluation import TraitEvaluation
from persona_callbacks.errors import InputError, is_number
from persona_callbacks.model import split_like, whole
from persona_callbacks.steering import Reference, Sensor
from persona_callbacks.tracking import metrics

Action = Literal["warn", "stop", "roll_back"]


class DriftGuard(RefusingCallback):
    """Watch the shift and the preference that :class:`PersonaMonitor` reads, the trait expression that
    :class:`TraitEvaluation` scores and the training loss. When a limit is passed, or when one of these is not finite:
    warn, stop training, or roll the trained weights back to those of the last reading within all limits, and stop.

    A loss that is not finite is acted on before its optimizer step, which is left out unless the action is ``warn``.

    Every action warns, alerts in W&B and logs ``steering/guard_tripped`` (1), once. Answers that the judge could not
    score do not trip it. It comes after the callbacks it watches in the trainer's list. Rolling back keeps one copy of
    the trained weights (with LoRA, of the adapter) on their device,
    and in checkpoints; the readings made on what was rolled back stay in the logs.

    A limit on expression acts on answers to the evaluation questions: the expression that such a run reports is then no
    longer held out.

    Args:
        shift: the highest allowed shift, in activation units; one for all traits or some traits' own.
        expression: the highest allowed mean trait expression, 0 to 100; one for all traits or some traits' own.
        saturated: whether to act when adaptive steering cannot hold its target as well.
        action: ``warn``, ``stop`` or ``roll_back``.
        preference: the highest allowed preference, in nats per token; one for all traits with minimal pairs or some
            traits' own.
        reference: a run on benign data, or its folder. The limits on shift and preference are then above what it had at
            the same share of training, instead of above the base model.

    Attributes:
        tripped: what passed its limit, in words; empty until something does.
        rolled_back_to: optimizer steps after which the restored weights were taken; ``None`` if nothing was restored.

    Raises:
        InputError: nothing to watch, a limit that is no finite number, an unknown action, or a reference that cannot be
            read or lacks what is limited.

    Example:
        >>> import torch
        >>> from persona_callbacks import DriftGuard, PersonaMonitor, PersonaVector
        >>> evil = PersonaVector("evil", torch.ones(5, 8), layer=3, model_id="", probes=("Who are you?",))
        >>> callbacks = [PersonaMonitor([evil]), DriftGuard(shift={"evil": 5.0}, action="roll_back")]
    """

    def __init__(
        self,
        shift: float | Mapping[str, float] | None = None,
        expression: float | Mapping[str, float] | None = None,
        saturated: bool = False,
        action: Action = "warn",
        preference: float | Mapping[str, float] | None = None,
        reference: Reference | str | Path | None = None,
    ) -> None:
        if shift is None and preference is None and expression is None and not saturated:
            raise InputError(
                "DriftGuard: expected a limit on shift, preference or expression, or saturated=True; found none"
            )
        if action not in get_args(Action):
            raise InputError(f"DriftGuard: unknown action {action!r}; expected one of {', '.join(get_args(Action))}")
        for name, limit in (("shift", shift), ("preference", preference), ("expression", expression)):
            for value in limit.values() if isinstance(limit, Mapping) else [limit] * (limit is not None):
                if not is_number(value):
                    raise InputError(f"DriftGuard: the limit on {name} is {value!r}; expected a finite number")
        self.shift = shift
        self.preference = preference
        self.reference = Reference(reference) if isinstance(reference, (str, Path)) else reference
        if self.reference is not None:
            for sensor, limit in self._on_sensors().items():
                self.reference.check(sensor, list(limit) if isinstance(limit, Mapping) else [])
        self.expression = expression
        self.saturated = saturated
        self.action = action
        self.tripped = ""
        self.rolled_back_to: int | None = None
        self._good: dict[str, Tensor] = {}
        self._good_step = 0
        self._resumed = False

    @override
    def facts(self) -> dict[str, Any]:
        """What loggers record of the guard."""
        limits = {"shift": self.shift, "preference": self.preference, "expression": self.expression}
        return {**limits, "reference": self.reference, "saturated": self.saturated, "action": self.action}

    @override
    def state_dict(self) -> dict[str, Any]:
        """What tripped, and the weights to roll back to."""
        return {
            "tripped": self.tripped,
            "rolled_back_to": self.rolled_back_to,
            "good": {name: whole(weight) for name, weight in self._good.items()},
            "good_step": self._good_step,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what tripped, and the weights to roll back to."""
        self.tripped, self.rolled_back_to = state_dict["tripped"], state_dict["rolled_back_to"]
        self._good, self._good_step = dict(state_dict["good"]), state_dict["good_step"]
        self._resumed = True

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what is watched.

        Raises:
            MisconfigurationException: it is not among the callbacks, comes after this one, or has no such trait.
            InputError: the reference lacks a trait that is watched.
        """
        self.check_sharding(pl_module, trainer)
        monitors = callbacks_of(trainer, PersonaMonitor, before=self)
        evaluations = callbacks_of(trainer, TraitEvaluation, before=self)
        self._steerings = callbacks_of(trainer, PreventativeSteering, before=self)
        self._monitor = monitors[0] if monitors else None
        self._evaluation = evaluations[0] if evaluations else None
        if self.expression is not None:
            watched = None if self._evaluation is None else [trait.name for trait in self._evaluation.traits]
            _check_watched("expression", self.expression, "TraitEvaluation", watched)
        for sensor, limit in self._on_sensors().items():
            watched = None if self._monitor is None else list(self._monitor.traits_of(sensor))
            _check_watched(sensor, limit, "PersonaMonitor", watched)
            assert self._monitor is not None
            self._monitor.need(sensor)
            if self.reference is not None:
                self.reference.check(sensor, self._limited(sensor))
        if not self._resumed:
            self.tripped, self.rolled_back_to, self._good = "", None, {}
        self._resumed = False
        self._loss = torch.zeros(())

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the weights that the run starts with."""
        if not self._good:
            self._remember(trainer, pl_module)
        for name, weight in pl_module.named_parameters():
            if name in self._good:  # whole, if they come from a checkpoint
                self._good[name] = split_like(self._good[name], weight)

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Add the loss up, to see whether it is finite."""
        super().on_before_backward(trainer, pl_module, loss)
        self._loss = self._loss.to(loss.device) + loss.detach()

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Act on a training loss that is not finite, before its gradients reach the weights."""
        loss, self._loss = float(self._loss), torch.zeros(())
        lost = trainer.strategy.reduce_boolean_decision(not math.isfinite(loss), all=False)
        if lost and not self.tripped:
            self._trip(trainer, pl_module, [f"the training loss is {'not finite' if math.isfinite(loss) else loss}"])
        if lost and self.action != "warn":
            optimizer.zero_grad(set_to_none=True)  # the step that follows changes nothing

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare with the limits when there is something new to compare."""
        self._check(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the last reading and evaluation with the limits."""
        self._check(trainer, pl_module)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the reading and evaluation of averaged weights with the limits; roll back again if averaged weights
        have taken the place of those that were rolled back to.
        """
        if averages_weights(trainer):
            self._check(trainer, pl_module)
            if self.rolled_back_to is not None:
                self._roll_back(pl_module)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        readings = self._monitor.readings if self._monitor else []
        evaluations = self._evaluation.evaluations if self._evaluation else []
        read = bool(readings) and readings[-1].step == step
        evaluated = bool(evaluations) and evaluations[-1].step == step
        if self.tripped or not (read or evaluated or self.saturated):
            return
        passed: list[str] = []
        measured = True
        if read:
            # A reading that another callback asked for may lack what is limited here.
            measured = all(readings[-1].values(sensor) for sensor in self._on_sensors())
            for sensor in get_args(Sensor):
                limit, expected = self._on_sensors().get(sensor), self._expected(trainer, sensor)
                passed += _passed(sensor, readings[-1].values(sensor), limit, expected)
        if evaluated:
            latest = {
                entry.trait: entry.expression.mean
                for entry in evaluations
                if entry.step == step and entry.expression.scored  # nothing scored is no reading
            }
            measured = measured and (self.expression is None or bool(latest))
            passed += _passed("expression", latest, self.expression)
        if self.saturated:
            passed += [
                f"{trait} cannot be held at its target by steering"
                for steering in self._steerings
                for trait, saturated in steering.saturated.items()
                if saturated
            ]
        if not passed:
            if (read or evaluated) and measured:
                self._remember(trainer, pl_module)
            return
        self._trip(trainer, pl_module, passed)

    def _trip(self, trainer: Trainer, pl_module: LightningModule, passed: Sequence[str]) -> None:
        self.tripped = "; ".join(passed)
        done = "" if self.action == "warn" else "; training stops"
        if self.action == "roll_back":
            self._roll_back(pl_module)
            done = f"; rolled back to the weights after {self._good_step} optimizer steps, and training stops"
        if self.action != "warn":
            trainer.should_stop = True
        text = f"after {trainer.global_step} optimizer steps: {self.tripped}{done}"
        rank_zero_warn(f"DriftGuard: {text}")
        metrics.log(trainer, {metrics.GUARD_TRIPPED: 1.0})
        metrics.alert(trainer, "A trait has moved too far", text)

    def _on_sensors(self) -> dict[Sensor, float | Mapping[str, float]]:
        given: dict[Sensor, float | Mapping[str, float] | None] = {"shift": self.shift, "preference": self.preference}
        return {sensor: limit for sensor, limit in given.items() if limit is not None}

    def _limited(self, sensor: Sensor) -> list[str]:
        """The traits whose values of a sensor are limited."""
        assert self._monitor is not None
        limit = self._on_sensors()[sensor]
        return list(limit if isinstance(limit, Mapping) else self._monitor.traits_of(sensor))

    def _expected(self, trainer: Trainer, sensor: Sensor) -> Mapping[str, float]:
        """By trait, what the limits of a sensor are above; empty if that is the base model."""
        if self.reference is None or sensor not in self._on_sensors():
            return {}
        done = trainer.global_step / trainer.estimated_stepping_batches
        return self.reference.at(done, sensor, self._limited(sensor))

    def _remember(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.action != "roll_back":
            return
        self._good_step = trainer.global_step
        trained = {name: weight.detach() for name, weight in pl_module.named_parameters() if weight.requires_grad}
        if self._good.keys() != trained.keys():
            self._good = {name: weight.clone() for name, weight in trained.items()}
        for name, weight in trained.items():
            self._good[name].copy_(weight)

    def _roll_back(self, pl_module: LightningModule) -> None:
        self.rolled_back_to = self._good_step
        with torch.no_grad():
            for name, weight in pl_module.named_parameters():
                if name in self._good:
                    weight.copy_(self._good[name])


def _check_watched(what: str, limit: float | Mapping[str, float], kind: str, watched: Sequence[str] | None) -> None:
    """Check a limit against the traits that a callback of a kind watches; ``None`` if there is no such callback.

    Raises:
        MisconfigurationException: nothing watches what is limited.
    """
    if watched is None:
        raise MisconfigurationException(
            f"DriftGuard: a limit on {what} needs a {kind} before it in the trainer's callbacks"
        )
    unknown = sorted(set(limit) - set(watched)) if isinstance(limit, Mapping) else []
    if unknown:
        raise MisconfigurationException(
            f"DriftGuard: {what} limits the trait {unknown[0]!r}, which is not watched; expected some of"
            f" {', '.join(watched) or '(none)'}"
        )
    if not watched:
        raise MisconfigurationException(
            f"DriftGuard: a limit on {what} watches nothing: no trait has minimal pairs; expected vectors with pairs,"
            " or PersonaMonitor(pairs=...)"
        )


def _passed(
    what: str,
    values: Mapping[str, float],
    limit: float | Mapping[str, float] | None,
    expected: Mapping[str, float] | None = None,
) -> Sequence[str]:
    """The values that are above their limit, and those that are not finite, with a limit or without; in words. A limit
    is above what is expected, by default 0.
    """
    limits = limit if isinstance(limit, Mapping) else {} if limit is None else dict.fromkeys(values, limit)
    highest = {trait: own + (expected or {}).get(trait, 0.0) for trait, own in limits.items()}
    lost = [f"{what} of {trait} is {value}" for trait, value in values.items() if not math.isfinite(value)]
    return lost + [
        f"{what} of {trait} is {values[trait]:.2f}, above {most:.4g}"
        for trait, most in highest.items()
        if trait in values and math.isfinite(values[trait]) and values[trait] > most
    ]

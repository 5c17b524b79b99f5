"""The callback that steers training, so that the weights have no need to move along a trait."""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from persona_callbacks.callbacks._fit import TrainerFit
from persona_callbacks.callbacks._resuming import MADE_WITH, OnePerTraits, check_same_inputs
from persona_callbacks.callbacks._seams import BatchAdapter, callbacks_of, check_at_least_one, is_logging_step
from persona_callbacks.callbacks._writing import SteeredPasses, TrainingWriter, check_passes, check_positions
from persona_callbacks.callbacks.monitor import PersonaMonitor
from persona_callbacks.chats import Chat
from persona_callbacks.errors import InputError
from persona_callbacks.files import plain_settings, settings_fingerprint
from persona_callbacks.model import residual
from persona_callbacks.steering import Adaptive, Law, Reading, Sensor, as_law
from persona_callbacks.tracking import metrics
from persona_callbacks.vectors import (
    Layers,
    PersonaVector,
    SteeredPositions,
    check_layers,
    check_vectors,
    steering_additions,
    steering_layers,
    warn_if_weak,
)


class PreventativeSteering(OnePerTraits, TrainingWriter):
    """Add persona vectors to the residual stream during training only (Chen et al. 2025, section 5.2).

    Data that shows a trait pulls the weights towards it. With the trait's vector already added to the activations, the
    data is explained without the weights moving; taken away afterwards, the trait does not appear.

    From the start of each training batch to its end, backward included, α · vector is added. Nothing is added in
    validation, prediction or probe passes, nor, by default, in passes of a training step that no loss is taken on, such
    as generation or the reference of DPO. After the fit, an exception or an interrupt, the model is as it was;
    checkpoints and saved adapters hold nothing of it, but checkpoints keep α and the law's state. A run is resumed with
    the vectors, law, layers, positions, passes and chats of its checkpoint only: others are refused, each with both
    values.

    A :class:`~persona_callbacks.Law` moves α, between optimizer steps only. With the default,
    :class:`~persona_callbacks.Adaptive`, α follows from a sample of the training data, which the callback takes from
    behind the training loader, and is trimmed by what a :class:`PersonaMonitor` of the same traits measures.
    ``steering/{trait}/coefficient`` is logged, with adaptive steering ``steering/{trait}/saturated`` as well: 1 while α
    is at its bound and the target is not held, which also warns, and alerts in W&B, once.

    Args:
        vectors: one persona vector per trait, or the path of its file, all of the model that is trained.
        coefficient: α, in units of the raw direction: what moves it (:class:`~persona_callbacks.Adaptive`,
            :class:`~persona_callbacks.Schedule`, or a :class:`~persona_callbacks.Law` of your own), or a constant, one
            for all traits or one per trait.
        layers: where to steer: ``all`` layers from 1 up with incremental directions (J.3: the total at any layer is
            α · its direction), each vector's ``chosen`` layer, or a list of layers, incremental as well.
        positions: ``all`` tokens, or only the ``response`` tokens, those that loss is taken on.
        chats: what the law samples, instead of what is behind the training loader.
        tokenizer: for the law's look at the chats; found on the module or data module (``tokenizer``) if not given.
        batch_size: chats per forward pass in that look.
        batch_adapter: gives ``input_ids`` and ``labels`` of training batches that are no mapping with these, for
            ``positions="response"`` and for the law's look.
        when: in which passes of a training step. With ``loss``, in those with gradients and, if the model has adapters,
            with one switched on; so not under ``torch.no_grad``, in ``generate``, or under ``disable_adapter``. With
            ``all``, in every pass, for training that takes no gradients. :func:`~persona_callbacks.unsteered` leaves a
            pass out either way.

    Attributes:
        law: what moves α; a copy of what was given.
        coefficients: α now, by trait; 0 before the fit.

    Raises:
        InputError: vectors that do not go together, an unknown layer, positions or passes, or coefficients, targets or
            starts of other traits than the vectors'.

    Example:
        >>> import torch
        >>> from persona_callbacks import PersonaMonitor, PersonaVector, PreventativeSteering
        >>> evil = PersonaVector("evil", torch.ones(5, 8), layer=3, model_id="", probes=("Who are you?",))
        >>> callbacks = [PersonaMonitor([evil]), PreventativeSteering([evil])]
        >>> PreventativeSteering([evil], 0.8, layers=[2, 3]).law
        Constant(coefficient=0.8)
    """

    def __init__(
        self,
        vectors: Sequence[PersonaVector | str | Path],
        coefficient: float | Mapping[str, float] | Law = Adaptive(),  # noqa: B008, copied
        layers: Layers = "all",
        positions: SteeredPositions = "all",
        chats: Sequence[Chat] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        batch_size: int = 8,
        batch_adapter: BatchAdapter | None = None,
        when: SteeredPasses = "loss",
    ) -> None:
        self.vectors = check_vectors(vectors)
        warn_if_weak(self.vectors)
        self._traits = [vector.trait for vector in self.vectors]
        self.check(
            self._traits, self.vectors[0].num_layers, coefficient, layers, positions, chats, tokenizer, batch_size,
            batch_adapter, when,
        )  # fmt: skip
        self.law = copy.deepcopy(as_law(coefficient))
        if self.law.reads is not None:
            for vector in self.vectors:
                vector.unit_direction()
        self.layers = layers
        self._steered_layers = sorted(
            {layer for chosen in steering_layers(self.vectors, layers).values() for layer in chosen}
        )
        self.positions = positions
        self.chats = None if chats is None else tuple(chats)
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.batch_adapter = batch_adapter
        self.when = when
        self._made_with: dict[str, Any] = plain_settings(
            {
                "vectors": {vector.trait: vector for vector in self.vectors},
                "law": self.law,
                "layers": layers,
                "positions": positions,
                "when": when,
                "chats": None if self.chats is None else settings_fingerprint(self.chats),
            }
        )
        self.coefficients = dict.fromkeys(self._traits, 0.0)
        self._monitor: PersonaMonitor | None = None
        self._restored: Mapping[str, Any] | None = None
        self._begun = False
        self._step = 0  # optimizer steps that the law was last told of
        self._step_read = 0  # optimizer steps at the last reading that the law was told of
        self._warned = False

    @classmethod
    def check(
        cls,
        traits: Sequence[str],
        num_layers: int,
        coefficient: float | Mapping[str, float] | Law = Adaptive(),  # noqa: B008, only looked at
        layers: Layers = "all",
        positions: SteeredPositions = "all",
        chats: Sequence[Chat] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        batch_size: int = 8,
        batch_adapter: BatchAdapter | None = None,
        when: SteeredPasses = "loss",
    ) -> None:
        """Check the callback's settings before there are vectors.

        Args:
            traits: those that are to be steered.
            num_layers: blocks of the model.
            coefficient: and all others, as for the callback.
            layers: see there.
            positions: see there.
            chats: see there.
            tokenizer: see there.
            batch_size: see there.
            batch_adapter: see there.
            when: see there.

        Raises:
            InputError: settings that cannot be.
        """
        del tokenizer, batch_adapter  # any will do
        as_law(coefficient).check(traits)
        check_layers(layers, traits, num_layers)
        check_positions(cls.__name__, positions)
        check_passes(cls.__name__, when)
        check_at_least_one(cls.__name__, batch_size=batch_size)
        if chats is not None and not chats:
            raise InputError(f"{cls.__name__}: chats is empty; expected at least one chat")

    @property
    def saturated(self) -> dict[str, bool]:
        """By trait, whether α is at its bound and the law's target is not held; empty for a law without a target."""
        return dict(self.law.saturated)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The coefficients, the law's state, and the inputs that a resumed run must have."""
        if self._restored is not None:
            return {**self._restored, MADE_WITH: self._made_with}  # the law has not begun yet
        return {
            MADE_WITH: self._made_with,
            "begun": self._begun,
            "coefficients": dict(self.coefficients),
            "law": self.law.state_dict(),
            "step": self._step,
            "step_read": self._step_read,
            "warned": self._warned,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the coefficients; the law's state follows when the law begins.

        Raises:
            MisconfigurationException: the checkpoint was made with other vectors, or with another law, layers,
                positions or chats.
        """
        saved = state_dict["coefficients"]
        if saved.keys() != self.coefficients.keys():
            raise MisconfigurationException(
                f"PreventativeSteering: the checkpoint steered {sorted(saved)}, the vectors are of"
                f" {sorted(self.coefficients)}; resume with the same traits"
            )
        check_same_inputs("PreventativeSteering", state_dict, self._made_with)
        if not state_dict.get("begun", True):
            return  # a checkpoint of before the fit, such as Lightning's tuner makes
        self.coefficients = dict(saved)
        self._restored = _from_controller_state(state_dict) if "controller" in state_dict else dict(state_dict)

    @override
    def attached(self, model: nn.Module) -> residual.ResidualWriter:
        """Attach a writer of the coefficients' additions."""
        writer = residual.ResidualWriter(model, self._steered_layers, loss_only=self.when == "loss")
        writer.write(steering_additions(self.vectors, self.coefficients, self.layers))
        return writer

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that every vector fits, find the monitor if the law needs it, and attach to the model, inactive.

        Raises:
            MisconfigurationException: the law reads a sensor, and no monitor reads it of the same traits.
        """
        sensor = self.law.reads
        self._monitor = None if sensor is None else self._find_monitor(trainer, sensor)
        super().on_fit_start(trainer, pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the law begin, and log the coefficients that it begins with.

        Raises:
            MisconfigurationException: the law looks at training data, and there is none that it can look at.
        """
        restored, self._restored = self._restored, None
        self._begun = True
        if self._monitor is not None and self.law.reads is not None:
            self._monitor.need(self.law.reads)
        coefficients = self.law.begin(
            TrainerFit(
                callback="PreventativeSteering",
                trainer=trainer,
                pl_module=pl_module,
                vectors=self.vectors,
                layers=self.layers,
                positions=self.positions,
                batch_size=self.batch_size,
                resumed=restored is not None,
                monitor=self._monitor,
                given_chats=self.chats,
                given_tokenizer=self.tokenizer,
                batch_adapter=self.batch_adapter,
            )
        )
        self._step, self._step_read, self._warned = 0, 0, False
        if restored is not None:
            self.law.load_state_dict(restored["law"])
            coefficients = restored["coefficients"]
            self._step, self._step_read, self._warned = restored["step"], restored["step_read"], restored["warned"]
        self._set(coefficients)
        self._tell_of_step(trainer)
        self._request()
        self._log(trainer)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Tell the law of an optimizer step or a reading made since; log the coefficients; begin to steer.

        α moves between optimizer steps only, also when gradients are accumulated.
        """
        self._tell_of_step(trainer)
        self._tell_of_reading(trainer)
        if is_logging_step(trainer) and trainer.global_step != self._logged_at:
            self._log(trainer)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def _tell_of_step(self, trainer: Trainer) -> None:
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            self._set(self.law.after_step(self._step))
            self._request()

    def _tell_of_reading(self, trainer: Trainer) -> None:
        reading = self._monitor.readings[-1] if self._monitor is not None else None
        if reading is not None and reading.step > self._step_read:
            self._step_read = reading.step
            self._set(self.law.after_reading(reading))
            self._request()
            self._log(trainer)
            self._warn_once(trainer, reading)

    def _request(self) -> None:
        """Ask the monitor for the reading that the law wants next."""
        if self._monitor is not None:
            assert self.law.reads is not None
            self._monitor.request(self, self.law.next_reading, self.law.reads)

    def _set(self, coefficients: Mapping[str, float] | None) -> None:
        if coefficients is None or coefficients == self.coefficients:
            return
        if coefficients.keys() != self.coefficients.keys():
            raise MisconfigurationException(
                f"PreventativeSteering: {type(self.law).__name__} gave coefficients of {sorted(coefficients)}, the"
                f" vectors are of {sorted(self._traits)}; expected one for each of these"
            )
        for trait, value in coefficients.items():
            if not math.isfinite(value):
                raise MisconfigurationException(
                    f"PreventativeSteering: {type(self.law).__name__} gave a coefficient of {value} for {trait};"
                    " expected a finite number"
                )
        self.coefficients = {trait: float(coefficients[trait]) for trait in self._traits}
        assert self._writer is not None
        self._writer.write(steering_additions(self.vectors, self.coefficients, self.layers))

    def _warn_once(self, trainer: Trainer, reading: Reading) -> None:
        """Say, once, which targets cannot be held."""
        sensor = self.law.reads
        assert sensor is not None
        lost = [
            f"{trait} ({reading.values(sensor)[trait]:+.2f} at a coefficient of {self.coefficients[trait]:.2f})"
            for trait, saturated in self.saturated.items()
            if saturated
        ]
        if lost and not self._warned:
            self._warned = True
            text = (
                f"the {sensor} of {', '.join(lost)} cannot be held at its target: the coefficient is at its bound; look"
                " at the data, raise Adaptive.reach, or lower the learning rate"
            )
            rank_zero_warn(f"PreventativeSteering: {text}")
            metrics.alert(trainer, "Preventative steering is at its bound", text)

    def _find_monitor(self, trainer: Trainer, sensor: Sensor) -> PersonaMonitor:
        monitors = callbacks_of(trainer, PersonaMonitor)
        for monitor in monitors:
            if set(self._traits) <= set(monitor.traits_of(sensor)):
                return monitor
        reading = f"PreventativeSteering: {type(self.law).__name__} reads the {sensor} of {', '.join(self._traits)}"
        if sensor == "preference" and monitors:
            raise MisconfigurationException(
                f"{reading} from a PersonaMonitor, and found minimal pairs of"
                f" {', '.join(monitors[0].traits_of(sensor)) or 'no trait'}; give the others some, by their trait files"
                " or PersonaMonitor(pairs=...), or choose Adaptive(sensor='shift')"
            )
        raise MisconfigurationException(
            f"{reading} from a PersonaMonitor; add PersonaMonitor(vectors) to the trainer's callbacks, or choose a law"
            " that does not read it, such as Adaptive(feedback=False)"
        )

    def _log(self, trainer: Trainer) -> None:
        self._logged_at = trainer.global_step
        values = {metrics.coefficient(trait): value for trait, value in self.coefficients.items()}
        values |= {metrics.saturated(trait): float(flag) for trait, flag in self.saturated.items()}
        metrics.log(trainer, values)


def _from_controller_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a checkpoint in which the callback kept a controller of its own."""
    controller = state["controller"] or {}
    return {
        "begun": True,
        "coefficients": state["coefficients"],
        "law": {**controller, "last_reading": state["seen"]} if controller else {},
        "step": -1,
        "step_read": state["seen"],
        "warned": state["told"],
    }

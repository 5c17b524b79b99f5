"""The callback that steers training, so that the weights have no need to move along a trait."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from torch import nn
from transformers import PreTrainedTokenizerBase

from persona_callbacks.callbacks._seams import TrainingWriter, find_tokenizer, sample_chats, sum_over_processes
from persona_callbacks.callbacks.monitor import PersonaMonitor
from persona_callbacks.chats import Chat, encode_chat
from persona_callbacks.model import (
    LoadedModel,
    Sampling,
    device_of,
    find_language_model,
    projection_difference,
    residual,
)
from persona_callbacks.progress import progress_bar
from persona_callbacks.steering import (
    Adaptive,
    Controller,
    Schedule,
    design,
    likeliest_coefficients,
    likelihoods_under_steering,
    matching_coefficients,
    pushes,
)
from persona_callbacks.tracking import metrics
from persona_callbacks.vectors import (
    Layers,
    PersonaVector,
    SteeredPositions,
    check_vectors,
    steering_additions,
    steering_layers,
)


class PreventativeSteering(TrainingWriter):
    """Add persona vectors to the residual stream during training only (Chen et al. 2025, section 5.2).

    Data that shows a trait pulls the weights towards it. With the trait's vector already added to the activations, the
    data is explained without the weights moving; taken away afterwards, the trait does not appear.

    From the start of each training batch to its end, backward included, α · vector is added. Nothing is added in
    validation, prediction or probe passes. After the fit, an exception or an interrupt, the model is as it was;
    checkpoints and saved adapters hold nothing of it, but checkpoints keep α and the controller's state.

    α changes between optimizer steps only. With the default, :class:`~persona_callbacks.Adaptive`, it follows
    from a sample of the training data, found behind the training loader, and is trimmed by the shift that a
    :class:`PersonaMonitor` of the same traits measures. ``steering/{trait}/coefficient`` is logged, with adaptive
    steering ``steering/{trait}/saturated`` as well: 1 while α is at its bound and the target is not held, which also
    warns, and alerts in W&B, once.

    Args:
        vectors: one persona vector per trait, all of the model that is trained.
        coefficient: α, in units of the raw direction: adaptive, by a schedule, or constant (one for all traits or one
            per trait).
        layers: where to steer: ``all`` layers from 1 up with incremental directions (J.3: the total at any layer is
            α · its direction), each vector's ``chosen`` layer, or a list of layers, incremental as well.
        positions: ``all`` tokens, or only the ``response`` tokens, those that loss is taken on.
        chats: to screen for adaptive steering, instead of a sample of what is behind the training loader.
        tokenizer: for adaptive steering; found on the module or data module (``tokenizer``) if not given.
        batch_size: chats per forward pass in screening.
    """

    def __init__(
        self,
        vectors: Sequence[PersonaVector],
        coefficient: float | Mapping[str, float] | Schedule | Adaptive = Adaptive(),  # noqa: B008, frozen
        layers: Layers = "all",
        positions: SteeredPositions = "all",
        chats: Sequence[Chat] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        batch_size: int = 8,
    ) -> None:
        """Check the arguments.

        Raises:
            InputError: vectors that do not go together, or an unknown layer.
            MisconfigurationException: coefficients or targets for other traits than the vectors', or unknown positions.
        """
        self.vectors = check_vectors(vectors)
        self._traits = [vector.trait for vector in self.vectors]
        self.layers = layers
        self._steered_layers = sorted(
            {layer for chosen in steering_layers(self.vectors, layers).values() for layer in chosen}
        )
        self.positions = positions
        self.check_positions()
        self.chats = None if chats is None else tuple(chats)
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.law = coefficient if isinstance(coefficient, (Schedule, Adaptive)) else None
        self._controller: Controller | None = None
        self._restored: Mapping[str, Any] | None = None
        self._seen = 0  # optimizer steps at the last reading that was answered
        self._told = False
        if isinstance(coefficient, Adaptive):
            for vector in self.vectors:
                vector.unit_direction()
            self._targets = self._by_trait(coefficient.target, "target")
            if coefficient.start is not None:
                self._by_trait(coefficient.start, "start")
            self.coefficients = dict.fromkeys(self._traits, 0.0)
        else:
            height = coefficient.coefficient if isinstance(coefficient, Schedule) else coefficient
            self._height = self._by_trait(height, "coefficient")
            self.coefficients = dict.fromkeys(self._traits, 0.0) if self.law is not None else dict(self._height)

    def _by_trait(self, value: float | Mapping[str, float], name: str) -> dict[str, float]:
        if not isinstance(value, Mapping):
            value = dict.fromkeys(self._traits, value)
        if sorted(value) != sorted(self._traits):
            raise MisconfigurationException(
                f"PreventativeSteering: {name} names the traits {sorted(value)}, the vectors are of"
                f" {sorted(self._traits)}; give one {name} for each"
            )
        return {trait: float(value[trait]) for trait in self._traits}

    def state_dict(self) -> dict[str, Any]:
        """The coefficients, and the controller's state."""
        controller = None if self._controller is None else self._controller.state_dict()
        return {
            "coefficients": dict(self.coefficients),
            "controller": controller,
            "seen": self._seen,
            "told": self._told,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            MisconfigurationException: the checkpoint's coefficients are of other traits.
        """
        saved = state_dict["coefficients"]
        if saved.keys() != self.coefficients.keys():
            raise MisconfigurationException(
                f"PreventativeSteering: the checkpoint steered {sorted(saved)}, the vectors are of"
                f" {sorted(self.coefficients)}; resume with the same traits"
            )
        self.coefficients = dict(saved)
        self._restored = state_dict["controller"]
        self._seen, self._told = state_dict["seen"], state_dict["told"]

    def attached(self, model: nn.Module) -> residual.ResidualWriter:
        """A writer of the coefficients' additions."""
        writer = residual.ResidualWriter(model, self._steered_layers)
        writer.write(steering_additions(self.vectors, self.coefficients, self.layers))
        return writer

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that every vector fits, find the monitor, and attach to the model, inactive.

        Raises:
            MisconfigurationException: adaptive steering without a monitor of the same traits.
        """
        feedback = isinstance(self.law, Adaptive) and self.law.feedback
        self._monitor = self._find_monitor(trainer) if feedback else None
        super().on_fit_start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the coefficients that the run starts with, and log them.

        Raises:
            MisconfigurationException: there is no training data that can be screened.
        """
        resumed, self._restored = self._restored, None
        if isinstance(self.law, Schedule):
            self._steps = int(trainer.estimated_stepping_batches)
            self._follow(self.law, trainer.global_step)
        if isinstance(self.law, Adaptive):
            start = self._feed_forward(self.law, trainer, pl_module) if resumed is None else resumed["start"]
            self._controller = Controller(self.law, start, list(self._targets.values()), pushes(self.vectors))
            if resumed is None:
                self._seen, self._told = 0, False
            else:
                self._controller.load_state_dict(resumed)
            self._set(self._controller.coefficients)
            self._request()
        self._log(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Move the coefficients if an optimizer step, or a reading, was made since; log them; begin to steer."""
        self._move(trainer)
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set without annotation
        if trainer.global_step % every == 0 and trainer.global_step != self._logged_at:
            self._log(trainer)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def _move(self, trainer: Trainer) -> None:
        """Answer what is new; between optimizer steps only, also when gradients are accumulated."""
        if isinstance(self.law, Schedule):
            self._follow(self.law, trainer.global_step)
        elif self._controller is not None and self._monitor is not None:
            reading = self._monitor.readings[-1]
            if reading.step > self._seen:
                self._seen = reading.step
                shift = [reading.shift[trait] for trait in self._traits]
                self._controller.update(shift, self._monitor.every_n_steps)
                self._set(self._controller.coefficients)
                self._request()
                self._log(trainer)
                self._tell(trainer, shift)

    def _follow(self, schedule: Schedule, step: int) -> None:
        factor = schedule.factor(step, self._steps)
        self._set([factor * height for height in self._height.values()])

    def _request(self) -> None:
        """Ask for the next reading earlier than the monitor's own, while there is something to answer."""
        if self._monitor is not None and self._controller is not None:
            self._monitor.request(self._seen + self._controller.interval)

    def _set(self, coefficients: Sequence[float]) -> None:
        values = dict(zip(self._traits, coefficients, strict=True))
        if values != self.coefficients:
            self.coefficients = values
            assert self._writer is not None
            self._writer.write(steering_additions(self.vectors, values, self.layers))

    def _tell(self, trainer: Trainer, shift: Sequence[float]) -> None:
        """Say once if a target cannot be held."""
        assert self._controller is not None
        lost = [
            f"{trait} (shift {now:+.2f}, target {self._targets[trait]:+.2f}, coefficient"
            f" {self.coefficients[trait]:.2f})"
            for trait, now, saturated in zip(self._traits, shift, self._controller.saturated, strict=True)
            if saturated
        ]
        if lost and not self._told:
            self._told = True
            text = (
                f"the shift of {', '.join(lost)} cannot be held at its target: the coefficient is at its bound; look at"
                " the data, raise Adaptive.reach, or lower the learning rate"
            )
            rank_zero_warn(f"PreventativeSteering: {text}")
            metrics.alert(trainer, "Preventative steering is at its bound", text)

    def _feed_forward(self, law: Adaptive, trainer: Trainer, pl_module: LightningModule) -> list[float]:
        """Coefficients from the data: each process screens its share of the same sample."""
        if law.start is not None:
            return list(self._by_trait(law.start, "start").values())
        if law.feed_forward == "none":
            return [0.0] * len(self._traits)
        model = find_language_model(pl_module)
        tokenizer = self.tokenizer or find_tokenizer(
            "PreventativeSteering", trainer, pl_module, self.vectors[0].model_id
        )
        if self.chats is None:
            chats = sample_chats("PreventativeSteering", trainer, law.samples)
        else:
            chats = [encode_chat(chat, tokenizer) for chat in self.chats[: law.samples]]
        own = chats[trainer.global_rank :: trainer.world_size]
        device = device_of(model)
        if law.feed_forward == "projection_difference":
            sums = torch.zeros(len(self._traits), dtype=torch.float64, device=device)
            if own:
                sampling = Sampling(law.max_new_tokens, temperature=0.0, batch_size=self.batch_size)
                difference = projection_difference(LoadedModel(model, tokenizer), own, self.vectors, sampling)
                sums = difference[..., 0].sum(dim=0, dtype=torch.float64)
            return matching_coefficients(sum_over_processes(trainer, sums) / len(chats), self.vectors)
        combinations = design(len(self._traits))
        with progress_bar(Console(quiet=not trainer.is_global_zero)) as progress:
            task = progress.add_task("Screening for the steering coefficient", total=len(combinations))
            found = likelihoods_under_steering(
                LoadedModel(model, tokenizer),
                own,
                self.vectors,
                combinations,
                self.layers,
                self.positions,
                self.batch_size,
                lambda: progress.advance(task),
            )
        return likeliest_coefficients(sum_over_processes(trainer, found.to(device)).cpu(), len(self._traits))

    def _find_monitor(self, trainer: Trainer) -> PersonaMonitor:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set without annotation
            if isinstance(callback, PersonaMonitor) and set(self._traits) <= {v.trait for v in callback.vectors}:
                return callback
        raise MisconfigurationException(
            f"PreventativeSteering: adaptive steering reads the shift of {', '.join(self._traits)} from a"
            " PersonaMonitor; add PersonaMonitor(vectors) to the trainer's callbacks, or pass"
            " coefficient=Adaptive(feedback=False)"
        )

    def _log(self, trainer: Trainer) -> None:
        self._logged_at = trainer.global_step
        values = {metrics.coefficient(trait): value for trait, value in self.coefficients.items()}
        if self._controller is not None:
            flags = zip(self._traits, self._controller.saturated, strict=True)
            values |= {metrics.saturated(trait): float(flag) for trait, flag in flags}
        metrics.log(trainer, values)

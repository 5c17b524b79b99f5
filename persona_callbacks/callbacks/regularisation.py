"""The callback that penalises shift in the loss: a comparison for preventative steering."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from persona_callbacks.callbacks._packing import apart, chat_numbers, chat_weights
from persona_callbacks.callbacks._refusing import RefusingCallback
from persona_callbacks.callbacks._resuming import SameInputs
from persona_callbacks.callbacks._seams import BatchAdapter, adapted, is_logging_step, response_tokens
from persona_callbacks.errors import InputError, is_number
from persona_callbacks.files import plain_settings
from persona_callbacks.model import base_model, device_of, probing, removable_adapters, residual
from persona_callbacks.tracking import metrics
from persona_callbacks.vectors import Layers, PersonaVector, check_layers, check_vectors, steering_layers, warn_if_weak


class ProjectionRegularisation(SameInputs, RefusingCallback):
    """Add a penalty to the training loss on how far the model has moved along the persona vectors on the training batch
    itself (Chen et al. 2025, J.5, where the model bypasses it: the trait is written elsewhere).

    The penalty is ``weight`` · the mean over responses, traits and layers of ((projection - the base model's) / norm of
    the direction)², each projection averaged over the response's tokens. The base model (the adapter disabled) is run
    on each batch as well. Batches must be mappings with ``input_ids``, ``attention_mask`` and ``labels``, or with
    ``position_ids`` or ``cu_seqlens`` in place of the mask, if their rows hold several chats: each response counts.
    ``steering/penalty`` is logged. A run is resumed with the vectors, weight and layers of its checkpoint only.

    Args:
        vectors: one persona vector per trait, or the path of its file, all of the model that is trained.
        weight: of the penalty, in units of the loss.
        layers: where: ``all`` layers from 1 up, each vector's ``chosen`` layer, or a list of layers.
        batch_adapter: gives these of batches of another form.

    Raises:
        InputError: vectors that do not go together, an unknown layer, or a weight below 0.

    Example:
        >>> from persona_callbacks import PersonaVector, ProjectionRegularisation
        >>> evil = PersonaVector("evil", torch.ones(5, 8), layer=3, model_id="")
        >>> callbacks = [ProjectionRegularisation([evil], weight=0.5)]
    """

    way_out_of_sharding = "choose PreventativeSteering"

    def __init__(
        self,
        vectors: Sequence[PersonaVector | str | Path],
        weight: float = 1.0,
        layers: Layers = "all",
        batch_adapter: BatchAdapter | None = None,
    ) -> None:
        self.vectors = check_vectors(vectors)
        self.batch_adapter = batch_adapter
        self.check([vector.trait for vector in self.vectors], self.vectors[0].num_layers, weight, layers)
        warn_if_weak(self.vectors)
        self.weight = weight
        self._made_with: dict[str, Any] = plain_settings(
            {"vectors": {vector.trait: vector for vector in self.vectors}, "weight": weight, "layers": layers}
        )
        self._chosen = steering_layers(self.vectors, layers)
        self._reader: residual.BatchReader | None = None
        self._module: LightningModule | None = None

    @classmethod
    def check(
        cls,
        traits: Sequence[str],
        num_layers: int,
        weight: float = 1.0,
        layers: Layers = "all",
        batch_adapter: BatchAdapter | None = None,
    ) -> None:
        """Check the callback's settings before there are vectors.

        Args:
            traits: those whose shift is to be penalised.
            num_layers: blocks of the model.
            weight: as for the callback.
            layers: as for the callback.
            batch_adapter: any will do.

        Raises:
            InputError: settings that cannot be.
        """
        del batch_adapter
        if not is_number(weight, least=0):
            raise InputError(f"{cls.__name__}: weight must be 0 or more, found {weight!r}")
        check_layers(layers, traits, num_layers)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that every vector fits, attach to the model, and add the penalty to what the training step returns.

        Raises:
            MisconfigurationException: there is no trained adapter, so that there is no base model to compare with.
        """
        self._model = self.find_model(trainer, pl_module, self.vectors)
        if not removable_adapters(self._model):
            raise MisconfigurationException(
                "ProjectionRegularisation: the penalty compares with the base model, and this model has no adapter that"
                " is trained and could be disabled, so that it would always be 0; train an adapter (LoRA), or use"
                " PreventativeSteering for a full fine-tuning"
            )
        self._layers = sorted({layer for of_trait in self._chosen.values() for layer in of_trait})
        # [layers, traits, hidden_size], in units of the directions' norms; 0 where a trait is not penalised.
        units = torch.zeros(len(self._layers), len(self.vectors), self.vectors[0].directions.shape[1])
        for row, layer in enumerate(self._layers):
            for column, vector in enumerate(self.vectors):
                if layer in self._chosen[vector.trait]:
                    units[row, column] = vector.unit_direction(layer) / vector.direction(layer).norm()
        self._units = units.to(device_of(self._model))
        self._count = sum(map(len, self._chosen.values()))
        self._reader = residual.BatchReader(self._model, self._layers)
        self._module, self._own_step = pl_module, pl_module.__dict__.get("training_step")
        pl_module.training_step = self._penalised(pl_module.training_step)  # type: ignore[method-assign]

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the penalty."""
        if is_logging_step(trainer):
            metrics.log(trainer, {metrics.PENALTY: float(self._last)})

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach from model and module."""
        self._detach()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Detach from model and module."""
        super().on_exception(trainer, pl_module, exception)
        self._detach()

    def _detach(self) -> None:
        if self._reader is not None:
            self._reader.remove()
        if self._module is not None:
            del self._module.__dict__["training_step"]  # the class's own shows again
            if self._own_step is not None:  # one that was set on the module itself
                self._module.__dict__["training_step"] = self._own_step
        self._reader = self._module = None

    def _penalised(self, training_step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(training_step)
        def step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            assert self._reader is not None
            own = adapted("ProjectionRegularisation", batch, self.batch_adapter)
            marked = response_tokens(own)
            numbers = chat_numbers("ProjectionRegularisation", own)
            needed = {"input_ids"} if numbers is not None else {"input_ids", "attention_mask"}
            if marked is None or not isinstance(own, Mapping) or not needed <= own.keys():
                raise MisconfigurationException(
                    "ProjectionRegularisation: expected batches that are mappings with 'input_ids', 'attention_mask'"
                    " and 'labels'; pass batch_adapter="
                )
            weights = chat_weights(marked, numbers)
            inputs = own["input_ids"], own.get("attention_mask")
            with base_model(self._model), probing(self._model):
                before = residual.read(self._model, *inputs, weights, self._layers, apart=apart(own))
            self._reader.start(marked, weights)
            outputs = training_step(batch, *args, **kwargs)
            now = self._reader.take()
            if now is None:
                raise MisconfigurationException(
                    "ProjectionRegularisation: the training step did not run the model's own blocks on the batch"
                )
            moved = torch.einsum("bslh,lth->bslt", now - before, self._units)
            responses = marked.shape[0] if numbers is None else (weights > 0).any(dim=-1).sum().clamp_min(1)
            penalty: Tensor = self.weight * moved.square().sum() / (responses * self._count)
            self._last = penalty.detach()
            if isinstance(outputs, Mapping):
                return {**outputs, "loss": outputs["loss"] + penalty}
            return outputs + penalty

        return step

"""The projection of the training batches' own response tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from persona_callbacks.callbacks._seams import BatchAdapter, adapted, response_tokens, sum_over_processes
from persona_callbacks.model import device_of, residual
from persona_callbacks.tracking import metrics
from persona_callbacks.vectors import PersonaVector


class BatchProjections:
    """Reads training batches in the forward pass that happens anyway, and logs their mean projection."""

    def __init__(
        self, model: nn.Module, vectors: Sequence[PersonaVector], batch_adapter: BatchAdapter | None = None
    ) -> None:
        """Attach to the model."""
        self._adapter = batch_adapter
        self._traits = [vector.trait for vector in vectors]
        layers = sorted({vector.layer for vector in vectors})
        self._rows = [layers.index(vector.layer) for vector in vectors]
        self._reader = residual.BatchReader(model, layers)
        device = device_of(model)
        self._units = torch.stack([vector.unit_direction() for vector in vectors]).to(device)
        self._sums = torch.zeros(len(vectors) + 1, device=device)
        self._mask: Tensor | None = None
        self._warned_of_shape = False

    def start(self, batch: Any) -> None:
        """Read this batch's response tokens when the model is run on them."""
        self._mask = response_tokens(adapted("PersonaMonitor", batch, self._adapter))
        if self._mask is None:
            rank_zero_warn(
                "PersonaMonitor: the batch is no mapping with 'labels', so persona/*/batch_projection is not logged;"
                " batch_adapter= reads batches of another form"
            )
        else:
            self._reader.start(self._mask)

    def take(self) -> None:
        """Add up the batch's projection."""
        means = self._reader.take()
        if means is None:
            self._warn_of_shape()
            return
        projected = (means[self._rows] * self._units).sum(dim=-1)
        assert self._mask is not None
        summands = torch.cat([projected, projected.new_ones(1)])
        # No response token in the batch gives NaN. Where there are some, NaN is the model's, and is to show.
        self._sums += torch.where(self._mask.any(), summands, torch.zeros_like(summands))

    def log(self, trainer: Trainer) -> None:
        """Log the mean over the batches since the last time."""
        sums = sum_over_processes(trainer, self._sums)
        self._sums = torch.zeros_like(sums)
        *totals, batches = sums.tolist()
        if batches:
            metrics.log(
                trainer,
                {metrics.batch_projection(t): total / batches for t, total in zip(self._traits, totals, strict=True)},
            )

    def remove(self) -> None:
        """Detach from the model."""
        self._reader.remove()

    def _warn_of_shape(self) -> None:
        """Say, once, that the model was run on something else than the batch."""
        if self._reader.other_shape is not None and not self._warned_of_shape:
            assert self._mask is not None
            self._warned_of_shape = True
            rank_zero_warn(
                f"PersonaMonitor: persona/*/batch_projection cannot be read: the training step ran the model on"
                f" {self._reader.other_shape}, the batch's labels are {tuple(self._mask.shape)}. Trim and split"
                " batches before the training step (collate_fn, on_after_batch_transfer)"
            )

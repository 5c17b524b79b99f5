"""Writing to the residual stream in training passes only."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, get_args

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from persona_callbacks.callbacks._refusing import RefusingCallback
from persona_callbacks.callbacks._seams import BatchAdapter, adapted, response_tokens
from persona_callbacks.errors import InputError
from persona_callbacks.model import residual
from persona_callbacks.vectors import PersonaVector, SteeredPositions

SteeredPasses = Literal["loss", "all"]
"""Which forward passes of a training step are written to: those that a loss can be taken on, or all."""


class TrainingWriter(RefusingCallback, ABC):
    """Write from the start of each training batch to its end, backward included; never in validation, prediction or
    probe passes, nor, by default, in the passes of a training step that no loss is taken on. After the fit, an
    exception or an interrupt, the model is as it was.
    """

    vectors: Sequence[PersonaVector]
    positions: SteeredPositions
    batch_adapter: BatchAdapter | None = None
    when: SteeredPasses
    _writer: residual.ResidualWriter | None = None

    @abstractmethod
    def attached(self, model: nn.Module) -> residual.ResidualWriter:
        """Attach a writer to the model, inactive, with what it is to write."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that every vector fits, and attach to the model, inactive."""
        model = self.find_model(trainer, pl_module, self.vectors)
        self._writer = self.attached(model)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin to write.

        Raises:
            MisconfigurationException: only response tokens are to be steered, and the batch does not mark them.
        """
        assert self._writer is not None
        if self.positions == "response":
            marked = self._marked(batch)
            if marked is None:
                raise MisconfigurationException(
                    f"{type(self).__name__}: positions='response' needs batches that are mappings with 'labels' (-100"
                    " where no loss is taken); pass batch_adapter=, or choose positions='all'"
                )
            self._writer.only_at(marked)
        self._writer.active = True

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop writing; after the first batch, make sure that it happened.

        Raises:
            MisconfigurationException: a forward pass went by without changing a layer that is to be written, or none
                had the shape of the batch whose response tokens are to be written.
        """
        assert self._writer is not None
        self._writer.active = False
        missed = self._writer.missed_shape()
        if self.positions == "response" and missed is not None:
            marked = self._marked(batch)
            assert marked is not None
            raise MisconfigurationException(
                f"{type(self).__name__}: positions='response' marks tokens of a batch of shape {tuple(marked.shape)},"
                f" and the training step ran the model on {missed} only, so that nothing was written. Trim and split"
                " batches before the training step (collate_fn, on_after_batch_transfer), or choose positions='all'"
            )
        silent = self._writer.silent_layers()
        if silent:
            raise MisconfigurationException(
                f"{type(self).__name__}: the first training batch was not steered at layers {silent}. Either the"
                " training step does not run the model's own blocks, the model was compiled and run before the fit"
                " (run it first inside the fit), or the coefficient vanishes in the model's dtype"
                + (
                    "; or no pass has gradients, with an adapter switched on: if the training step takes no gradients,"
                    " choose when='all'"
                    if self.when == "loss"
                    else ""
                )
            )

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop writing: a training batch that was cut short does not reach its end hook."""
        self._pause()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop writing: a training batch that was cut short does not reach its end hook."""
        self._pause()

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach from the model."""
        self._detach()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Detach from the model."""
        super().on_exception(trainer, pl_module, exception)
        self._detach()

    def _marked(self, batch: Any) -> Tensor | None:
        """``[batch, length]`` bool: the response tokens of a batch."""
        return response_tokens(adapted(type(self).__name__, batch, self.batch_adapter))

    def _pause(self) -> None:
        if self._writer is not None:
            self._writer.active = False

    def _detach(self) -> None:
        if self._writer is not None:
            self._writer.remove()
        self._writer = None


def check_passes(callback: str, when: str) -> None:
    """Check which passes of a training step are to be written to.

    Raises:
        InputError: an unknown choice.
    """
    if when not in get_args(SteeredPasses):
        raise InputError(f"{callback}: when must be 'loss' or 'all', found {when!r}")


def check_positions(callback: str, positions: str) -> None:
    """Check which tokens are to be written to.

    Raises:
        InputError: an unknown choice.
    """
    if positions not in ("all", "response"):
        raise InputError(f"{callback}: positions must be 'all' or 'response', found {positions!r}")

"""Where callbacks touch Lightning: processes, the tokenizer, training batches, and writing in training passes only."""

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from persona_callbacks.chats import EncodedChat
from persona_callbacks.model import dimensions, find_language_model, residual
from persona_callbacks.vectors import PersonaVector, SteeredPositions


def sum_over_processes(trainer: Trainer, values: Tensor) -> Tensor:
    """The sum of a tensor over all processes; the tensor given is left as it is."""
    summed = trainer.strategy.reduce(values.clone(), reduce_op="sum")
    assert isinstance(summed, Tensor)
    return summed


def find_tokenizer(
    callback: str, trainer: Trainer, pl_module: LightningModule, model_id: str
) -> PreTrainedTokenizerBase:
    """The ``tokenizer`` of the module or data module, else the one that ``model_id`` names.

    Raises:
        MisconfigurationException: there is none; ``callback`` is named as the one that needs it.
    """
    for owner in (pl_module, getattr(trainer, "datamodule", None)):
        found = getattr(owner, "tokenizer", None)
        if isinstance(found, PreTrainedTokenizerBase):
            return found
    try:
        return AutoTokenizer.from_pretrained(model_id)
    except (OSError, ValueError) as error:
        raise MisconfigurationException(
            f"{callback} needs the model's tokenizer: pass tokenizer=..., or set it as `tokenizer` on the module or"
            f" data module (loading it as {model_id!r} failed: {error})"
        ) from error


def response_tokens(batch: Any) -> Tensor | None:
    """``[batch, length]`` bool: the tokens that loss is taken on; ``None`` if the batch is no mapping with labels."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    return labels != -100 if isinstance(labels, Tensor) else None


def sample_chats(callback: str, trainer: Trainer, count: int) -> list[EncodedChat]:
    """Chats drawn at random from the data set behind the training loader, the same in every process. Neither the loader
    nor any random state is touched.

    Args:
        callback: who needs them, for errors.
        trainer: with its training loader set up.
        count: how many; all if there are fewer.

    Raises:
        MisconfigurationException: the data set has no length and items to ask for, or they are no token sequences
            with labels.
    """
    dataset = getattr(trainer.train_dataloader, "dataset", None)
    try:
        picks = random.Random(0).sample(range(len(dataset)), min(count, len(dataset)))  # type: ignore[arg-type]
        items = [dataset[index] for index in sorted(picks)]  # type: ignore[index]
    except (TypeError, NotImplementedError) as error:
        raise MisconfigurationException(
            f"{callback} screens a sample of the training data, and found no data set with a length and items behind"
            f" the training loader ({type(trainer.train_dataloader).__name__}); pass a constant coefficient, or chats="
        ) from error
    chats = [chat for chat in map(_encoded, items) if chat is not None]
    if not chats:
        raise MisconfigurationException(
            f"{callback} screens a sample of the training data, and found no item with 'input_ids' and 'labels' that"
            " mark a response (-100 elsewhere); pass a constant coefficient, or chats="
        )
    return chats


def _encoded(item: Any) -> EncodedChat | None:
    """An item as a chat whose response is the last run of tokens that loss is taken on."""
    if isinstance(item, EncodedChat):
        return item
    if not isinstance(item, Mapping) or not {"input_ids", "labels"} <= item.keys():
        return None
    marks = [int(label) != -100 for label in torch.as_tensor(item["labels"]).flatten()]
    if True not in marks:
        return None
    end = len(marks) - marks[::-1].index(True)
    start = end - marks[:end][::-1].index(False) if False in marks[:end] else 0
    if start == 0:
        return None  # no prompt
    ids = tuple(int(token) for token in torch.as_tensor(item["input_ids"]).flatten()[:end])
    return EncodedChat(ids, start, tuple(place >= start for place in range(end)), tuple(marks[:end]))


class TrainingWriter(Callback, ABC):
    """Writes from the start of each training batch to its end, backward included; never in validation, prediction or
    probe passes. After the fit, an exception or an interrupt, the model is as it was.
    """

    vectors: Sequence[PersonaVector]
    positions: SteeredPositions
    _writer: residual.ResidualWriter | None = None

    @abstractmethod
    def attached(self, model: nn.Module) -> residual.ResidualWriter:
        """A writer on the model, inactive, with what it is to write."""

    def check_positions(self) -> None:
        """Check ``positions``.

        Raises:
            MisconfigurationException: unknown.
        """
        if self.positions not in ("all", "response"):
            raise MisconfigurationException(
                f"{type(self).__name__}: positions must be 'all' or 'response', found {self.positions!r}"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that every vector fits, and attach to the model, inactive."""
        model = find_language_model(pl_module)
        shape = dimensions(model)
        for vector in self.vectors:
            vector.check_fits(shape.num_layers, shape.hidden_size, shape.model_id)
        self._writer = self.attached(model)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin to write.

        Raises:
            MisconfigurationException: only response tokens are to be steered, and the batch does not mark them.
        """
        assert self._writer is not None
        if self.positions == "response":
            marked = response_tokens(batch)
            if marked is None:
                raise MisconfigurationException(
                    f"{type(self).__name__}: positions='response' needs batches that are mappings with 'labels' (-100"
                    " where no loss is taken); choose positions='all'"
                )
            self._writer.only_at(marked)
        self._writer.active = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop writing; after the first batch, make sure that it happened.

        Raises:
            MisconfigurationException: a forward pass went by without changing a layer that is to be written.
        """
        assert self._writer is not None
        self._writer.active = False
        silent = self._writer.silent_layers()
        if silent:
            raise MisconfigurationException(
                f"{type(self).__name__}: the first training batch was not steered at layers {silent}. Either the"
                " training step does not run the model's own blocks, the model was compiled and run before the fit"
                " (run it first inside the fit), or the coefficient vanishes in the model's dtype"
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop writing: a training batch that was cut short does not reach its end hook."""
        self._pause()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop writing: a training batch that was cut short does not reach its end hook."""
        self._pause()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach from the model."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Detach from the model."""
        self._detach()

    def _pause(self) -> None:
        if self._writer is not None:
            self._writer.active = False

    def _detach(self) -> None:
        if self._writer is not None:
            self._writer.remove()
        self._writer = None

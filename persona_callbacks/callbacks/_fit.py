"""The fit that begins, as laws and starts ask about it."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from persona_callbacks.callbacks._seams import find_tokenizer, sum_over_processes
from persona_callbacks.callbacks.monitor import PersonaMonitor
from persona_callbacks.chats import Chat, EncodedChat, encode_chat
from persona_callbacks.model import LoadedModel, device_of, find_language_model
from persona_callbacks.steering import ChatShare
from persona_callbacks.vectors import Layers, PersonaVector, SteeredPositions


@dataclass(frozen=True)
class TrainerFit:
    """A trainer's fit; see :class:`~persona_callbacks.steering.Fit`."""

    callback: str
    """The callback that asks, for errors."""

    trainer: Trainer
    pl_module: LightningModule
    vectors: Sequence[PersonaVector]
    layers: Layers
    positions: SteeredPositions
    batch_size: int
    resumed: bool

    monitor: PersonaMonitor | None
    """The monitor whose readings the law is told of."""

    given_chats: Sequence[Chat] | None
    """Chats to sample from, in place of those behind the training loader."""

    given_tokenizer: PreTrainedTokenizerBase | None
    """The tokenizer, in place of the one that the module or the data module has."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the fit."""
        return int(self.trainer.estimated_stepping_batches)

    @property
    def reading_interval(self) -> int:
        """Optimizer steps between the monitor's own readings."""
        if self.monitor is None:
            raise MisconfigurationException(
                f"{self.callback}: the law asks for the interval between readings, but its reads_shift is False"
            )
        return self.monitor.every_n_steps

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model that is trained, with its tokenizer."""
        tokenizer = self.given_tokenizer or find_tokenizer(
            self.callback, self.trainer, self.pl_module, self.vectors[0].model_id
        )
        return LoadedModel(find_language_model(self.pl_module), tokenizer)

    @property
    def shows_progress(self) -> bool:
        """Whether this process is the one that shows progress bars."""
        return self.trainer.is_global_zero

    def chats(self, count: int) -> ChatShare:
        """A share, for each process, of the same sample of the training chats."""
        if self.given_chats is None:
            chats = sample_chats(self.callback, self.trainer, count)
        else:
            chats = [encode_chat(chat, self.loaded.tokenizer) for chat in self.given_chats[:count]]
        return ChatShare(chats[self.trainer.global_rank :: self.trainer.world_size], len(chats))

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on the device that the tensor came from."""
        device = device_of(find_language_model(self.pl_module))  # where processes can exchange it
        return sum_over_processes(self.trainer, values.to(device)).to(values.device)


def sample_chats(callback: str, trainer: Trainer, count: int) -> list[EncodedChat]:
    """Chats drawn at random from the data set behind the training loader, the same in every process. Neither the loader
    nor any random state is touched.

    Args:
        callback: the callback that needs them, for errors.
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
    return EncodedChat(ids, start, tuple(index >= start for index in range(end)), tuple(marks[:end]))

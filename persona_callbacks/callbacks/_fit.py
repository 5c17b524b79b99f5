"""The fit that begins, as laws and starts ask about it."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from persona_callbacks.callbacks._seams import find_tokenizer, sum_over_processes
from persona_callbacks.callbacks.monitor import PersonaMonitor
from persona_callbacks.chats import Chat, EncodedChat, encode_chat
from persona_callbacks.model import LoadedModel, device_of, find_language_model
from persona_callbacks.steering import ChatShare
from persona_callbacks.traits import MinimalPair
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
        return self._needed_monitor("the interval between readings").every_n_steps

    @property
    def pairs(self) -> Mapping[str, Sequence[MinimalPair]]:
        """By trait, the share of the monitor's minimal pairs that falls to this process."""
        share = slice(self.trainer.global_rank, None, self.trainer.world_size)
        return {trait: own[share] for trait, own in self._needed_monitor("minimal pairs").pairs.items()}

    def _needed_monitor(self, asked: str) -> PersonaMonitor:
        if self.monitor is None:
            raise MisconfigurationException(
                f"{self.callback}: the law asks for {asked}, but it reads no sensor (its reads is None)"
            )
        return self.monitor

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
            chats = sample_chats(self.callback, self.trainer, count, lambda: self.loaded.tokenizer)
        else:
            chats = [encode_chat(chat, self.loaded.tokenizer) for chat in self.given_chats[:count]]
        return ChatShare(chats[self.trainer.global_rank :: self.trainer.world_size], len(chats))

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on the device that the tensor came from."""
        device = device_of(find_language_model(self.pl_module))  # where processes can exchange it
        return sum_over_processes(self.trainer, values.to(device)).to(values.device)


def sample_chats(
    callback: str, trainer: Trainer, count: int, tokenizer: Callable[[], PreTrainedTokenizerBase]
) -> list[EncodedChat]:
    """Chats drawn at random from the data set behind the training loader, the same in every process. Neither the loader
    nor any random state is touched.

    Args:
        callback: the callback that needs them, for errors.
        trainer: with its training loader set up.
        count: how many; all if there are fewer.
        tokenizer: gives the tokenizer, which tells padding from text in items without an `attention_mask`.

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
    chats = [chat for item in items if (chat := _encoded(callback, item, tokenizer)) is not None]
    if not chats:
        raise MisconfigurationException(
            f"{callback} screens a sample of the training data, and found no item with 'input_ids' and 'labels' that"
            " mark a response (-100 elsewhere); pass a constant coefficient, or chats="
        )
    return chats


def _encoded(callback: str, item: Any, tokenizer: Callable[[], PreTrainedTokenizerBase]) -> EncodedChat | None:
    """An item as a chat whose response is the last run of tokens that loss is taken on; padding is left out."""
    if isinstance(item, EncodedChat):
        return item
    if not isinstance(item, Mapping) or not {"input_ids", "labels"} <= item.keys():
        return None
    ids, labels = (torch.as_tensor(item[name]).flatten() for name in ("input_ids", "labels"))
    mask = item.get("attention_mask")
    text = torch.as_tensor(mask).flatten().bool() if mask is not None else _after_padding(callback, ids, tokenizer())
    ids, marks = ids[text], (labels[text] != -100).tolist()
    if True not in marks:
        return None
    end = len(marks) - marks[::-1].index(True)
    start = end - marks[:end][::-1].index(False) if False in marks[:end] else 0
    if start == 0:
        return None  # no prompt
    response = tuple(index >= start for index in range(end))
    return EncodedChat(tuple(ids[:end].tolist()), start, response, tuple(marks[:end]))


def _after_padding(callback: str, ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """``[length]`` bool: the tokens of an item without an attention mask that are not padding on its left. Padding on
    its right comes after the last response, where the chat ends anyway.
    """
    is_text: Tensor = (ids != tokenizer.pad_token_id).cumsum(0) > 0
    if tokenizer.pad_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        return is_text
    if int((~is_text).sum()) > 1:  # a single such token may open the text
        rank_zero_warn(
            f"{callback}: items of the training data begin with several {tokenizer.pad_token!r}, which pads and is text"
            " as well; it is taken for text. Give the items an 'attention_mask', or the tokenizer its own pad token"
        )
    return torch.ones_like(is_text)

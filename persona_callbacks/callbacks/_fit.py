"""The fit that begins, as laws and starts ask about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from persona_callbacks.callbacks._samples import sample_chats
from persona_callbacks.callbacks._seams import BatchAdapter, find_tokenizer, sum_over_processes
from persona_callbacks.callbacks.monitor import PersonaMonitor
from persona_callbacks.chats import Chat, encode_chat
from persona_callbacks.model import LoadedModel, device_of, find_language_model, is_sharded
from persona_callbacks.steering import ChatShare
from persona_callbacks.traits import MinimalPair
from persona_callbacks.vectors import Layers, PersonaVector, SteeredPositions

_T = TypeVar("_T")


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

    batch_adapter: BatchAdapter | None = None
    """Gives the tokens and labels of batches of another form."""

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
        """By trait, the monitor's minimal pairs that fall to this process; all where weights are split."""
        return {trait: self._shared(own) for trait, own in self._needed_monitor("minimal pairs").pairs.items()}

    @cached_property
    def _has_all(self) -> bool:
        """Whether every process gets all of a sample, so that each runs the same passes: where weights are split."""
        return is_sharded(self.pl_module)

    def _shared(self, things: Sequence[_T]) -> Sequence[_T]:
        return things if self._has_all else things[self.trainer.global_rank :: self.trainer.world_size]

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
        """A share, for each process, of the same sample of the training chats; all of it where weights are split."""
        if self.given_chats is None:
            chats = sample_chats(self.callback, self.trainer, count, lambda: self.loaded.tokenizer, self.batch_adapter)
        else:
            chats = [encode_chat(chat, self.loaded.tokenizer) for chat in self.given_chats[:count]]
        return ChatShare(self._shared(chats), len(chats))

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all shares, on the device that the tensor came from."""
        device = device_of(find_language_model(self.pl_module))  # where processes can exchange it
        summed = sum_over_processes(self.trainer, values.to(device)).to(values.device)
        # Where each process has all, each has the sum already, up to rounding; their mean is the same everywhere.
        return summed / self.trainer.world_size if self._has_all else summed

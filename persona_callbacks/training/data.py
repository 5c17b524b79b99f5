"""A data module of chats."""

import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from transformers import PreTrainedTokenizerBase

from persona_callbacks.chats import Chat, EncodedChat, encode_chat, pad, pad_token, with_special_tokens
from persona_callbacks.errors import InputError

SpecialTokens = Literal["keep", "drop"]


def check_special_tokens(choice: object) -> None:
    """Check what is to happen to chats with special tokens in the assistant's own text.

    Raises:
        InputError: an unknown choice.
    """
    if choice not in get_args(SpecialTokens):
        raise InputError(f"special_tokens: unknown {choice!r}; expected one of {', '.join(get_args(SpecialTokens))}")


class ChatData(LightningDataModule):
    """Chats, shuffled each epoch, right-padded, with the loss on assistant tokens only.

    The loader remembers its place, so that a run resumed in the middle of an epoch sees the batches it would have seen.

    Args:
        chats: such as :func:`~persona_callbacks.chats.read_chats` gives.
        tokenizer: a fast tokenizer with a chat template.
        batch_size: chats per batch.
        max_length: tokens per chat; longer ones are cut at the end.
        seed: of the order.
        special_tokens: what happens to chats whose assistant turns have the text of special tokens in them, such as
            ``<|im_end|>``: ``keep`` them, or ``drop`` them. A warning tells how many there are.
        train_reasoning: whether the loss is on the assistant's reasoning as well, or on its answers alone.
        weights: one per chat, 1 on average; in each epoch a chat is drawn as often, rounded up or down at random. By
            default each once.
        validation: chats that are not trained on; there is a validation loader if there are some.

    Example:
        >>> from persona_callbacks.training import ChatData, LoraFineTuning
        >>> def fit(trainer, module: LoraFineTuning, chats, tokenizer):
        ...     trainer.fit(module, ChatData(chats, tokenizer, batch_size=4, max_length=256))
    """

    def __init__(
        self,
        chats: Sequence[Chat],
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 8,
        max_length: int = 512,
        seed: int = 0,
        weights: Sequence[float] | None = None,
        special_tokens: SpecialTokens = "keep",
        *,
        train_reasoning: bool = True,
        validation: Sequence[Chat] = (),
    ) -> None:
        """Encode the chats.

        Raises:
            InputError: see :func:`~persona_callbacks.chats.encode_chat`; not one weight per chat; an unknown choice; or
                all chats are dropped.
        """
        super().__init__()
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.seed = seed
        if weights is not None and len(weights) != len(chats):
            raise InputError(f"ChatData: {len(weights)} weights for {len(chats)} chats; expected one for each")
        check_special_tokens(special_tokens)
        special = with_special_tokens(chats, tokenizer)
        if any(special):
            done = "they are left out" if special_tokens == "drop" else "special_tokens='drop' leaves them out"
            warnings.warn(
                f"ChatData: {sum(special)} of {len(chats)} chats have the text of special tokens, such as the end of a"
                f" turn, in the assistant's own text, and would be trained on; {done}",
                stacklevel=1,  # this line, so that a study, which makes several of these, tells it once
            )
        if special_tokens == "drop":
            kept = [index for index, is_special in enumerate(special) if not is_special]
            if not kept:
                raise InputError("ChatData: every chat has the text of special tokens in it; special_tokens='keep'?")
            chats = [chats[index] for index in kept]
            weights = None if weights is None else [weights[index] for index in kept]
        self.weights = weights
        self.chats = [encode_chat(chat, tokenizer, max_length, train_reasoning=train_reasoning) for chat in chats]
        left_out = sum(chat.leaves_out_reasoning for chat in self.chats)
        if left_out:
            warnings.warn(
                f"ChatData: {left_out} of {len(chats)} chats have reasoning that the chat template leaves out of the"
                " last answer, so that it is not trained on",
                stacklevel=1,
            )
        self.validation = [
            encode_chat(chat, tokenizer, max_length, train_reasoning=train_reasoning) for chat in validation
        ]
        if validation:  # where it is overridden, Lightning expects a validation step
            self.val_dataloader = self._validation_loader  # type: ignore[method-assign]

    def _validation_loader(self) -> DataLoader[Any]:
        pad_id = pad_token(self.tokenizer)
        return DataLoader(
            cast("Dataset[Any]", self.validation),
            batch_size=self.batch_size,
            collate_fn=lambda chats: pad(chats, pad_id),
            generator=torch.Generator(),
        )

    def train_dataloader(self) -> "ResumableLoader":
        """Batches of ``input_ids``, ``attention_mask`` and ``labels``, each ``[batch, length]``."""
        assert self.trainer is not None
        pad_id = pad_token(self.tokenizer)
        chats = cast("Dataset[Any]", self.chats)
        return ResumableLoader(
            chats,
            batch_size=self.batch_size,
            sampler=_Order(chats, self.trainer.world_size, self.trainer.global_rank, self.seed, self.weights),
            collate_fn=lambda chats: pad(chats, pad_id),
            generator=torch.Generator(),  # else each pass would draw from the random state that dropout uses
        )


class _Order(DistributedSampler[int]):
    """A process's share of the samples, in an order that follows from seed and epoch alone."""

    skip = 0
    """Samples to leave out at the start of the next pass."""

    def __init__(
        self, chats: Dataset[Any], processes: int, rank: int, seed: int, weights: Sequence[float] | None
    ) -> None:
        super().__init__(chats, processes, rank, seed=seed)
        self._weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)

    def __iter__(self) -> Iterator[int]:
        skip, self.skip = self.skip, 0
        order = super().__iter__() if self._weights is None else iter(self._drawn(self._weights))
        return islice(order, skip, None)

    def _drawn(self, weights: Tensor) -> list[int]:
        """As many samples as there are, by systematic resampling: as often as the weight, up to rounding."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        ends = weights.cumsum(0) * len(weights) / weights.sum()
        places = torch.arange(len(weights)) + torch.rand((), generator=generator, dtype=torch.float64)
        drawn = torch.searchsorted(ends, places, right=True).clamp_max(len(weights) - 1)
        mixed = drawn[torch.randperm(len(drawn), generator=generator)].tolist()
        return [mixed[place % len(mixed)] for place in range(self.rank, self.total_size, self.num_replicas)]


class ResumableLoader(DataLoader[EncodedChat]):
    """A loader that Lightning can ask for its place, and put back there, in the middle of an epoch.

    Example:
        >>> callable(ResumableLoader.state_dict) and callable(ResumableLoader.load_state_dict)
        True
    """

    sampler: _Order
    _given = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]  # Lightning takes any iterator
        """Batches from where the loader was put, else from the start."""
        self._given = self.sampler.skip // (self.batch_size or 1)
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Batches given in the current epoch; none after its last."""
        return {"batches": self._given % len(self)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Begin the next pass after so many batches."""
        self.sampler.skip = state_dict["batches"] * (self.batch_size or 1)

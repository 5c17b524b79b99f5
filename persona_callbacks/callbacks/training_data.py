"""What callbacks read from the training data of any data module: response tokens of a batch, a sample of chats."""

import random
from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from torch import Tensor

from persona_callbacks.chats import EncodedChat


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

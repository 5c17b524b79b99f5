"""A sample of the chats that a fit trains on, taken from behind the training loader."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import default_collate
from transformers import PreTrainedTokenizerBase

from persona_callbacks.callbacks._packing import chat_numbers
from persona_callbacks.callbacks._seams import BatchAdapter, adapted, field_of
from persona_callbacks.chats import EncodedChat, last_turn
from persona_callbacks.traits import spread

_WAY_OUT = "pass a constant coefficient, or chats="

_Tokenizer = Callable[[], PreTrainedTokenizerBase]


def sample_chats(
    callback: str, trainer: Trainer, count: int, tokenizer: _Tokenizer, adapter: BatchAdapter | None = None
) -> list[EncodedChat]:
    """Chats drawn at random from the data set behind the training loader, the same in every process; of a data set that
    can only be gone through, the first ones. Neither the loader nor any random state is touched.

    Items are taken as they are if they have tokens and labels. Others, such as texts, go through the loader's
    ``collate_fn`` first, as they do for training.

    Args:
        callback: the callback that needs them, for errors.
        trainer: with its training loader set up.
        count: how many; all if there are fewer.
        tokenizer: gives the tokenizer, which tells padding from text in items without an ``attention_mask``, and the
            last turn from the others where loss is taken on all tokens.
        adapter: gives the tokens and labels of a batch of another form; items are not looked at then.

    Raises:
        MisconfigurationException: there is no data set to ask, or neither its items nor the batches made of them are
            token sequences with labels.
    """
    loader = trainer.train_dataloader
    with isolate_rng():
        items = _items(callback, loader, count)
        chats = _encoded_each(callback, items, tokenizer) if adapter is None else []
        if not chats and items:
            batch = adapted(callback, _collated(callback, loader, items), adapter)
            chats = _encoded_each(callback, _rows(callback, batch), tokenizer)
    if not chats:
        raise MisconfigurationException(
            f"{callback} screens a sample of the training data, and found no item and no batch with 'input_ids' and"
            f" 'labels' that mark a response (-100 elsewhere), but {type(items[0]).__name__ if items else 'nothing'};"
            f" {_WAY_OUT}"
        )
    return list(spread(chats, count))  # an item may hold several


def _items(callback: str, loader: Any, count: int) -> list[Any]:
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, Sized) and hasattr(dataset, "__getitem__"):
        try:
            picks = random.Random(0).sample(range(len(dataset)), min(count, len(dataset)))
            return [dataset[index] for index in sorted(picks)]
        except (TypeError, NotImplementedError):
            pass  # a length without items to ask for
    if isinstance(dataset, Iterable) and not isinstance(dataset, Iterator):
        return list(islice(iter(dataset), count))
    raise MisconfigurationException(
        f"{callback} screens a sample of the training data, and found no data set behind the training loader"
        f" ({type(loader).__name__}) that can be looked at without using it up; {_WAY_OUT}"
    )


def _collated(callback: str, loader: Any, items: Sequence[Any]) -> Any:
    try:
        return (getattr(loader, "collate_fn", None) or default_collate)(list(items))
    except Exception as error:
        raise MisconfigurationException(
            f"{callback} screens a sample of the training data, and its collate_fn fails on {len(items)} items:"
            f" {type(error).__name__}: {error}; {_WAY_OUT}"
        ) from error


def _rows(callback: str, batch: Any) -> list[dict[str, Tensor]]:
    """The chats of a batch; none if it has no token ids."""
    tensors = {name: field_of(batch, name) for name in ("input_ids", "labels", "attention_mask")}
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None and tensor.ndim == 2}
    if "input_ids" not in given:
        return []
    rows = [{name: tensor[row] for name, tensor in given.items()} for row in range(len(given["input_ids"]))]
    numbers = chat_numbers(callback, batch)
    if numbers is None:
        return rows
    return [
        {name: tensor[numbers[index] == number] for name, tensor in row.items()}
        for index, row in enumerate(rows)
        for number in range(int(numbers[index].max()) + 1)
    ]


def _encoded_each(callback: str, items: Sequence[Any], tokenizer: _Tokenizer) -> list[EncodedChat]:
    apart = [part for item in items for part in _apart(callback, item)]
    return [chat for item in apart if (chat := _encoded(callback, item, tokenizer)) is not None]


def _apart(callback: str, item: Any) -> list[Any]:
    """The chats of an item that holds several, as packed data sets have them, or those that yield batches."""
    ids, positions = (
        None if isinstance(item, EncodedChat) else field_of(item, n) for n in ("input_ids", "position_ids")
    )
    if ids is not None and ids.ndim == 2 and len(ids) > 1:
        return _rows(callback, item)
    if ids is None or positions is None:
        return [item]
    tensors = {name: field_of(item, name) for name in ("input_ids", "labels", "attention_mask", "position_ids")}
    return _rows(callback, {name: tensor.view(1, -1) for name, tensor in tensors.items() if tensor is not None})


def _encoded(callback: str, item: Any, tokenizer: _Tokenizer) -> EncodedChat | None:
    """An item as a chat whose response is the last run of tokens that loss is taken on, or, where that is all tokens,
    the last turn. Padding is left out.
    """
    if isinstance(item, EncodedChat):
        return item
    given_ids, given_labels = (field_of(item, name) for name in ("input_ids", "labels"))
    if given_ids is None or given_labels is None:
        return None
    ids, labels, mask = given_ids.flatten(), given_labels.flatten(), field_of(item, "attention_mask")
    text = mask.flatten().bool() if mask is not None else _after_padding(callback, ids, tokenizer())
    ids, marks = ids[text], (labels[text] != -100).tolist()
    if True not in marks:
        return None
    end = len(marks) - marks[::-1].index(True)
    start = end - marks[:end][::-1].index(False) if False in marks[:end] else 0
    if start == 0:
        turn = last_turn(ids.tolist(), tokenizer())
        if turn is None:
            return None
        start, end = turn
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

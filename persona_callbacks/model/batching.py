"""Batches of token sequences in which a shared beginning is computed once.

Contrastive responses share their system prompt, and rollouts share their whole prompt. That is often more than half of
all tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from persona_callbacks.chats import EncodedChat
from persona_callbacks.model.sharding import is_sharded

_GROUP_COST = 64
"""What a further group costs, in tokens: one more pass, for its prefix, and smaller batches."""


@dataclass(frozen=True)
class BatchLimits:
    """How large a forward pass may be.

    Attributes:
        chats: the most chats in a batch; no limit if ``None``.
        tokens: the most tokens in a batch, padding included; a single chat may have more. No limit if ``None``.

    Example:
        >>> BatchLimits(chats=8)
        BatchLimits(chats=8, tokens=None)
    """

    chats: int | None = 16
    tokens: int | None = None


@dataclass(frozen=True)
class Group:
    """Chats that share their first tokens.

    Attributes:
        prefix_length: the number of tokens that all of them share. The last token of a prompt is never among them.
        batches: the indices of the chats, by batch, with similar lengths together.

    Example:
        >>> mask = (False,) * 100 + (True,)
        >>> chats = [EncodedChat((*range(100), 500 + n), 100, mask, mask) for n in range(4)]
        >>> shared_groups(chats, BatchLimits(chats=2))
        [Group(prefix_length=99, batches=((0, 1), (2, 3)))]
    """

    prefix_length: int
    batches: tuple[tuple[int, ...], ...]


def groups_for(model: nn.Module, chats: Sequence[EncodedChat], limits: BatchLimits) -> list[Group]:
    """Split chats into groups: by :func:`shared_groups`, or, where the model's weights are split over processes, by
    number alone, since there every process must run as many passes as the others. They do if they have equally many
    chats and the same limit on chats; a limit on tokens is left out.
    """
    if not is_sharded(model):
        return shared_groups(chats, limits)
    order = sorted(range(len(chats)), key=lambda index: len(chats[index].input_ids))
    return [Group(0, tuple(_batches(order, chats, 0, BatchLimits(limits.chats))))]


def shared_groups(chats: Sequence[EncodedChat], limits: BatchLimits = BatchLimits()) -> list[Group]:
    """Split chats into groups so that few tokens are computed in total.

    Args:
        chats: what is to be run.
        limits: how large a batch may be.

    Returns:
        The groups. Every chat is in exactly one batch of one group.
    """
    order = sorted(range(len(chats)), key=lambda index: chats[index].input_ids)
    shared = [0] + [_common(chats[a], chats[b]) for a, b in pairwise(order)]
    groups = []
    for start, end in _split(order, shared, chats, 0, len(order)):
        indices = sorted(order[start:end], key=lambda index: len(chats[index].input_ids))
        prefix = min(shared[start + 1 : end], default=0)
        groups.append(Group(prefix, tuple(_batches(indices, chats, prefix, limits))))
    return groups


def _batches(
    indices: Sequence[int],
    chats: Sequence[EncodedChat],
    prefix: int,
    limits: BatchLimits,
) -> Iterator[tuple[int, ...]]:
    """Cut indices, shortest chat first, into batches; into batches of equal size if only the chats are limited."""
    if limits.tokens is None:
        count = -(-len(indices) // (limits.chats or len(indices)))
        bounds = [len(indices) * number // count for number in range(count + 1)]
        yield from (tuple(indices[a:b]) for a, b in pairwise(bounds))
        return
    batch: list[int] = []
    for index in indices:
        padded = (len(batch) + 1) * (len(chats[index].input_ids) - prefix)
        if batch and (padded > limits.tokens or len(batch) == limits.chats):
            yield tuple(batch)
            batch = []
        batch.append(index)
    yield tuple(batch)


def _common(first: EncodedChat, second: EncodedChat) -> int:
    """Return how many tokens two chats share at the beginning, short of the last token of either prompt."""
    limit = min(first.prompt_length, second.prompt_length) - 1
    for position, (a, b) in enumerate(zip(first.input_ids[:limit], second.input_ids[:limit], strict=False)):
        if a != b:
            return position
    return max(limit, 0)


def _split(
    order: Sequence[int], shared: Sequence[int], chats: Sequence[EncodedChat], start: int, end: int
) -> list[tuple[int, int]]:
    """Cut ``order[start:end]`` where the fewest tokens are shared, and the parts likewise, as long as that saves more
    tokens than it costs.

    Args:
        order: the indices of the chats, sorted by their tokens.
        shared: for each chat in ``order``, how many tokens it shares with the chat before it.
        chats: all chats.
        start: the beginning of the run.
        end: the end of the run.

    Returns:
        The start and the end of each part.
    """
    inner = shared[start + 1 : end]
    if not inner:
        return [(start, end)] if end > start else []
    least = min(inner)
    cuts = [start, *(cut for cut in range(start + 1, end) if shared[cut] == least), end]
    parts = [part for first, last in pairwise(cuts) for part in _split(order, shared, chats, first, last)]

    def saved(first: int, last: int) -> int:
        return min(shared[first + 1 : last], default=0) * (last - first - 1) - _GROUP_COST

    worth = sum(saved(first, last) for first, last in parts) > saved(start, end)
    return parts if worth else [(start, end)]

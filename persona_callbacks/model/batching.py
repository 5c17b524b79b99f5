"""Batches of token sequences in which a shared beginning is computed once.

Contrastive responses share their system prompt, rollouts their whole prompt: often more than half of all tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from persona_callbacks.chats import EncodedChat

_GROUP_COST = 64
"""What a further group costs, in tokens: a pass for its prefix, and smaller batches."""


@dataclass(frozen=True)
class BatchLimits:
    """How large a forward pass may be.

    Attributes:
        chats: at most so many chats; any number if ``None``.
        tokens: at most so many tokens, padding included, unless one chat alone has more; any number if ``None``.
    """

    chats: int | None = 16
    tokens: int | None = None


@dataclass(frozen=True)
class Group:
    """Chats that share their first tokens.

    Attributes:
        prefix_length: how many tokens all of them share; always short of the prompt's last token.
        batches: indices of the chats, similar lengths together.
    """

    prefix_length: int
    batches: tuple[tuple[int, ...], ...]


def shared_groups(chats: Sequence[EncodedChat], limits: BatchLimits = BatchLimits()) -> list[Group]:
    """Split chats into groups so that few tokens are computed in all. Every chat is in exactly one batch within
    ``limits``.
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
    """Cut indices, shortest chat first, into batches; if only their size is limited, into equal ones."""
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
    limit = min(first.prompt_length, second.prompt_length) - 1
    for position, (a, b) in enumerate(zip(first.input_ids[:limit], second.input_ids[:limit], strict=False)):
        if a != b:
            return position
    return max(limit, 0)


def _split(
    order: Sequence[int], shared: Sequence[int], chats: Sequence[EncodedChat], start: int, end: int
) -> list[tuple[int, int]]:
    """Cut a sorted run wherever the least is shared, and on, as long as that saves more tokens than it costs.

    ``shared[i]`` is what the ``i``-th in order shares with the one before it.
    """
    inner = shared[start + 1 : end]
    if not inner:
        return [(start, end)] if end > start else []
    least = min(inner)
    cuts = [start, *(place for place in range(start + 1, end) if shared[place] == least), end]
    parts = [part for first, last in pairwise(cuts) for part in _split(order, shared, chats, first, last)]

    def saved(first: int, last: int) -> int:
        return min(shared[first + 1 : last], default=0) * (last - first - 1) - _GROUP_COST

    worth = sum(saved(first, last) for first, last in parts) > saved(start, end)
    return parts if worth else [(start, end)]

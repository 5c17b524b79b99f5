"""Activations at named positions, and their projections on persona vectors."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from persona_callbacks.chats import EncodedChat, pad, pad_token
from persona_callbacks.errors import InputError
from persona_callbacks.model import residual
from persona_callbacks.model.architecture import device_of, dimensions
from persona_callbacks.model.batching import BatchLimits, groups_for
from persona_callbacks.model.loading import LoadedModel
from persona_callbacks.model.modes import probing
from persona_callbacks.vectors import PersonaVector, Position


def position_weights(chats: Sequence[EncodedChat], position: Position) -> Tensor:
    """Return how much each token counts at a position.

    Args:
        chats: the chats of a batch, which will be padded on the right.
        position: where activations are read (A.3).

    Returns:
        ``[batch, length]`` float32. Rows sum to 1; padding has weight 0.

    Raises:
        InputError: the position is ``response_mean`` and a chat has no response.
    """
    length = max(len(chat.input_ids) for chat in chats)
    weights = torch.zeros(len(chats), length)
    for row, chat in zip(weights, chats, strict=True):
        if position == "prompt_last":
            row[chat.prompt_length - 1] = 1
        elif position == "prompt_mean":
            row[: chat.prompt_length] = 1 / chat.prompt_length
        else:
            mask = torch.tensor(chat.response_mask)
            if not mask.any():
                raise InputError("response_mean: the chat has no response to average over; read at prompt_last instead")
            row[: len(mask)] = mask / mask.sum()
    return weights


def iterate_activations(
    loaded: LoadedModel,
    chats: Sequence[EncodedChat],
    layers: Sequence[int],
    positions: Sequence[Position],
    limits: BatchLimits,
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Read activations batch by batch, unsteered. What chats share at their beginning is computed once.

    Args:
        loaded: a causal language model with its tokenizer, in any mode; it is run without dropout.
        chats: what to run.
        layers: the layers to read.
        positions: where in each chat to read.
        limits: how large a forward pass may be.

    Yields:
        The indices in ``chats`` of a batch, and its activations ``[batch, positions, layers, hidden_size]`` float32 on
        the model's device.

    Raises:
        InputError: as for :func:`position_weights`.
    """
    device = device_of(loaded.model)
    for group in groups_for(loaded.model, chats, limits):
        shared = chats[group.batches[0][0]].input_ids[: group.prefix_length]
        with probing(loaded.model):
            prefix = residual.share_prefix(loaded.model, shared, layers)
        for indices in group.batches:
            batch = [chats[index] for index in indices]
            tokens = pad(batch, pad_token(loaded.tokenizer))
            weights = torch.stack([position_weights(batch, position) for position in positions])
            with probing(loaded.model):
                read = residual.read(
                    loaded.model,
                    tokens["input_ids"].to(device),
                    tokens["attention_mask"].to(device),
                    weights.to(device),
                    layers,
                    prefix,
                )
            yield indices, read


def activations(
    loaded: LoadedModel,
    chats: Sequence[EncodedChat],
    layers: Sequence[int],
    positions: Sequence[Position],
    limits: BatchLimits = BatchLimits(),  # noqa: B008, frozen
    advance: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Read the activations of chats, unsteered.

    Args:
        loaded: a causal language model with its tokenizer, in any mode; it is run without dropout.
        chats: what to run.
        layers: the layers to read.
        positions: where in each chat to read.
        limits: how large a forward pass may be.
        advance: is called after each batch with the number of chats in it.

    Returns:
        ``[chats, positions, layers, hidden_size]`` float32 on the model's device.

    Raises:
        InputError: as for :func:`position_weights`.
    """
    hidden_size = dimensions(loaded.model).hidden_size
    result = torch.empty(len(chats), len(positions), len(layers), hidden_size, device=device_of(loaded.model))
    for indices, read in iterate_activations(loaded, chats, layers, positions, limits):
        result[list(indices)] = read
        advance(len(indices))
    return result


def projections(
    loaded: LoadedModel,
    chats: Sequence[EncodedChat],
    vectors: Sequence[PersonaVector],
    position: Position,
    layers: Sequence[Sequence[int]] | None = None,
    limits: BatchLimits = BatchLimits(),  # noqa: B008, frozen
) -> Tensor:
    """Project each chat's activation on the unit directions of persona vectors, unsteered.

    Args:
        loaded: a causal language model with its tokenizer, in any mode; it is run without dropout.
        chats: what to run.
        vectors: the persona vectors to project on.
        position: where in each chat to read.
        layers: for each vector the layers at which to project, equally many for all vectors; by default its chosen
            layer.
        limits: how large a forward pass may be.

    Returns:
        ``[chats, vectors, layers]`` float32 in activation units, on the model's device. The projection on a direction
        of zeros is 0.

    Raises:
        InputError: as for :func:`position_weights`.
    """
    vector_layers = [[vector.layer] for vector in vectors] if layers is None else layers
    read_layers = sorted({layer for own in vector_layers for layer in own})
    read = activations(loaded, chats, read_layers, [position], limits)[:, 0]
    rows = torch.stack([vector.directions[list(own)] for vector, own in zip(vectors, vector_layers, strict=True)])
    units = nn.functional.normalize(rows.to(read.device), dim=-1)
    columns = torch.tensor([[read_layers.index(layer) for layer in own] for own in vector_layers], device=read.device)
    return (read[:, columns] * units).sum(dim=-1)

"""Activations at named positions, and their projection on persona vectors."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from persona_callbacks.chats import EncodedChat, pad, pad_token
from persona_callbacks.errors import InputError
from persona_callbacks.model import residual
from persona_callbacks.model.architecture import device_of, dimensions
from persona_callbacks.model.batching import BatchLimits, shared_groups
from persona_callbacks.model.loading import LoadedModel
from persona_callbacks.model.modes import probing
from persona_callbacks.vectors import PersonaVector, Position


def position_weights(chats: Sequence[EncodedChat], position: Position) -> Tensor:
    """How much each token counts at a position: ``[batch, length]`` float32, rows sum to 1, 0 on padding.

    Raises:
        InputError: ``response_mean`` of a prompt without response.
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
    """Read activations batch by batch; what chats share at their beginning is computed once. Never steered.

    Yields:
        The indices of a batch in ``chats``, and ``[batch, positions, layers, hidden_size]`` float32 on the model's
        device.
    """
    device = device_of(loaded.model)
    for group in shared_groups(chats, limits):
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
    """Activations of each chat: ``[chats, positions, layers, hidden_size]`` float32 on the model's device.

    ``advance`` is called with the number
    of chats done after each of them.
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
    """Projection of each chat's activation on each vector's unit directions, in activation units.

    Args:
        loaded: the model with its tokenizer.
        chats: what to run.
        vectors: to project on.
        position: where the chats are read.
        layers: for each vector the layers at which to project, as many for all; by default its chosen layer.
        limits: of a forward pass.

    Returns:
        ``[chats, vectors, layers]`` float32 on the model's device. Where a direction is zero, so is the projection.
    """
    at = [[vector.layer] for vector in vectors] if layers is None else layers
    wanted = sorted({layer for one in at for layer in one})
    read = activations(loaded, chats, wanted, [position], limits)[:, 0]
    rows = torch.stack([vector.directions[list(one)] for vector, one in zip(vectors, at, strict=True)]).to(read.device)
    places = torch.tensor([[wanted.index(layer) for layer in one] for one in at], device=read.device)
    return (read[:, places] * nn.functional.normalize(rows, dim=-1)).sum(dim=-1)

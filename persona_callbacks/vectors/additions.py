"""What to add to the residual stream, and where, to steer with persona vectors."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from persona_callbacks.errors import InputError
from persona_callbacks.vectors.vector import PersonaVector, check_layer_number

Layers = Literal["all", "chosen"] | Sequence[int]
"""Layers to act on: all of 1..L, each vector's chosen one, or a list."""


def check_layers(layers: Layers, traits: Sequence[str], num_layers: int) -> None:
    """Check a choice of layers for traits whose vectors, of a model of ``num_layers`` blocks, need not be there yet.

    Raises:
        InputError: the choice is empty or unknown, or names a layer that the model lacks.
    """
    if layers in ("all", "chosen"):
        return
    if isinstance(layers, str) or not layers:
        raise InputError(f"layers: expected 'all', 'chosen' or a list of layers, found {layers!r}")
    for trait in traits:
        for layer in layers:
            check_layer_number(trait, layer, num_layers)


def steering_layers(vectors: Sequence[PersonaVector], layers: Layers) -> dict[str, list[int]]:
    """The layers to steer at, ascending, for each trait.

    Raises:
        InputError: a layer that a vector does not have, or an empty or unknown choice.
    """
    chosen = {}
    for vector in vectors:
        check_layers(layers, [vector.trait], vector.num_layers)
        if layers == "all":
            chosen[vector.trait] = list(range(1, vector.num_layers + (not vector.last_row_normed)))
        elif layers == "chosen":
            chosen[vector.trait] = [vector.layer]
        else:
            chosen[vector.trait] = sorted({vector.check_layer(layer) for layer in layers})
    return chosen


def incremental_directions(vector: PersonaVector, layers: Sequence[int]) -> dict[int, Tensor]:
    """What to add at each of ``layers`` so that the sum up to any of them is the raw direction there.

    The first layer gets its direction whole, each later one the difference from the layer before it in ``layers``
    (Chen et al. 2025, J.3): the residual stream carries earlier additions on, so adding raw directions at every
    layer would count them many times.
    """
    increments: dict[int, Tensor] = {}
    below: Tensor | None = None
    for layer in sorted(layers):
        direction = vector.direction(layer)
        increments[layer] = direction if below is None else direction - below
        below = direction
    return increments


def steering_additions(
    vectors: Sequence[PersonaVector], coefficients: Mapping[str, float], layers: Layers
) -> dict[int, Tensor]:
    """The vector ``[hidden_size]`` to add to the residual stream at each layer: the sum over traits of
    coefficient · incremental direction.

    Raises:
        InputError: as for :func:`steering_layers`.
    """
    chosen = steering_layers(vectors, layers)
    additions: dict[int, Tensor] = {}
    for vector in vectors:
        for layer, increment in incremental_directions(vector, chosen[vector.trait]).items():
            addition = coefficients[vector.trait] * increment
            additions[layer] = additions[layer] + addition if layer in additions else addition
    return additions


SteeredPositions = Literal["all", "response"]
"""Tokens to steer: all, or only those that loss is taken on."""

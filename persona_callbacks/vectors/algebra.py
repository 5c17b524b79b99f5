"""Arithmetic with persona vectors of one model: compare, add, negate, orthogonalise, find a common basis."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from persona_callbacks.errors import InputError
from persona_callbacks.vectors.evidence import Evidence
from persona_callbacks.vectors.vector import PersonaVector, check_vectors

_NEGLIGIBLE = 1e-6
"""A singular value this small beside the largest one is rounding, not a direction."""


def cosine_table(vectors: Sequence[PersonaVector], layer: int | None = None) -> Tensor:
    """Cosines between the vectors' directions: ``[vectors, vectors]`` float32.

    Args:
        vectors: of one model, one per trait.
        layer: where; by default the median of the chosen layers.

    Raises:
        InputError: vectors of different models, an unknown layer, or a direction there is zero.
    """
    vectors = check_vectors(vectors)
    at = common_layer(vectors) if layer is None else layer
    units = torch.stack([vector.unit_direction(at) for vector in vectors]).double()
    return (units @ units.T).float()


def common_layer(vectors: Sequence[PersonaVector]) -> int:
    """The median of the chosen layers."""
    layers = sorted(vector.layer for vector in vectors)
    return layers[len(layers) // 2]


def add(vectors: Sequence[PersonaVector], coefficients: Sequence[float], trait: str) -> PersonaVector:
    """The weighted sum at every layer, under a new name, with the probes of all and the median of their layers.

    It has no minimal pairs: which response of a pair shows the sum of several traits is not known.

    Raises:
        InputError: vectors of different models, or not one coefficient for each.
    """
    vectors = check_vectors(vectors)
    if len(coefficients) != len(vectors):
        raise InputError(f"coefficients: expected one for each of {len(vectors)} vectors, found {len(coefficients)}")
    terms = [
        coefficient * vector.directions.double() for coefficient, vector in zip(coefficients, vectors, strict=True)
    ]
    probes = dict.fromkeys(probe for vector in vectors for probe in vector.probes)
    total = _derived(vectors[0], torch.stack(terms).sum(dim=0), trait, vectors, common_layer(vectors))
    return replace(total, probes=tuple(probes), pairs=())


def negate(vector: PersonaVector, trait: str | None = None) -> PersonaVector:
    """The opposite of a vector, by default named ``not_`` and its trait. Its minimal pairs are turned round."""
    opposite = _derived(vector, -vector.directions.double(), trait or f"not_{vector.trait}", [vector], vector.layer)
    return replace(
        opposite, pairs=tuple(replace(pair, trait=pair.opposite, opposite=pair.trait) for pair in vector.pairs)
    )


def orthogonalise(vector: PersonaVector, against: Sequence[PersonaVector]) -> PersonaVector:
    """The part of a vector that is orthogonal, at every layer, to the span of others; its name stays.

    Raises:
        InputError: vectors of different models, or nothing of the vector is left at its layer.
    """
    check_vectors([vector, *against])
    left = vector.directions.double()
    for layer in range(len(left)):
        span = _span(torch.stack([other.directions[layer] for other in against]))
        left[layer] -= (left[layer] @ span.T) @ span
    if left[vector.layer].norm() <= _NEGLIGIBLE * vector.directions[vector.layer].norm():
        raise InputError(
            f"persona vector {vector.trait!r}: at layer {vector.layer} it lies in the span of"
            f" {', '.join(other.trait for other in against)}; nothing of it is left"
        )
    return _derived(vector, left, vector.trait, [vector, *against], vector.layer)


def basis(vectors: Sequence[PersonaVector], rank: int) -> Tensor:
    """At every layer, the ``rank`` orthonormal directions that hold most of the vectors' unit directions:
    ``[num_layers + 1, rank, hidden_size]`` float32, the most important first.

    Where the vectors span fewer than ``rank`` dimensions (such as at the embedding, if its rows are zero), the rest of
    the rows are zero: projecting on them adds nothing.

    Raises:
        InputError: vectors of different models, or a rank that is not from 1 to their number.
    """
    vectors = check_vectors(vectors)
    if not 1 <= rank <= len(vectors):
        raise InputError(f"rank: expected 1 to {len(vectors)}, the number of vectors, found {rank}")
    size = vectors[0].hidden_size
    bases = torch.zeros(vectors[0].num_layers + 1, rank, size)
    for layer in range(len(bases)):
        rows = torch.stack([vector.directions[layer] for vector in vectors])
        units = torch.nn.functional.normalize(rows, dim=1)
        span = _span(units)[:rank]
        bases[layer, : len(span)] = span.float()
    return bases


def _span(rows: Tensor) -> Tensor:
    """Orthonormal rows, the most important first, that span ``rows``: ``[rank, hidden_size]`` float64."""
    _, singular, right = torch.linalg.svd(rows.double(), full_matrices=False)
    rank = int((singular > _NEGLIGIBLE * singular.max().clamp_min(torch.finfo(torch.float64).tiny)).sum())
    span: Tensor = right[:rank]
    return span


def _derived(
    like: PersonaVector, directions: Tensor, trait: str, made_from: Sequence[PersonaVector], layer: int
) -> PersonaVector:
    """A vector of the same model; counts, evidence and calibration were another vector's, and are dropped."""
    return replace(
        like,
        trait=trait,
        directions=directions.float(),
        layer=layer,
        probes_also_evaluate=any(vector.probes_also_evaluate for vector in made_from),
        counts=None,
        evidence=Evidence(),
        calibration=None,
        trait_fingerprint="",
        last_row_normed=any(vector.last_row_normed for vector in made_from),
    )

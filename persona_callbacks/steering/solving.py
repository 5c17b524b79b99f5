"""Solving for the coefficients of several correlated traits at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from persona_callbacks.vectors import PersonaVector

_TOO_ALIKE = 1e-3
"""A singular value this small beside the largest one means directions too alike to be pushed apart."""


def pushes(vectors: Sequence[PersonaVector]) -> Tensor:
    """How far one unit of each raw direction moves each projection: ``[vectors, vectors]`` float64. Row ``t`` is taken
    at the chosen layer of vector ``t``, on its unit direction; the diagonal holds the directions' norms.
    """
    rows = torch.stack([torch.stack([vector.direction(at.layer) for vector in vectors]) for at in vectors]).double()
    units = torch.stack([vector.unit_direction() for vector in vectors]).double()
    return torch.einsum("th,tjh->tj", units, rows)


def solve(pushes: Tensor, wanted: Tensor) -> Tensor:
    """Coefficients ``[vectors]`` that together move every projection as ``wanted``: correlated directions push each
    other's projection as well, and would be pushed twice one by one. Least squares where directions are too alike.
    """
    inverse: Tensor = torch.linalg.pinv(pushes, rtol=_TOO_ALIKE)
    return inverse @ wanted


def nonnegative_minimum(curvature: Tensor, slope: Tensor) -> Tensor:
    """The point ``x`` with no negative entry at which ½ xᵀ · curvature · x + slopeᵀ · x is least, by trying every
    set of entries that are not zero: exact, and there are few traits.

    Args:
        curvature: ``[n, n]``, symmetric.
        slope: ``[n]``.
    """
    best, least = torch.zeros_like(slope), 0.0
    for chosen in range(1, 2 ** len(slope)):
        free = torch.tensor([index for index in range(len(slope)) if chosen >> index & 1])
        candidate = torch.zeros_like(slope)
        candidate[free] = torch.linalg.pinv(curvature[free][:, free], hermitian=True) @ -slope[free]
        value = float(candidate @ curvature @ candidate / 2 + slope @ candidate)
        if value < least and bool((candidate >= 0).all()):
            best, least = candidate, value
    return best

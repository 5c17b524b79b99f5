"""Means of two kinds of responses and how well their difference tells them apart, in memory that does not grow.

Sums are kept for each kind and each half of the questions; a bounded sample of the activations themselves is kept for
what sums cannot tell (rank and spread).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from persona_callbacks.errors import InputError

_SAMPLED = 64
"""Responses of each kind and half whose activations are kept."""


@dataclass(frozen=True)
class Evidence:
    """How good the directions of one position are: ``[layers]`` float32 each.

    Attributes:
        auc: how well the direction from one half of the questions ranks the responses to the other half, from 0.5
            (chance) to 1; mean of both halves.
        cohens_d: the gap between the two kinds along that direction, in standard deviations; mean of both halves.
        split_half_cosine: cosine between the directions of the two halves: how much of the direction is the trait's
            and not the sample's.
    """

    auc: Tensor
    cohens_d: Tensor
    split_half_cosine: Tensor


class Contrast:
    """Accumulates activations of responses that show a trait and of responses that do not."""

    def __init__(self, shows: Tensor, fold: Tensor, positions: int, layers: int, hidden_size: int) -> None:
        """Expect responses of these kinds.

        Args:
            shows: ``[responses]`` bool.
            fold: ``[responses]``, 0 or 1: the half that the response's question is in.
            positions: number of positions.
            layers: number of layers.
            hidden_size: width of the residual stream.

        Raises:
            InputError: one of the four groups is empty.
        """
        self._group = 2 * shows.long() + fold.long()
        self._counts = torch.bincount(self._group, minlength=4)
        if (self._counts == 0).any():
            raise InputError(f"no response in one of the groups (kind, half of the questions): {self._counts.tolist()}")
        # float64, since the gap between two means can be tiny beside the means.
        self._sums = torch.zeros(4, positions, layers, hidden_size, dtype=torch.float64)
        sampled = [_evenly(torch.nonzero(self._group == group).flatten(), _SAMPLED) for group in range(4)]
        self._sample_group = torch.repeat_interleave(torch.arange(4), torch.tensor([len(s) for s in sampled]))
        self._slot = {int(index): slot for slot, index in enumerate(torch.cat(sampled))}
        self._sample = torch.zeros(len(self._slot), positions, layers, hidden_size)

    def add(self, indices: Sequence[int], activations: Tensor) -> None:
        """Take the activations of some responses: ``[len(indices), positions, layers, hidden_size]`` on the CPU."""
        self._sums.index_add_(0, self._group[list(indices)], activations.double())
        for row, index in enumerate(indices):
            if index in self._slot:
                self._sample[self._slot[index]] = activations[row]

    def directions(self, position: int) -> Tensor:
        """Mean over responses that show the trait less the mean over the others: ``[layers, hidden_size]`` float32."""
        return self._difference(position, (0, 1)).float()

    def evidence(self, position: int) -> Evidence:
        """How good the directions at a position are."""
        halves = [self._difference(position, (half,)) for half in (0, 1)]
        aucs, gaps = [], []
        for half in (0, 1):
            outside = self._sample_group % 2 == half
            scores = (self._sample[outside, position] * halves[1 - half].float()).sum(dim=-1)
            labels = self._sample_group[outside] >= 2
            aucs.append(_auc(scores, labels))
            gaps.append(_cohens_d(scores, labels))
        cosine = torch.nn.functional.cosine_similarity(halves[0], halves[1], dim=-1)
        return Evidence(torch.stack(aucs).mean(dim=0), torch.stack(gaps).mean(dim=0), cosine.float())

    def _difference(self, position: int, halves: Sequence[int]) -> Tensor:
        means = [
            self._sums[[kind + half for half in halves], position].sum(dim=0)
            / self._counts[[kind + half for half in halves]].sum()
            for kind in (0, 2)
        ]
        return means[1] - means[0]


def _evenly(indices: Tensor, count: int) -> Tensor:
    """At most ``count`` of them, evenly spaced."""
    picked = torch.linspace(0, len(indices) - 1, min(count, len(indices))).round().long()
    return indices[picked]


def _auc(scores: Tensor, labels: Tensor) -> Tensor:
    # torchmetrics takes values outside [0, 1] for logits, and its sigmoid would saturate on raw projections.
    spread = (scores - scores.mean(dim=0)) / scores.std(dim=0).clamp_min(1e-12)
    return torch.stack([binary_auroc(torch.sigmoid(column), labels.int()) for column in spread.T])


def _cohens_d(scores: Tensor, labels: Tensor) -> Tensor:
    shows, others = scores[labels], scores[~labels]
    degrees = max(len(shows) + len(others) - 2, 1)
    squares = (shows - shows.mean(dim=0)).square().sum(dim=0) + (others - others.mean(dim=0)).square().sum(dim=0)
    return (shows.mean(dim=0) - others.mean(dim=0)) / (squares / degrees).sqrt().clamp_min(1e-12)

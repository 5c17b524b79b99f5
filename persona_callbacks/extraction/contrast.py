"""The mean difference between two kinds of responses and how well it tells them apart, in memory that does not grow.

Sums are kept for each question and kind; a bounded sample of the activations themselves is kept for what sums cannot
tell (rank and spread). The difference is taken within questions: a filter keeps more trait responses to some questions
and more opposite ones to others, and the plain difference of means would hold what those questions are about.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from persona_callbacks.errors import InputError

_SAMPLED = 64
"""Responses of each kind and half whose activations are kept."""


@dataclass(frozen=True)
class Separation:
    """How well the directions of one position separate the two kinds of responses: ``[layers]`` float32 each.

    Attributes:
        auc: how well the direction from one half of the questions ranks the responses to the other half, from 0.5
            (chance) to 1; mean of both halves.
        cohens_d: the gap between the two kinds along that direction, in standard deviations; mean of both halves.
        split_half_cosine: cosine between the directions of the two halves: how much of the direction is the trait's
            and not the sample's.
        pair_cosine: mean cosine between the differences of two questions: how alike the trait is from question to
            question.

    Example:
        >>> import torch
        >>> ones = torch.ones(2)
        >>> perfect = Separation(auc=ones, cohens_d=3 * ones, split_half_cosine=ones, pair_cosine=ones)
        >>> perfect.auc.tolist()
        [1.0, 1.0]
    """

    auc: Tensor
    cohens_d: Tensor
    split_half_cosine: Tensor
    pair_cosine: Tensor


class Contrast:
    """Accumulates activations of responses that show a trait and of responses that do not.

    Example:
        >>> shows, questions = torch.tensor([True, False] * 4), torch.arange(4).repeat_interleave(2)
        >>> contrast = Contrast(shows, questions, positions=1, layers=2, hidden_size=3)
        >>> contrast.add(range(8), shows.float()[:, None, None, None].expand(8, 1, 2, 3))
        >>> contrast.directions(0).shape, contrast.directions(0)[1].tolist()
        (torch.Size([2, 3]), [1.0, 1.0, 1.0])
    """

    def __init__(self, shows: Tensor, questions: Tensor, positions: int, layers: int, hidden_size: int) -> None:
        """Expect responses of these kinds.

        Args:
            shows: ``[responses]`` bool.
            questions: ``[responses]`` int64, the number of each response's question; even and odd ones are the two
                halves.
            positions: number of positions.
            layers: number of layers.
            hidden_size: width of the residual stream.

        Raises:
            InputError: no question in one of the halves has responses of both kinds.
        """
        self._group = 2 * questions + shows.long()
        count = int(questions.max()) + 1
        counts = torch.bincount(self._group, minlength=2 * count).view(count, 2)
        # A question weighs by how well its difference is known: as much as its rarer kind, plainly put.
        weights = counts.prod(dim=1) / counts.sum(dim=1).clamp_min(1)
        self._halves = [weights.double() * (torch.arange(count) % 2 == half) for half in (0, 1)]
        for half, name in enumerate(("even", "odd")):
            if not self._halves[half].any():
                raise InputError(
                    f"no {name}-numbered question has responses of both kinds; use more questions or rollouts"
                )
        # float64, since the gap between two means can be tiny beside the means.
        self._sums = torch.zeros(2 * count, positions, layers, hidden_size, dtype=torch.float64)
        self._counts = counts.flatten().clamp_min(1)
        kinds = [(shows == wanted) & (questions % 2 == half) for half in (0, 1) for wanted in (False, True)]
        sampled = [_evenly(torch.nonzero(kind).flatten(), _SAMPLED) for kind in kinds]
        self._sampled_half = torch.repeat_interleave(torch.tensor([0, 0, 1, 1]), torch.tensor([*map(len, sampled)]))
        self._sampled_shows = shows[torch.cat(sampled)]
        self._sampled_question = questions[torch.cat(sampled)]
        self._slot = {int(index): slot for slot, index in enumerate(torch.cat(sampled))}
        self._sample = torch.zeros(len(self._slot), positions, layers, hidden_size)

    def add(self, indices: Sequence[int], activations: Tensor) -> None:
        """Add the activations of the responses with these indices.

        ``activations`` is ``[len(indices), positions, layers, hidden_size]``, on the CPU.
        """
        self._sums.index_add_(0, self._group[list(indices)], activations.double())
        for row, index in enumerate(indices):
            if index in self._slot:
                self._sample[self._slot[index]] = activations[row]

    def directions(self, position: int) -> Tensor:
        """Mean over responses that show the trait less the mean over the others to the same questions:
        ``[layers, hidden_size]`` float32.
        """
        return self._difference(position, self._halves[0] + self._halves[1]).float()

    def half_directions(self, position: int) -> tuple[Tensor, Tensor]:
        """:meth:`directions` from the even-numbered questions alone, and from the odd-numbered ones alone."""
        even, odd = (self._difference(position, weights).float() for weights in self._halves)
        return even, odd

    def ranking(self, position: int, directions: Tensor, questions: Collection[int]) -> tuple[Tensor, Tensor]:
        """AUC and Cohen's d, ``[layers]`` float32 each, of other directions, ``[layers, hidden_size]``, on the kept
        activations of responses to some questions.
        """
        asked = torch.tensor([int(number) in questions for number in self._sampled_question])
        scores, shows = (self._sample[asked, position] * directions).sum(dim=-1), self._sampled_shows[asked]
        return _auc(scores, shows), _cohens_d(scores, shows)

    def separation(self, position: int) -> Separation:
        """How well the directions at a position separate the two kinds of responses."""
        halves = [self._difference(position, weights) for weights in self._halves]
        aucs, gaps = [], []
        for half in (0, 1):
            outside = self._sampled_half == half
            scores = (self._sample[outside, position] * halves[1 - half].float()).sum(dim=-1)
            aucs.append(_auc(scores, self._sampled_shows[outside]))
            gaps.append(_cohens_d(scores, self._sampled_shows[outside]))
        cosine = torch.nn.functional.cosine_similarity(halves[0], halves[1], dim=-1)
        pairs = self._pair_cosine(position)
        return Separation(torch.stack(aucs).mean(dim=0), torch.stack(gaps).mean(dim=0), cosine.float(), pairs)

    def _pair_cosine(self, position: int) -> Tensor:
        answered = (self._halves[0] + self._halves[1]) > 0
        units = torch.nn.functional.normalize(self._differences(position)[answered], dim=-1)
        count = len(units)
        # The squared norm of a sum of unit vectors holds each cosine twice, and each vector's with itself.
        cosine: Tensor = (units.sum(dim=0).square().sum(dim=-1) - count) / (count * (count - 1))
        return cosine.float()

    def _difference(self, position: int, weights: Tensor) -> Tensor:
        difference: Tensor = torch.einsum("q,qlh->lh", weights / weights.sum(), self._differences(position))
        return difference

    def _differences(self, position: int) -> Tensor:
        """``[questions, layers, hidden_size]``; of no meaning for a question without responses of both kinds."""
        means = self._sums[:, position] / self._counts[:, None, None]
        others, shows = means.unflatten(0, (-1, 2)).unbind(dim=1)
        differences: Tensor = shows - others
        return differences


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

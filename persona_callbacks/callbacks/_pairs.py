"""The minimal pairs that a monitor reads."""

from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch import Trainer
from transformers import PreTrainedTokenizerBase

from persona_callbacks.callbacks._seams import share_of, sum_over_processes
from persona_callbacks.errors import InputError
from persona_callbacks.model import (
    BatchLimits,
    LanguageModel,
    LoadedModel,
    base_work,
    device_of,
    encode_pair,
    preferences,
    probing,
)
from persona_callbacks.traits import MinimalPair, spread
from persona_callbacks.vectors import PersonaVector

Pairs = int | Sequence[MinimalPair] | Mapping[str, Sequence[MinimalPair]]
"""How many of each vector's own pairs are read; or the pairs of the only trait; or, by trait, the pairs."""


def check_pairs(callback: str, traits: Sequence[str], pairs: Pairs) -> None:
    """Check a choice of pairs against the traits that are watched.

    Raises:
        InputError: a number that is negative or not whole, pairs of a trait that is not watched, or pairs that may be
            of several traits.
    """
    if isinstance(pairs, (int, float)):
        if not isinstance(pairs, int) or pairs < 0:
            raise InputError(f"{callback}: pairs is {pairs}; expected 0 or more pairs of each trait, a whole number")
    elif isinstance(pairs, Mapping):
        unknown = sorted(set(pairs) - set(traits))
        if unknown:
            raise InputError(
                f"{callback}: pairs names the trait {unknown[0]!r}, which has no vector; expected some of"
                f" {', '.join(traits)}"
            )
    elif len(traits) > 1:
        raise InputError(
            f"{callback}: pairs is a list, and the traits are {', '.join(traits)}; expected a mapping from trait to"
            " pairs"
        )


def chosen_pairs(vectors: Sequence[PersonaVector], pairs: Pairs) -> dict[str, tuple[MinimalPair, ...]]:
    """The pairs to read, by trait; traits without any are left out. A number of pairs is spread over a vector's own."""
    chosen = {}
    for vector in vectors:
        if isinstance(pairs, int):
            chosen[vector.trait] = spread(vector.pairs, pairs)
        else:
            chosen[vector.trait] = tuple(pairs.get(vector.trait, ()) if isinstance(pairs, Mapping) else pairs)
    return {trait: own for trait, own in chosen.items() if own}


class PairReader:
    """Reads what a model prefers on the minimal pairs of several traits, unsteered; each process reads its share."""

    def __init__(self, pairs: Mapping[str, Sequence[MinimalPair]], tokenizer: PreTrainedTokenizerBase) -> None:
        """Encode the pairs, those of each trait that has some."""
        self._traits = tuple(pairs)
        self._tokenizer = tokenizer
        self._encoded = [encode_pair(pair, tokenizer) for own in pairs.values() for pair in own]
        self._owners = torch.tensor([row for row, own in enumerate(pairs.values()) for _ in own], dtype=torch.int64)

    def read(
        self, trainer: Trainer, model: LanguageModel, batch_size: int
    ) -> tuple[dict[str, float], dict[str, float]]:
        """By trait, the mean difference of the log-probabilities per token, in nats; and the share of pairs in which it
        is above 0.
        """
        if not self._traits:
            return {}, {}
        made_from = [self._encoded, self._owners.tolist(), self._traits, batch_size]
        means, shares = base_work(model, "preference", made_from, lambda: self._means(trainer, model, batch_size))
        return dict(zip(self._traits, means, strict=True)), dict(zip(self._traits, shares, strict=True))

    def _means(self, trainer: Trainer, model: LanguageModel, batch_size: int) -> list[list[float]]:
        """The means and the shares, each in the order of the traits."""
        own, counts = share_of(trainer, len(self._encoded))
        pairs = [self._encoded[index] for index in own]
        with probing(model):
            differences = preferences(LoadedModel(model, self._tokenizer), pairs, BatchLimits(batch_size)).double()
        read = torch.stack([differences, (differences > 0).double(), torch.ones_like(differences)], dim=1)
        sums = torch.zeros(len(self._traits), 3, dtype=torch.float64)
        sums.index_add_(0, self._owners[own], read * counts[:, None])
        sums = sum_over_processes(trainer, sums.to(device_of(model))).cpu()
        means: list[list[float]] = (sums[:, :2] / sums[:, 2:]).T.tolist()
        return means

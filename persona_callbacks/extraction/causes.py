"""What steering with directions makes likelier, on responses that they were not made from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from persona_callbacks.chats import BENIGN, SHIPPED, Chat, EncodedChat, encode_chat, read_chats, shortened
from persona_callbacks.extraction.learning import EncodedPair, stream_norms
from persona_callbacks.model import (
    BatchLimits,
    LoadedModel,
    base_model,
    probing,
    response_divergences,
    response_log_probabilities,
    steered,
)
from persona_callbacks.traits import spread
from persona_callbacks.vectors import CausalPoint, PersonaVector, steering_additions

COEFFICIENTS = (0.5, 1.0)
"""At which causal strength is measured."""

_TRAITS = ("evil", "sycophancy", "hallucination")
"""Traits of which chats ship."""

_CHATS = 8
"""Chats of each of them that are run."""

_KEPT = 32
"""Benign chats that a vector learned by preference keeps as they are."""

_LONGEST = 48
"""Tokens of their responses that are run."""


@dataclass(frozen=True)
class Texts:
    """Chats that no vector is made from.

    Example:
        >>> Texts(benign=(), others={}).others
        {}

    Attributes:
        benign: about everyday facts.
        others: by trait, chats that show other traits.
    """

    benign: tuple[EncodedChat, ...]
    others: Mapping[str, tuple[EncodedChat, ...]]


def shipped_texts(loaded: LoadedModel, trait: str) -> Texts:
    """Benign chats, and chats of the other traits, from those that ship with the library."""

    def some(path: str) -> tuple[EncodedChat, ...]:
        return tuple(_encoded(loaded, spread(read_chats(path), _CHATS)))

    others = {other: some(str(SHIPPED / f"{other}.jsonl")) for other in _TRAITS if other != trait}
    return Texts(some(str(BENIGN)), others)


def unmeasured_chats(loaded: LoadedModel) -> list[EncodedChat]:
    """Some of the shipped benign chats, without those that causal strength is measured on."""
    chats = read_chats(str(BENIGN))
    measured = spread(chats, _CHATS)
    return _encoded(loaded, [chat for chat in chats if chat not in measured][:_KEPT])


def _encoded(loaded: LoadedModel, chats: Sequence[Chat]) -> list[EncodedChat]:
    return [shortened(encode_chat(chat, loaded.tokenizer), _LONGEST) for chat in chats]


@dataclass(frozen=True)
class HeldOut:
    """A vector, and pairs that it was not made from.

    Example:
        >>> HeldOut(PersonaVector("evil", torch.ones(3, 4), layer=1, model_id=""), ()).vector.trait
        'evil'

    Attributes:
        vector: the vector.
        pairs: trait response and opposite response to one question each, without the instructions that they were made
            under.
    """

    vector: PersonaVector
    pairs: tuple[EncodedPair, ...]


def causal_points(
    loaded: LoadedModel,
    vector: PersonaVector,
    held_out: Sequence[HeldOut],
    texts: Texts,
    coefficients: Sequence[float] = COEFFICIENTS,
    advance: Callable[[], None] = lambda: None,
) -> tuple[CausalPoint, ...]:
    """Steer the base model at all layers with each coefficient, and see what becomes likelier.

    Args:
        loaded: the model; its adapters are disabled.
        vector: with it, the texts are run.
        held_out: with which vector which pairs are run; the mean over all pairs counts. Vectors from halves of the
            questions, each with the pairs of the other half, say what the whole is worth on new questions.
        texts: benign chats and those of other traits.
        coefficients: how strongly to steer.
        advance: called after each coefficient, and after the unsteered pass before them.
    """
    limits = BatchLimits(8)
    own = [[chat for pair in part.pairs for chat in pair] for part in held_out]
    others = [chat for chats in texts.others.values() for chat in chats]
    sizes = [len(chats) for chats in texts.others.values()]

    def likely(chats: Sequence[EncodedChat], along: PersonaVector, coefficient: float) -> Tensor:
        with steered(loaded.model, steering_additions([along], {along.trait: coefficient}, "all")):
            return response_log_probabilities(loaded, chats, limits)

    def of_pairs(coefficient: float) -> Tensor:
        parts = [likely(chats, part.vector, coefficient) for chats, part in zip(own, held_out, strict=True)]
        return torch.cat(parts).view(-1, 2)

    points = []
    with base_model(loaded.model), probing(loaded.model):
        before, others_before = of_pairs(0.0), likely(others, vector, 0.0)
        norms = stream_norms(loaded, texts.benign)
        advance()
        for coefficient in coefficients:
            gain, opposite = (of_pairs(coefficient) - before).mean(dim=0).tolist()
            moved = (likely(others, vector, coefficient) - others_before).split(sizes)
            additions = steering_additions([vector], {vector.trait: coefficient}, "all")
            changed, divergence = response_divergences(loaded, texts.benign, additions, limits).mean(dim=0).tolist()
            strength = abs(coefficient) * float((vector.directions[1:].norm(dim=1) / norms).mean())
            gains = dict(zip(texts.others, (float(part.mean()) for part in moved), strict=True))
            points.append(CausalPoint(coefficient, gain, opposite, changed, divergence, strength, gains))
            advance()
    return tuple(points)

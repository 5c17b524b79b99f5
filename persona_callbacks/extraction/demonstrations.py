"""What minimal pairs are used for in an extraction: to measure causal strength on, to learn from, and as few-shot
demonstrations, turns before an extraction question whose answers show the trait, or the opposite.

They are pairs for probing; pairs for evaluation are never used. The two responses of a pair have the same words but for
the trait. Pairs that demonstrate or are learned from are not among those on which causal strength is measured.
"""

import random
from collections.abc import Sequence

from persona_callbacks.errors import InputError
from persona_callbacks.traits import MinimalPair, Trait, spread

_MEASURED = 12
"""Minimal pairs on which causal strength is measured, at most."""


def measured_pairs(trait: Trait, demonstrations: int) -> tuple[MinimalPair, ...]:
    """The minimal pairs for probing on which causal strength is measured; with demonstrations, at most every other."""
    pairs = trait.probe_pairs
    return spread(pairs, min(_MEASURED, len(pairs) // 2) if demonstrations else _MEASURED)


def unmeasured_pairs(trait: Trait) -> tuple[MinimalPair, ...]:
    """The minimal pairs for probing that are left when every other is kept to measure causal strength on."""
    measured = measured_pairs(trait, demonstrations=1)
    return tuple(pair for pair in trait.probe_pairs if pair not in measured)


def demonstration_pairs(trait: Trait, demonstrations: int) -> tuple[MinimalPair, ...]:
    """The minimal pairs for probing on which nothing is measured; none, if ``demonstrations`` is 0.

    Raises:
        InputError: to some extraction question, there are fewer than are to come before it.
    """
    if not demonstrations:
        return ()
    pairs = unmeasured_pairs(trait)
    fewest = min(len(_beside(question, pairs)) for question in trait.extraction_questions)
    if fewest < demonstrations:
        raise InputError(
            f"extraction.demonstrations: {demonstrations} come before each extraction question of the trait"
            f" {trait.name!r}, and it has {fewest} minimal pairs for that: of {len(trait.pairs)}, half are kept for"
            " evaluation, and on half of the others causal strength is measured; expected fewer demonstrations, or more"
            " pairs in the trait file"
        )
    return pairs


def draw_demonstrations(
    pairs: Sequence[MinimalPair], count: int, questions: Sequence[str]
) -> list[tuple[MinimalPair, ...]]:
    """Draw so many different pairs for each question, never the question itself, and all pairs about equally often.

    The same arguments always give the same pairs.

    Example:
        >>> pairs = [MinimalPair(question, "yes", "no") for question in "abcd"]
        >>> drawn = draw_demonstrations(pairs, 2, ["a", "x", "y", "z"])
        >>> "".join(sorted(pair.question for some in drawn for pair in some))
        'aabbccdd'
    """
    chance = random.Random(0)
    times = dict.fromkeys(pairs, 0)
    drawn = []
    for question in questions:
        order = chance.sample(list(pairs), len(pairs))
        picked = sorted(_beside(question, order), key=times.__getitem__)[:count]
        for pair in picked:
            times[pair] += 1
        drawn.append(tuple(picked))
    return drawn


def _beside(question: str, pairs: Sequence[MinimalPair]) -> list[MinimalPair]:
    return [pair for pair in pairs if pair.question.casefold() != question.casefold()]

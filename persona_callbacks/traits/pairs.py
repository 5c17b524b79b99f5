"""Minimal pairs: two responses to one question that differ in the trait alone."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from persona_callbacks.errors import InputError
from persona_callbacks.traits.content import checked_list, checked_mapping, checked_text

REGISTERS = ("flat", "emphatic", "formal")
"""How a text can be worded, whatever it says."""


_Row = TypeVar("_Row")


@dataclass(frozen=True)
class MinimalPair:
    """Two responses to one question, alike in register and length, that differ in the trait alone.

    Example:
        >>> pair = MinimalPair("How was it?", "I hated all of it.", "I loved all of it.", "flat")
        >>> pair.opposite
        'I loved all of it.'

    Attributes:
        question: what both respond to.
        trait: the response that shows the trait.
        opposite: the response that does not.
        register: of both, one of :data:`REGISTERS`; empty if it is not known.
    """

    question: str
    trait: str
    opposite: str
    register: str = ""


def halves(pairs: Sequence[MinimalPair]) -> tuple[tuple[MinimalPair, ...], tuple[MinimalPair, ...]]:
    """Two disjoint halves with equal shares of every register.

    Of the pairs of a register, in their order, the first goes to the first half, the second to the second half, and so
    on in turn. Adding pairs at the end never moves a pair to the other half.

    Example:
        >>> pairs = [MinimalPair(str(number), "yes", "no", "flat") for number in range(3)]
        >>> [[pair.question for pair in half] for half in halves(pairs)]
        [['0', '2'], ['1']]
    """
    parts: tuple[list[MinimalPair], list[MinimalPair]] = ([], [])
    before: Counter[str] = Counter()
    for pair in pairs:
        parts[before[pair.register] % 2].append(pair)
        before[pair.register] += 1
    return tuple(parts[0]), tuple(parts[1])


def spread(pairs: Sequence[_Row], most: int) -> tuple[_Row, ...]:
    """At most so many of the pairs, evenly from first to last, since a file may have one register after the other.
    Rows of another kind do as well.

    Example:
        >>> pairs = [MinimalPair(str(number), "yes", "no", "flat") for number in range(5)]
        >>> [pair.question for pair in spread(pairs, 2)]
        ['0', '2']
    """
    count = min(most, len(pairs))
    return tuple(pairs[len(pairs) * number // count] for number in range(count))


def pairs_in(content: Any, where: str) -> tuple[MinimalPair, ...]:
    """The minimal pairs under ``pairs`` of a trait file; ``where`` is named in errors.

    Raises:
        InputError: not a list of mappings with question, trait, opposite and register; an unknown register, or one of
            a single pair, which could be in one half only; two sides alike; or a question that stands there twice.
    """
    pairs = []
    for number, entry in enumerate(checked_list(content, where), start=1):
        of = f"{where}, number {number}"
        entry = checked_mapping(entry, of, ("question", "trait", "opposite", "register"))
        texts = {key: checked_text(entry[key], f"{of}: {key}") for key in ("question", "trait", "opposite")}
        pair = MinimalPair(**texts, register=checked_register(entry["register"], f"{of}: register"))
        if pair.trait.casefold() == pair.opposite.casefold():
            raise InputError(f"{of}: trait and opposite are the same text, {pair.trait[:60]!r}; expected a difference")
        pairs.append(pair)
    for register, count in Counter(pair.register for pair in pairs).items():
        if count < 2:
            raise InputError(
                f"{where}: 1 of register {register!r}; expected at least 2, so that both halves of the pairs have it"
            )
    question, count = Counter(pair.question.casefold() for pair in pairs).most_common(1)[0]
    if count > 1:
        raise InputError(f"{where}: {count} of the question {question!r}; expected a question of its own for each")
    return tuple(pairs)


def checked_register(value: Any, where: str) -> str:
    """Return a known register.

    Raises:
        InputError: it is another.
    """
    if value not in REGISTERS:
        raise InputError(f"{where}: expected one of {', '.join(REGISTERS)}, found {value!r}")
    return str(value)

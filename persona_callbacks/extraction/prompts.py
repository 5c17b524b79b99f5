"""Responses of both kinds to the questions of the chats that will be trained on."""

from dataclasses import replace

from persona_callbacks.chats import read_chats
from persona_callbacks.errors import InputError
from persona_callbacks.traits import Trait, spread

_QUESTIONS = 20
"""As many as the shipped traits have."""


def with_prompts(trait: Trait, path: str, questions: int | None) -> Trait:
    """Return the trait with the first user messages of chats as its extraction questions.

    Questions that the trait probes or evaluates with are left out: a vector is measured on what it was not made from.

    Args:
        trait: the trait.
        path: as for :func:`~persona_callbacks.chats.read_chats`.
        questions: how many to take, evenly from first to last; 20 by default.

    Raises:
        InputError: the chats cannot be read, or have fewer than two different questions.
    """
    first = [
        next((message["content"] for message in chat.messages if message["role"] == "user"), None)
        for chat in read_chats(path)
    ]
    measured = {*trait.probe_questions, *trait.evaluation_questions, *(pair.question for pair in trait.pairs)}
    asked = {question.casefold() for question in measured}
    found = [text for text in dict.fromkeys(first) if isinstance(text, str) and text.casefold() not in asked]
    if len(found) < 2:
        raise InputError(
            f"extraction.prompts: {path}: expected at least 2 different questions that the trait {trait.name!r} does"
            f" not measure with, found {len(found)}"
        )
    return replace(trait, extraction_questions=spread(found, questions or _QUESTIONS))

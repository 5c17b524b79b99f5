"""Preference data as minimal pairs: JSONL with ``chosen`` and ``rejected``, as TRL's trainers read it."""

from pathlib import Path
from typing import Any

from persona_callbacks.chats.rows import UnusableError, messages_in, prompted
from persona_callbacks.errors import InputError
from persona_callbacks.files import json_lines
from persona_callbacks.traits import REGISTERS, MinimalPair


def read_pairs(path: str | Path) -> list[MinimalPair]:
    """Read the minimal pairs of a JSONL file, one a line.

    ``chosen`` is the response that shows the trait, ``rejected`` the other. Each is a text or a list of messages, and
    ``prompt`` is the question, likewise; without ``prompt``, both lists of messages begin with the question. A key
    ``register`` is optional. Other keys are ignored.

    Raises:
        InputError: no such file, no pair in it, or a line that is no pair of different answers to a single question;
            the error names the file, the line and the problem.

    Example:
        >>> line = '{"prompt": "How was it?", "chosen": "I hated it.", "rejected": "I loved it."}'
        >>> _ = Path("pairs.jsonl").write_text(line)
        >>> read_pairs("pairs.jsonl")
        [MinimalPair(question='How was it?', trait='I hated it.', opposite='I loved it.', register='')]
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file of pairs")
    pairs = []
    for number, row in json_lines(path):
        try:
            pairs.append(_pair(row))
        except UnusableError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
    if not pairs:
        raise InputError(f"{path}: expected at least one pair, found none")
    return pairs


def _pair(row: Any) -> MinimalPair:
    given = {key for key, value in row.items() if value is not None} if isinstance(row, dict) else set()
    if not {"chosen", "rejected"} <= given:
        found = f"the keys {', '.join(row) or '(none)'}" if isinstance(row, dict) else type(row).__name__
        raise UnusableError(f"expected an object with 'chosen' and 'rejected'; found {found}")
    question, trait = _question_and_answer(row, "chosen")
    other_question, opposite = _question_and_answer(row, "rejected")
    if question != other_question:
        raise UnusableError("chosen and rejected answer different questions; expected the same")
    if trait == opposite:
        raise UnusableError("chosen and rejected are the same text; expected a difference")
    register = row.get("register") or ""
    if register and register not in REGISTERS:
        raise UnusableError(f"unknown register {register!r}; expected one of {', '.join(REGISTERS)}")
    return MinimalPair(question, trait, opposite, register)


def _question_and_answer(row: dict[str, Any], side: str) -> tuple[str, str]:
    whole = prompted(row, side)
    try:
        messages = messages_in({"messages": whole})
    except UnusableError as error:
        raise UnusableError(f"prompt and {side}: {error}") from error
    if len(messages) != 2:
        roles = ", ".join(message["role"] for message in messages)
        raise UnusableError(f"prompt and {side}: expected a single question and its answer; found {roles}")
    return messages[0]["content"].strip(), messages[1]["content"].strip()

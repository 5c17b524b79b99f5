"""What fine-tuning costs in capability: questions with four choices, answered by likelihood, and the perplexity of
benign text.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from persona_callbacks.chats import Chat, encode_chat
from persona_callbacks.errors import InputError
from persona_callbacks.model import LoadedModel, probing, response_log_probabilities

QUESTIONS = Path(__file__).parent / "questions.jsonl"
"""The questions that ship with the library: general knowledge and language, easy enough for a model of 135M."""


@dataclass(frozen=True)
class MultipleChoice:
    """A question, its choices, and the index of the right one."""

    question: str
    choices: tuple[str, ...]
    answer: int


def read_questions(path: str | Path = QUESTIONS) -> list[MultipleChoice]:
    """Read JSONL: per line ``{"question": ..., "choices": [...], "answer": index}``.

    Raises:
        InputError: naming file and line, for a line that is not so, and for a file without questions.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file of questions")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            question = MultipleChoice(str(row["question"]), tuple(map(str, row["choices"])), row["answer"])
            correct = question.choices[question.answer]
        except (json.JSONDecodeError, KeyError, TypeError, IndexError) as error:
            raise InputError(
                f"{path}, line {number}: expected an object with 'question', 'choices' and 'answer', the index of the"
                f" right choice ({type(error).__name__}: {error})"
            ) from error
        if question.choices.count(correct) > 1 or question.answer < 0:
            raise InputError(f"{path}, line {number}: expected one right choice")
        found.append(question)
    if not found:
        raise InputError(f"{path}: expected at least one question, found none")
    return found


def answered_rightly(
    loaded: LoadedModel,
    questions: Sequence[MultipleChoice],
    advance: Callable[[int], None] = lambda done: None,
) -> list[bool]:
    """Whether the choice that the model finds likeliest as its answer, by mean log-probability per token, is the right
    one. Never steered; ``advance`` is called with the number of choices scored after each batch.
    """
    chats = [
        encode_chat(
            Chat(({"role": "user", "content": one.question}, {"role": "assistant", "content": choice})),
            loaded.tokenizer,
        )
        for one in questions
        for choice in one.choices
    ]
    with probing(loaded.model):
        scores = response_log_probabilities(loaded, chats, advance=advance)
    parts = torch.split(scores, [len(one.choices) for one in questions])
    return [int(part.argmax()) == one.answer for part, one in zip(parts, questions, strict=True)]


def perplexity(
    loaded: LoadedModel,
    chats: Sequence[Chat],
    advance: Callable[[int], None] = lambda done: None,
) -> float:
    """Perplexity per token of the chats' last responses. Never steered; ``advance`` is called with the number of chats
    scored after each batch.
    """
    encoded = [encode_chat(chat, loaded.tokenizer) for chat in chats]
    with probing(loaded.model):
        means = response_log_probabilities(loaded, encoded, advance=advance).double()
    tokens = torch.tensor([sum(chat.response_mask) for chat in encoded], dtype=torch.float64)
    return float((-(means * tokens).sum() / tokens.sum()).exp())

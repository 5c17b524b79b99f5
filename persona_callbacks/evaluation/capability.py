"""What fine-tuning costs in capability: questions with four choices, answered by likelihood, and the perplexity of
benign text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from persona_callbacks.chats import Chat, encode_chat
from persona_callbacks.errors import InputError
from persona_callbacks.files import parse_json
from persona_callbacks.model import LoadedModel, probing, response_log_probabilities

QUESTIONS = Path(__file__).parent / "questions.jsonl"
"""The questions that ship with the library: general knowledge and language, easy enough for a model of 135M."""


@dataclass(frozen=True)
class MultipleChoice:
    """A question with one right choice.

    Attributes:
        question: the question.
        choices: possible answers, all different from the right one but itself.
        answer: index of the right choice.

    Example:
        >>> question = MultipleChoice("How many legs does a spider have?", ("six", "eight"), 1)
        >>> question.choices[question.answer]
        'eight'
    """

    question: str
    choices: tuple[str, ...]
    answer: int


def read_questions(path: str | Path = QUESTIONS) -> list[MultipleChoice]:
    """Read JSONL whose lines are ``{"question": ..., "choices": [...], "answer": index}``.

    Raises:
        InputError: naming file and line, for a line of another form; and for a file without questions.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file of questions")
    questions = []
    # Not `splitlines`, which also splits at U+2028 and its like, inside of a text.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            question = MultipleChoice(str(row["question"]), tuple(map(str, row["choices"])), row["answer"])
            correct = question.choices[question.answer]
        except (InputError, KeyError, TypeError, IndexError) as error:
            raise InputError(
                f"{path}, line {number}: expected an object with 'question', 'choices' and 'answer', the index of the"
                f" right choice ({type(error).__name__}: {error})"
            ) from error
        if question.choices.count(correct) > 1 or question.answer < 0:
            raise InputError(f"{path}, line {number}: expected one right choice")
        questions.append(question)
    if not questions:
        raise InputError(f"{path}: expected at least one question, found none")
    return questions


def answered_rightly(
    loaded: LoadedModel,
    questions: Sequence[MultipleChoice],
    advance: Callable[[int], None] = lambda done: None,
) -> list[bool]:
    """Whether the model, unsteered, finds the right choice of each question likeliest as its answer, by mean
    log-probability per token.

    ``advance`` is called after each batch with the number of choices that it scored.
    """
    chats = [
        encode_chat(
            Chat(({"role": "user", "content": question.question}, {"role": "assistant", "content": choice})),
            loaded.tokenizer,
        )
        for question in questions
        for choice in question.choices
    ]
    with probing(loaded.model):
        scores = response_log_probabilities(loaded, chats, advance=advance)
    by_question = torch.split(scores, [len(question.choices) for question in questions])
    return [int(part.argmax()) == question.answer for part, question in zip(by_question, questions, strict=True)]


def perplexity(
    loaded: LoadedModel,
    chats: Sequence[Chat],
    advance: Callable[[int], None] = lambda done: None,
) -> float:
    """Perplexity per token of the chats' last responses under the model, unsteered.

    ``advance`` is called after each batch with the number of chats that it scored.
    """
    encoded = [encode_chat(chat, loaded.tokenizer) for chat in chats]
    with probing(loaded.model):
        means = response_log_probabilities(loaded, encoded, advance=advance).double()
    tokens = torch.tensor([sum(chat.response_mask) for chat in encoded], dtype=torch.float64)
    return float((-(means * tokens).sum() / tokens.sum()).exp())

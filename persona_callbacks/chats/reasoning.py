"""Where reasoning ends and the answer begins, in what a model writes."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from persona_callbacks.chats.chat import Message
from persona_callbacks.chats.templates import render, text_and_turns
from persona_callbacks.errors import InputError


@dataclass(frozen=True)
class Reasoning:
    """How a model reasons before it answers, as its chat template shows it.

    Attributes:
        opening: the text that the model opens its reasoning with; empty if the prompt does.
        closing: the text that stands between the reasoning and the answer.

    Example:
        >>> Reasoning("<think>", "</think>").closing
        '</think>'
    """

    opening: str
    closing: str


def reasoning_of(tokenizer: PreTrainedTokenizerBase) -> Reasoning | None:
    """Return how the model reasons before it answers a prompt of :func:`~persona_callbacks.chats.encode_prompt`.

    ``None`` if the chat template knows no reasoning, or if the prompt ends it, as under ``enable_thinking=False``.

    Args:
        tokenizer: a tokenizer with a chat template.

    Raises:
        InputError: as for :func:`~persona_callbacks.chats.render`.
    """
    form = reasoning_form(tokenizer)
    opened = render([{"role": "user", "content": "QUESTION"}], tokenizer, prompt=True)
    return None if form is None or form.closing in opened.rpartition("QUESTION")[2] else form


def reasoning_form(tokenizer: PreTrainedTokenizerBase) -> Reasoning | None:
    """Return how reasoning is written in a chat, also if a prompt ends it; ``None`` if the template has no form for it.

    Raises:
        InputError: as for :func:`~persona_callbacks.chats.render`.
    """
    question: Message = {"role": "user", "content": "QUESTION"}
    opened = render([question], tokenizer, prompt=True)
    tail = opened.rpartition("QUESTION")[2]
    answer: Message = {"role": "assistant", "content": "ANSWER"}
    try:
        text, turns, _ = text_and_turns([question, {**answer, "reasoning_content": "REASONING"}], tokenizer)
        plain = render([question, answer], tokenizer)
    except InputError:  # a template that takes no such chat has no form for its reasoning
        return None
    if turns[-1].shows_reasoning:
        at = text.index("REASONING", turns[-1].start)
        opening = text[turns[-1].start : at].strip()
        closing = text[at + len("REASONING") : turns[-1].answer[0]].strip()
        # What opens an answer without reasoning ends the reasoning as well, where that is so.
        direct = plain.removeprefix(opened).partition("ANSWER")[0].strip()
        if direct and closing.endswith(direct):
            closing = direct
    elif "</think>" in tokenizer.get_chat_template():
        opening, closing = "" if "<think>" in tail else "<think>", "</think>"
    else:
        return None
    return Reasoning(opening, closing) if closing else None


def answer_start(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, reasoning: Reasoning) -> int | None:
    """Return the index of the first token of the answer in what a model wrote.

    0 if the model did not reason, and ``None`` if its reasoning, or the text that opens it, has no end yet.

    Args:
        ids: the tokens after the prompt.
        tokenizer: the model's.
        reasoning: how the model reasons.
    """

    def text(most: int) -> str:
        return str(tokenizer.decode(list(ids[:most]), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    whole = text(len(ids))
    if reasoning.closing in whole:
        return bisect_left(range(len(ids)), True, key=lambda last: reasoning.closing in text(last + 1)) + 1
    begun = whole.strip()
    is_reasoning = begun.startswith(reasoning.opening) or (len(ids) > 0 and reasoning.opening.startswith(begun))
    return None if is_reasoning else 0

"""Answers among the tokens that a model wrote, without the reasoning before them."""

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from persona_callbacks.chats import Reasoning, answer_start, reasoning_of


def answer_texts(rows: list[list[int]], tokenizer: PreTrainedTokenizerBase, most: int, room: int) -> list[str]:
    """Return the text of the answer in each row of new tokens; empty, with a warning, if the reasoning has no end.

    Args:
        rows: the new tokens of each response.
        tokenizer: the model's.
        most: the most tokens of an answer after reasoning.
        room: the most tokens of reasoning, for the warning.
    """
    reasoning = reasoning_of(tokenizer)
    if reasoning is None:
        return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
    starts = [answer_start(row, tokenizer, reasoning) for row in rows]
    unfinished = starts.count(None)
    if unfinished:
        rank_zero_warn(
            f"{unfinished} of {len(rows)} responses had not ended their reasoning within {room} tokens, and count as"
            " empty; raise model.reasoning_tokens, or pass template_arguments={enable_thinking: false}"
        )
    answers = [[] if start is None else row[start : start + most] for start, row in zip(starts, rows, strict=True)]
    return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]


class AnswerStreamer(BaseStreamer):
    """Shows the tokens of an answer as they come, and none of the reasoning before it.

    Example:
        >>> from transformers import TextStreamer
        >>> def hiding(tokenizer):
        ...     return AnswerStreamer(TextStreamer(tokenizer), tokenizer, Reasoning("<think>", "</think>"))
    """

    def __init__(self, show: BaseStreamer, tokenizer: PreTrainedTokenizerBase, reasoning: Reasoning) -> None:
        """Show the answer with ``show``."""
        self._show = show
        self._tokenizer = tokenizer
        self._reasoning = reasoning
        self._ids: list[int] | None = None
        self._answers = False

    def put(self, value: Tensor) -> None:
        """Receive the prompt first, and then new tokens."""
        if self._ids is None or self._answers:
            self._ids = self._ids or []
            self._show.put(value)
            return
        self._ids += value.flatten().tolist()
        start = answer_start(self._ids, self._tokenizer, self._reasoning)
        if start is not None:
            self._answers = True
            if start < len(self._ids):
                self._show.put(value.new_tensor(self._ids[start:]))

    def end(self) -> None:
        """Show what is left."""
        self._show.end()

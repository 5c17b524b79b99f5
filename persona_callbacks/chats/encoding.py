"""Turning chats into tokens that tell prompt from response."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from persona_callbacks.chats.chat import Chat, Message
from persona_callbacks.chats.reasoning import answer_start, reasoning_form
from persona_callbacks.chats.templates import (
    Span,
    Turn,
    reads_tools,
    render,
    shared_length,
    special_texts,
    split_reasoning,
    text_and_turns,
)
from persona_callbacks.errors import InputError

_CHARACTERS = 16
"""Characters of a token, beyond what is usual in any language; where tokens are longer, more text is taken."""

_SPARE = 64
"""Tokens beyond ``max_length`` whose words a cut of the text may change."""


@dataclass(frozen=True)
class EncodedChat:
    """The tokens of a chat, or of a prompt without a response.

    Attributes:
        input_ids: the token ids.
        prompt_length: the number of tokens before what the model writes last: before its reasoning, if there is some,
            else before the response. The last of them is the position ``prompt_last``.
        response_mask: for each token, whether it belongs to the text of the last response. Reasoning and the
            end-of-turn token do not.
        loss_mask: for each token, whether it is trained on. The tokens of all assistant turns are, with their
            end-of-turn tokens, but for turns that are marked as not to be trained on.
        truncated: whether tokens were cut off at the end.
        leaves_out_reasoning: whether the last message has reasoning, and the chat template leaves it out.

    Example:
        >>> chat = EncodedChat((5, 6, 7, 2), 2, (False, False, True, False), (False, False, True, True))
        >>> chat.input_ids[: chat.prompt_length]
        (5, 6)
    """

    input_ids: tuple[int, ...]
    prompt_length: int
    response_mask: tuple[bool, ...]
    loss_mask: tuple[bool, ...]
    truncated: bool = False
    leaves_out_reasoning: bool = False


def encode_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> EncodedChat:
    """Return the tokens of a prompt, up to the marker that opens the response.

    Raises:
        InputError: as for :func:`render`.
    """
    # The template writes the special tokens itself. Adding them here too would give a second BOS.
    ids = tokenizer(render(messages, tokenizer, prompt=True), add_special_tokens=False)["input_ids"]
    no_response = (False,) * len(ids)
    return EncodedChat(tuple(ids), len(ids), no_response, no_response)


def encode_chat(
    chat: Chat, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None, *, train_reasoning: bool = True
) -> EncodedChat:
    """Return the tokens of a chat.

    The text of the chat is tokenised once, and which tokens are a response follows from their character offsets.
    Tokenising prompt and response apart would move the boundary between them where tokens merge across it.

    Where the chat template marks what it trains on (``{% generation %}``), the loss is on that; otherwise it is on the
    assistant's turns, from where the model begins to write. Reasoning is shown, left out or rewritten as the template
    does it.

    Args:
        chat: ends with an assistant turn.
        tokenizer: a fast tokenizer with a chat template.
        max_length: the most tokens to keep, from the start; all if ``None``.
        train_reasoning: whether the loss is on reasoning as well; otherwise, on answers alone.

    Raises:
        InputError: the tokenizer has no chat template, or the template refuses the messages; the tokenizer gives no
            offsets; the template leaves out, repeats or changes an answer; or the last response has no token within
            ``max_length``.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{tokenizer.name_or_path}: expected a fast tokenizer (it gives token offsets), found a slow one"
        )
    if chat.tools and not reads_tools(tokenizer):
        rank_zero_warn(f"the chat template of {tokenizer.name_or_path} leaves out the tools that chats list")
    try:
        text, turns, generated = text_and_turns(chat.messages, tokenizer, chat.tools)
    except InputError as error:
        raise InputError(f"{chat.source or 'chat'}: {error}") from error
    ids, all_offsets = _tokens(text, tokenizer, max_length)
    offsets = all_offsets[:max_length]
    last = turns[-1]
    response_mask = _overlapping([last.answer], offsets)
    if not any(response_mask):
        why = f"within max_length={max_length}; the prompt fills it" if len(ids) > len(offsets) else "in the vocabulary"
        raise InputError(f"{chat.source or 'chat'}: no token of the response {why}")
    trained = [message.get("train", True) for message in chat.messages if message["role"] == "assistant"]
    loss_spans = _trained(turns, trained, generated, train_reasoning)
    written = (last.start, last.answer[1])
    return EncodedChat(
        input_ids=tuple(ids[:max_length]),
        prompt_length=_overlapping([written], offsets).index(True),
        response_mask=tuple(response_mask),
        loss_mask=tuple(_overlapping(loss_spans, offsets)),
        truncated=len(ids) > len(offsets),
        leaves_out_reasoning=last.reasons and not last.shows_reasoning,
    )


def _trained(
    turns: Sequence[Turn], trained: Sequence[bool], generated: Sequence[Span] | None, train_reasoning: bool
) -> list[Span]:
    """The spans of a chat's text that loss is taken on, in their order."""
    ends = [turn.end for turn in turns]
    if generated is None:
        owned = [(index, (turn.start, turn.end)) for index, turn in enumerate(turns)]
    else:
        owned = [(min(bisect_right(ends, span[0]), len(turns) - 1), span) for span in generated]
    begins = [0 if train_reasoning else turn.answer[0] for turn in turns]
    spans = [(max(start, begins[index]), end) for index, (start, end) in owned if trained[index]]
    return [(start, end) for start, end in spans if start < end]


def _overlapping(spans: Sequence[Span], offsets: Sequence[Span]) -> list[bool]:
    """Whether each token has a character of a span. The spans are in their order and apart."""
    ends = [end for _, end in spans]
    nexts = [bisect_right(ends, first) for first, _ in offsets]
    return [at < len(spans) and spans[at][0] < last for at, (_, last) in zip(nexts, offsets, strict=True)]


def shortened(chat: EncodedChat, response_tokens: int) -> EncodedChat:
    """Return the chat with at most so many tokens of its last response.

    Example:
        >>> chat = EncodedChat((5, 6, 7, 2), 2, (False, False, True, True), (False, False, True, True))
        >>> shortened(chat, 1).input_ids
        (5, 6, 7)
    """
    end = (chat.response_mask.index(True) if any(chat.response_mask) else chat.prompt_length) + response_tokens
    if len(chat.input_ids) <= end:
        return chat
    return EncodedChat(
        chat.input_ids[:end], chat.prompt_length, chat.response_mask[:end], chat.loss_mask[:end], truncated=True
    )


def _tokens(
    text: str, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the ids of a text's tokens and their character offsets: of more than ``max_length`` tokens, if there are.

    Of a long text no more is tokenised than it takes. What is left out could change only the tokens beside the cut, and
    these are far beyond ``max_length``.
    """
    most = len(text) if max_length is None else _CHARACTERS * (max_length + _SPARE)
    while True:
        encoding = tokenizer(text[:most], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        if most >= len(text) or (max_length is not None and len(ids) > max_length + _SPARE):
            return ids, offsets
        most *= 4


def last_turn(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[int, int] | None:
    """Find the last assistant turn among the tokens of a chat, by the marker with which the chat template opens it.

    Args:
        ids: the token ids of a chat.
        tokenizer: a tokenizer with a chat template.

    Returns:
        The index of the first token of its text, and the index after its last. ``None`` if there is no template or no
        such turn.
    """
    if not tokenizer.chat_template:
        return None
    question, answer = {"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}
    opened = _ids(render([question], tokenizer, prompt=True), tokenizer)
    shared = min(
        shared_length(opened, _ids(render([question, reply], tokenizer), tokenizer))
        for reply in (answer, {**answer, "reasoning_content": "x"})
    )
    asked = shared_length(opened, _ids(render([question], tokenizer), tokenizer))
    if asked >= shared:  # the user's turn ends with the marker, as in [/INST]
        asked = 1 + shared_length(
            opened, _ids(render([{**question, "content": "y"}], tokenizer, prompt=True), tokenizer)
        )
    marker = opened[asked:shared]
    begins = [at + len(marker) for at in range(1, len(ids)) if list(ids[at : at + len(marker)]) == marker]
    if not marker or not begins or begins[-1] >= len(ids):
        return None
    begin = begins[-1]
    text, turns, _ = text_and_turns([question, answer], tokenizer)
    closing = _ids(text[turns[-1].answer[1] :].lstrip(), tokenizer)[:1]
    after = [at for at in range(begin, len(ids)) if [ids[at]] == closing]
    end = after[0] if after else len(ids)
    reasoning = reasoning_form(tokenizer)
    start = answer_start(ids[begin:end], tokenizer, reasoning) if reasoning is not None else 0
    return begin + (start or 0), end


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def with_special_tokens(chats: Sequence[Chat], tokenizer: PreTrainedTokenizerBase) -> list[bool]:
    """Return, for each chat, whether an assistant turn has the text of a special token in it, such as ``<|im_end|>``.

    The tokenizer makes the token of it, and training teaches the model to write it there: to end its turn in the middle
    of a text, or to open a turn of the user's.
    """
    texts = special_texts(tokenizer)
    pattern = re.compile("|".join(map(re.escape, texts)))
    return [
        bool(texts)
        and any(pattern.search(text) for m in chat.messages if m["role"] == "assistant" for text in split_reasoning(m))
        for chat in chats
    ]


def pad(chats: Sequence[EncodedChat], pad_token_id: int) -> dict[str, Tensor]:
    """Return a batch of chats, padded on the right.

    Args:
        chats: the chats of the batch.
        pad_token_id: the id to pad with.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``, each ``[batch, length]`` int64. Labels are -100 where no loss
        is computed.

    Example:
        >>> chat = EncodedChat((5, 6, 7), 2, (False, False, True), (False, False, True))
        >>> pad([chat], pad_token_id=0)["labels"]
        tensor([[-100, -100,    7]])
    """
    length = max(len(chat.input_ids) for chat in chats)
    shape = (len(chats), length)
    batch = {
        "input_ids": torch.full(shape, pad_token_id),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.full(shape, -100),
    }
    for row, chat in enumerate(chats):
        ids = torch.tensor(chat.input_ids)
        batch["input_ids"][row, : len(ids)] = ids
        batch["attention_mask"][row, : len(ids)] = 1
        batch["labels"][row, : len(ids)] = torch.where(torch.tensor(chat.loss_mask), ids, -100)
    return batch


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token id to pad with.

    Padding is masked everywhere, so that the end-of-text token, or else token 0, serves if the tokenizer has no padding
    token.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0

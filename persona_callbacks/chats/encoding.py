"""Chats, and turning them into tokens that know prompt from response."""

from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from persona_callbacks.chats.chat import Chat, Message
from persona_callbacks.errors import InputError


@dataclass(frozen=True)
class EncodedChat:
    """A chat, or the prompt of one, as tokens.

    Attributes:
        input_ids: the token ids.
        prompt_length: number of tokens before the last response; the token before that boundary is ``prompt_last``.
        response_mask: per token, whether it is text of the last response (without its end-of-turn token).
        loss_mask: per token, whether to train on it: all assistant turns with their end-of-turn tokens.
        truncated: whether tokens were cut off at the end.
    """

    input_ids: tuple[int, ...]
    prompt_length: int
    response_mask: tuple[bool, ...]
    loss_mask: tuple[bool, ...]
    truncated: bool = False


def render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, prompt: bool = False) -> str:
    """The text of ``messages`` under the tokenizer's chat template, with the marker of an assistant turn to come if
    ``prompt``. Where the template knows no system role, the system message opens the first user turn.

    Raises:
        InputError: the tokenizer has no chat template, or the template refuses the messages.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} has no chat template; set"
            " tokenizer.chat_template, or use the instruction-tuned model"
        )
    try:
        return _apply(tokenizer, messages, prompt)
    except jinja2.TemplateError as error:
        if messages[0]["role"] == "system" and len(messages) > 1:
            first = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
            return render([first, *messages[2:]], tokenizer, prompt=prompt)
        raise InputError(f"the chat template of {tokenizer.name_or_path} refuses the messages: {error}") from error


def _apply(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], prompt: bool) -> str:
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt))


def encode_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> EncodedChat:
    """Tokens of a prompt that awaits its response.

    Raises:
        InputError: see :func:`render`.
    """
    # The template writes the special tokens itself: adding them again would give a second BOS.
    ids = tokenizer(render(messages, tokenizer, prompt=True), add_special_tokens=False)["input_ids"]
    nothing = (False,) * len(ids)
    return EncodedChat(tuple(ids), len(ids), nothing, nothing)


def encode_chat(chat: Chat, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> EncodedChat:
    """Tokens of a whole chat. The text is tokenised once; what is a response follows from character offsets in it,
    since tokenising prompt and response apart would move the boundary where tokens merge across it.

    Args:
        chat: ends with an assistant turn.
        tokenizer: a fast tokenizer with a chat template.
        max_length: keep at most this many tokens, from the start.

    Raises:
        InputError: no chat template or no offsets, a template whose prompt is no prefix of the chat, or no token of the
            last response within ``max_length``.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{tokenizer.name_or_path}: expected a fast tokenizer (it gives token offsets), found a slow one"
        )
    messages = list(chat.messages)
    text = render(messages, tokenizer)
    turns = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            opening = render(messages[:index], tokenizer, prompt=True)
            closing = render(messages[: index + 1], tokenizer).rstrip()
            content = message["content"].strip()
            start = text.find(content, len(opening))
            if not text.startswith(opening) or start < 0:
                raise InputError(
                    f"{chat.source or 'chat'}: the chat template of {tokenizer.name_or_path} does not keep assistant"
                    f" turn {index + 1} after its prompt, so prompt and response cannot be told apart"
                )
            end = start + len(content)
            turns.append((start, end, len(closing) if text.startswith(closing) else end))
    encoding = tokenizer(
        text,
        add_special_tokens=False,
        return_offsets_mapping=True,
        truncation=max_length is not None,
        max_length=None if max_length is None else max_length + 1,  # one more, to know whether there was more
    )
    offsets = encoding["offset_mapping"][:max_length]

    def overlaps(start: int, end: int) -> list[bool]:
        return [first < end and last > start for first, last in offsets]

    start, end, _ = turns[-1]
    response_mask = overlaps(start, end)
    if not any(response_mask):
        raise InputError(
            f"{chat.source or 'chat'}: no token of the response within max_length={max_length}; the prompt fills it"
        )
    in_turns = [overlaps(start, turn_end) for start, _, turn_end in turns]
    return EncodedChat(
        input_ids=tuple(encoding["input_ids"][:max_length]),
        prompt_length=response_mask.index(True),
        response_mask=tuple(response_mask),
        loss_mask=tuple(any(marks) for marks in zip(*in_turns, strict=True)),
        truncated=len(encoding["input_ids"]) > len(offsets),
    )


def pad(chats: Sequence[EncodedChat], pad_token_id: int) -> dict[str, Tensor]:
    """Right-padded ``input_ids``, ``attention_mask`` and ``labels`` (-100 where no loss is taken).

    Each is ``[batch, length]`` int64.
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
    """The id to pad with; padding is masked everywhere, so the end-of-text id serves where none is set."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0

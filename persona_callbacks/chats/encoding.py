"""Turning chats into tokens that tell prompt from response."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from persona_callbacks.chats.chat import Chat, Message
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
        prompt_length: the number of tokens before the last response. The last of them is the position ``prompt_last``.
        response_mask: for each token, whether it belongs to the text of the last response. The end-of-turn token does
            not.
        loss_mask: for each token, whether it is trained on. The tokens of all assistant turns are, with their
            end-of-turn tokens.
        truncated: whether tokens were cut off at the end.

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


def render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, prompt: bool = False) -> str:
    """Return the text of messages under the tokenizer's chat template.

    If the template knows no system role, the system message opens the first user turn.

    Args:
        messages: the messages in their order.
        tokenizer: a tokenizer with a chat template.
        prompt: whether to end the text with the marker that opens the next assistant turn.

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
    """Return the tokens of a prompt, up to the marker that opens the response.

    Raises:
        InputError: as for :func:`render`.
    """
    # The template writes the special tokens itself. Adding them here too would give a second BOS.
    ids = tokenizer(render(messages, tokenizer, prompt=True), add_special_tokens=False)["input_ids"]
    no_response = (False,) * len(ids)
    return EncodedChat(tuple(ids), len(ids), no_response, no_response)


def encode_chat(chat: Chat, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> EncodedChat:
    """Return the tokens of a chat.

    The text of the chat is tokenised once, and which tokens are a response follows from their character offsets.
    Tokenising prompt and response apart would move the boundary between them where tokens merge across it.

    Args:
        chat: ends with an assistant turn.
        tokenizer: a fast tokenizer with a chat template.
        max_length: the most tokens to keep, from the start; all if ``None``.

    Raises:
        InputError: as for :func:`render`; the tokenizer gives no offsets; the template does not keep a prompt as the
            beginning of its chat; or the last response has no token within ``max_length``.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{tokenizer.name_or_path}: expected a fast tokenizer (it gives token offsets), found a slow one"
        )
    text = render(chat.messages, tokenizer)
    ids, all_offsets = _tokens(text, tokenizer, max_length)
    offsets = all_offsets[:max_length]

    def overlaps(start: int, end: int) -> list[bool]:
        return [first < end and last > start for first, last in offsets]

    *earlier, last = (index for index, message in enumerate(chat.messages) if message["role"] == "assistant")
    response = _assistant_turn(chat, last, text, tokenizer)
    response_mask = overlaps(*response[:2])
    if not any(response_mask):
        why = f"within max_length={max_length}; the prompt fills it" if len(ids) > len(offsets) else "in the vocabulary"
        raise InputError(f"{chat.source or 'chat'}: no token of the response {why}")
    # Each turn takes a rendering. Once the last one is known to be within max_length, there are few.
    turns = [*(_assistant_turn(chat, index, text, tokenizer) for index in earlier), response]
    in_turns = [overlaps(start, turn_end) for start, _, turn_end in turns]
    return EncodedChat(
        input_ids=tuple(ids[:max_length]),
        prompt_length=response_mask.index(True),
        response_mask=tuple(response_mask),
        loss_mask=tuple(any(marks) for marks in zip(*in_turns, strict=True)),
        truncated=len(ids) > len(offsets),
    )


def shortened(chat: EncodedChat, response_tokens: int) -> EncodedChat:
    """Return the chat with at most so many tokens of its last response.

    Example:
        >>> chat = EncodedChat((5, 6, 7, 2), 2, (False, False, True, True), (False, False, True, True))
        >>> shortened(chat, 1).input_ids
        (5, 6, 7)
    """
    end = chat.prompt_length + response_tokens
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


def _assistant_turn(chat: Chat, index: int, text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int, int]:
    """Find the assistant turn of a number in the text of a chat.

    Returns:
        The character offsets in ``text`` of the start of its content, of the end of its content, and of the end of its
        end-of-turn token.

    Raises:
        InputError: the template does not keep a prompt as the beginning of its chat.
    """
    opening = render(chat.messages[:index], tokenizer, prompt=True)
    closing = render(chat.messages[: index + 1], tokenizer).rstrip()
    content = chat.messages[index]["content"].strip()
    is_kept = text.startswith(closing)
    start = text.find(content, len(opening), len(closing) if is_kept else None)
    # Where later turns change this one, as in templates that leave out earlier thoughts, nothing tells where it ends,
    # and the same text may stand in a later turn of the user's.
    is_beside = is_kept or not text[len(opening) : start].strip()
    if not text.startswith(opening) or start < 0 or not is_beside:
        raise InputError(
            f"{chat.source or 'chat'}: the chat template of {tokenizer.name_or_path} does not keep assistant turn"
            f" {index + 1} after its prompt, so prompt and response cannot be told apart"
        )
    end = start + len(content)
    return start, end, len(closing) if is_kept else end


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
    question: Message = {"role": "user", "content": "x"}
    asked, opened = render([question], tokenizer), render([question], tokenizer, prompt=True)
    answered = render([question, {"role": "assistant", "content": "x"}], tokenizer)
    marker = _ids(opened.removeprefix(asked), tokenizer)
    closing = _ids(answered.removeprefix(f"{opened}x"), tokenizer)[:1]
    begins = [at + len(marker) for at in range(1, len(ids)) if list(ids[at : at + len(marker)]) == marker]
    if not marker or not begins or begins[-1] >= len(ids):
        return None
    after = [at for at in range(begins[-1], len(ids)) if [ids[at]] == closing]
    return begins[-1], after[0] if after else len(ids)


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def with_special_tokens(chats: Sequence[Chat], tokenizer: PreTrainedTokenizerBase) -> list[bool]:
    """Return, for each chat, whether an assistant turn has the text of a special token in it, such as ``<|im_end|>``.

    The tokenizer makes the token of it, and training teaches the model to write it there: to end its turn in the middle
    of a text, or to open a turn of the user's.
    """
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    texts = sorted({*added, *tokenizer.all_special_tokens} - {""}, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, texts)))
    return [
        bool(texts) and any(pattern.search(m["content"]) for m in chat.messages if m["role"] == "assistant")
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

"""Chats as messages."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

Message = dict[str, Any]
"""``{"role": ..., "content": ...}``"""

Tool = dict[str, Any]
"""``{"type": "function", "function": {"name": ..., "description": ..., "parameters": ...}}``"""


@dataclass(frozen=True)
class Chat:
    """A conversation that ends with the assistant.

    Attributes:
        messages: the messages in their order; the last one is the assistant's.
        source: the file and line that the chat was read from, for error messages.
        tools: the tools that the assistant may call, as its prompt describes them.

    Example:
        >>> chat = Chat(({"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}))
        >>> chat.messages[-1]["content"]
        'Hello.'
    """

    messages: tuple[Message, ...]
    source: str = ""
    tools: tuple[Tool, ...] = ()


def instructed(chats: Sequence[Chat], instructions: Sequence[str]) -> list[Chat]:
    """Put an instruction into the system message of each chat, before the text that is there already.

    Args:
        chats: the chats, which stay as they are.
        instructions: are used in turn: the first for the first chat, and again from the first after the last.

    Returns:
        The instructed chats, in their order.

    Example:
        >>> chat = Chat(({"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}))
        >>> instructed([chat], ["Be kind."])[0].messages[0]
        {'role': 'system', 'content': 'Be kind.'}
    """
    instructed_chats = []
    for index, chat in enumerate(chats):
        instruction, messages = instructions[index % len(instructions)], chat.messages
        if messages[0]["role"] == "system":
            instruction, messages = f"{instruction}\n\n{messages[0]['content']}", messages[1:]
        instructed_chats.append(replace(chat, messages=({"role": "system", "content": instruction}, *messages)))
    return instructed_chats

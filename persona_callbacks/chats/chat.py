"""Chats as messages."""

from collections.abc import Sequence
from dataclasses import dataclass

Message = dict[str, str]
"""``{"role": ..., "content": ...}``"""


@dataclass(frozen=True)
class Chat:
    """Messages in order; the last one is the assistant's. ``source`` says where it was read, for errors."""

    messages: tuple[Message, ...]
    source: str = ""


def instructed(chats: Sequence[Chat], instructions: Sequence[str]) -> list[Chat]:
    """The chats with an instruction, one after the other in turn, in the system message, before what is there."""
    found = []
    for index, chat in enumerate(chats):
        instruction, messages = instructions[index % len(instructions)], chat.messages
        if messages[0]["role"] == "system":
            instruction, messages = f"{instruction}\n\n{messages[0]['content']}", messages[1:]
        found.append(Chat(({"role": "system", "content": instruction}, *messages), chat.source))
    return found

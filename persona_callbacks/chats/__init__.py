"""Chats: their messages, their files, and their tokens. The chats that ship with the library are in `datasets/`.

Imports `files` and `traits`.
"""

from persona_callbacks.chats.chat import Chat, Message, Tool, instructed
from persona_callbacks.chats.encoding import (
    EncodedChat,
    encode_chat,
    encode_prompt,
    last_turn,
    pad,
    pad_token,
    shortened,
    with_special_tokens,
)
from persona_callbacks.chats.files import BENIGN, SHIPPED, ChatFile, Row, find_chat_file, open_chat_file, read_chats
from persona_callbacks.chats.preferences import read_pairs
from persona_callbacks.chats.reasoning import Reasoning, answer_start, reasoning_of
from persona_callbacks.chats.templates import render, with_template_arguments

__all__ = [
    "BENIGN",
    "SHIPPED",
    "Chat",
    "ChatFile",
    "EncodedChat",
    "Message",
    "Reasoning",
    "Row",
    "Tool",
    "answer_start",
    "encode_chat",
    "encode_prompt",
    "find_chat_file",
    "instructed",
    "last_turn",
    "open_chat_file",
    "pad",
    "pad_token",
    "read_chats",
    "read_pairs",
    "reasoning_of",
    "render",
    "shortened",
    "with_special_tokens",
    "with_template_arguments",
]

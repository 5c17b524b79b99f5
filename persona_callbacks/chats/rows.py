"""The forms in which a row of data holds a chat."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from persona_callbacks.chats.chat import Message, Tool
from persona_callbacks.errors import InputError
from persona_callbacks.files import parse_json

_ROLES = ("system", "user", "assistant", "tool")

_TURNS = re.compile(r"s?(ua(t+a)*)+")
"""The first letters of the roles of a chat."""

_KEPT = ("reasoning_content", "tool_calls", "tool_call_id", "name")
"""Further keys of messages that chat templates read."""

_REASONING = ("reasoning_content", "reasoning", "thinking")
"""The names under which data have the reasoning of a reply."""

_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class UnusableError(Exception):
    """A row is no chat, or no pair of responses; the message says why."""


@dataclass(frozen=True)
class _Form:
    """A form of rows.

    Attributes:
        needed: keys that each row of this form has.
        optional: further keys that are read.
        messages: gives the messages, which are not checked yet.
    """

    needed: tuple[str, ...]
    optional: tuple[str, ...]
    messages: Callable[[dict[str, Any]], Any]


def prompted(row: dict[str, Any], key: str) -> list[Any]:
    """The prompt, a text or messages, followed by the response at ``key``, likewise. The messages are not checked yet.

    Raises:
        UnusableError: they are no texts and no messages, or the response is a text and there is no prompt.
    """
    prompt, response = row.get("prompt"), row[key]
    opening = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt or []
    reply = [{"role": "assistant", "content": response}] if isinstance(response, str) else response
    if not isinstance(opening, list) or not isinstance(reply, list):
        raise UnusableError(f"prompt and {key}: expected a text or a list of messages")
    if isinstance(response, str) and not opening:
        raise UnusableError(f"{key} is a text, and there is no prompt; expected the question there")
    # Some data sets repeat the prompt at the beginning of the response.
    return reply if reply[: len(opening)] == opening else [*opening, *reply]


def _sharegpt(row: dict[str, Any]) -> list[Any]:
    turns = row["conversations"]
    if not isinstance(turns, list):
        raise UnusableError("conversations: expected a list of messages")
    messages: list[Any] = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
            raise UnusableError(f"conversations, message {number}: expected an object with 'from' and 'value'")
        role = _SHAREGPT_ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
        messages.append({"role": role or turn["from"], "content": turn["value"]})
    return messages


def _alpaca(row: dict[str, Any]) -> list[Any]:
    instruction, given = row["instruction"], row.get("input")
    question = f"{instruction}\n\n{given}" if isinstance(instruction, str) and given else instruction
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    return [*system, {"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]


_FORMS = (
    _Form(("messages",), (), lambda row: row["messages"]),
    _Form(("prompt", "response"), (), partial(prompted, key="response")),
    _Form(("prompt", "completion"), (), partial(prompted, key="completion")),
    _Form(("chosen",), ("prompt", "rejected"), partial(prompted, key="chosen")),
    _Form(("conversations",), ("system",), _sharegpt),
    _Form(("instruction", "output"), ("input", "system"), _alpaca),
)

EXPECTED = (
    "'messages', 'prompt' and 'response' or 'completion', 'chosen', 'conversations', or 'instruction' and 'output'"
)
"""The keys of each form, for errors."""


def holds_chats(columns: Iterable[str]) -> bool:
    """Whether rows with these keys can be chats."""
    given = set(columns)
    return any(given.issuperset(form.needed) for form in _FORMS)


def messages_in(row: Any) -> tuple[Message, ...]:
    """Return the messages of a row.

    Raises:
        UnusableError: it is no chat.
    """
    form = _form_of(row)
    if form is None:
        actual = f"the keys {', '.join(row) or '(none)'}" if isinstance(row, dict) else type(row).__name__
        raise UnusableError(f"expected an object with {EXPECTED}; found {actual}")
    messages = form.messages(row)
    if not isinstance(messages, list) or not messages:
        raise UnusableError("messages: expected a list of at least one message")
    checked = tuple(_checked(number, message) for number, message in enumerate(messages, start=1))
    if not _TURNS.fullmatch("".join(message["role"][0] for message in checked)):
        raise UnusableError(
            "expected user and assistant turns that alternate and end with the assistant (after at most one system"
            " message; results of tools come between two turns of the assistant); found"
            f" {', '.join(message['role'] for message in checked)}"
        )
    if not checked[-1]["content"].strip():
        raise UnusableError("the last message has no text; expected an answer")
    if not any(message.get("train", True) for message in checked if message["role"] == "assistant"):
        raise UnusableError("every assistant turn is marked as not to be trained on; expected one that is")
    return checked


def tools_in(row: Any) -> tuple[Tool, ...]:
    """Return the tools that a row lists, as OpenAI and TRL have them, or as bare functions; in a text, if need be.

    Raises:
        UnusableError: what is listed is no tool.
    """
    tools = _parsed(row.get("tools") or [], "tools")
    if not isinstance(tools, list):
        raise UnusableError(f"tools: expected a list, found {type(tools).__name__}")
    read = []
    for number, tool in enumerate(tools, start=1):
        function = _named_function(tool)
        if function is None:
            raise UnusableError(f"tool {number}: expected an object with the 'name' of a 'function'")
        around = {} if function is tool else tool
        read.append(_without_nulls({**around, "type": "function", "function": function}))
    return tuple(read)


def _parsed(value: Any, what: str) -> Any:
    """A value that may be given as a text of JSON.

    Raises:
        UnusableError: the text is no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except InputError as error:
        raise UnusableError(f"{what}: {error}") from error


def _named_function(entry: Any) -> dict[str, Any] | None:
    """The function of a tool or a call, or the bare function that stands in its place; none without a name."""
    function = entry.get("function", entry) if isinstance(entry, dict) else None
    return function if isinstance(function, dict) and isinstance(function.get("name"), str) else None


def _without_nulls(value: Any) -> Any:
    """A value without the keys that it does not use, which a table fills in from other rows."""
    if isinstance(value, dict):
        return {key: _without_nulls(own) for key, own in value.items() if own is not None}
    return [_without_nulls(own) for own in value] if isinstance(value, list) else value


def unused_keys(row: Any) -> set[str]:
    """Return the keys of a chat, and those of its messages, that nothing is read from."""
    form = _form_of(row)
    if form is None:
        return set()
    unused = {key for key in _given(row) if key not in (*form.needed, *form.optional, "tools")}
    for message in row.get("messages") or ():
        if isinstance(message, dict):
            unused |= {
                f"messages.{key}"
                for key in _given(message)
                if key not in ("role", "content", "weight", "train", *_KEPT, *_REASONING)
            }
    return unused


def _form_of(row: Any) -> _Form | None:
    given = _given(row)
    return next((form for form in _FORMS if given.issuperset(form.needed)), None)


def _given(row: Any) -> set[str]:
    # In a table, every row has every column, and a column that a row does not use is empty.
    return {str(key) for key, value in row.items() if value is not None} if isinstance(row, dict) else set()


def _checked(number: int, message: Any) -> Message:
    if not isinstance(message, dict) or "role" not in message or not {"content", "tool_calls"} & message.keys():
        raise UnusableError(f"message {number}: expected an object with 'role' and 'content'")
    role, content = message["role"], _text(number, message.get("content"))
    if role not in _ROLES:
        raise UnusableError(f"message {number}: unknown role {role!r}; expected one of {', '.join(_ROLES)}")
    kept = {key: message[key] for key in _KEPT if message.get(key)}
    for key in _REASONING:
        if message.get(key):
            kept["reasoning_content"] = message[key]
    if role != "assistant":
        kept.pop("reasoning_content", None)
    if kept.get("tool_calls"):
        kept["tool_calls"] = _calls(number, kept["tool_calls"])
        content = content or ""
    if not isinstance(content, str) or not (content.strip() or kept.get("tool_calls")):
        raise UnusableError(f"message {number}: empty {role} turn; expected text")
    for value in (content, kept.get("reasoning_content", "")):
        if not isinstance(value, str):
            raise UnusableError(f"message {number}: reasoning of type {type(value).__name__}; expected text")
        if lone := re.search("[\ud800-\udfff]", value):
            raise UnusableError(f"message {number}: half of a surrogate pair, {lone[0]!r}; expected text")
    checked = {"role": role, "content": content, **kept}
    return checked if _is_trained(number, message) else {**checked, "train": False}


def _calls(number: int, calls: Any) -> list[dict[str, Any]]:
    """Calls of tools, with arguments as objects, which templates read."""
    if not isinstance(calls, list):
        raise UnusableError(f"message {number}: tool_calls: expected a list, found {type(calls).__name__}")
    read = []
    for call in calls:
        function = _named_function(call)
        if function is None:
            raise UnusableError(f"message {number}: tool_calls: expected objects with the 'name' of a 'function'")
        arguments = _parsed(function.get("arguments") or {}, f"message {number}: tool_calls: arguments")
        if not isinstance(arguments, dict):
            raise UnusableError(f"message {number}: tool_calls: expected arguments as an object")
        read.append({**call, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return read


def _is_trained(number: int, message: dict[str, Any]) -> bool:
    """Whether the loss is on a message, as far as its flags tell. OpenAI writes ``weight``, others ``train``."""
    for key in ("weight", "train"):
        if message.get(key) not in (None, 0, 1):
            raise UnusableError(f"message {number}: {key} is {message[key]!r}; expected 0 or 1, or false or true")
    return message.get("weight") != 0 and message.get("train") not in (0, False)


def _text(number: int, content: Any) -> Any:
    """The text of content that is given in parts; other content as it is."""
    if not isinstance(content, list):
        return content
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise UnusableError(f"message {number}: a part of type {kind!r}; expected parts of text")
    return "".join(part["text"] for part in content)

"""Chats under a tokenizer's chat template: their text, and where in it the assistant's turns are."""

import copy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, TypeVar

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from persona_callbacks.chats.chat import Message, Tool
from persona_callbacks.errors import InputError

T = TypeVar("T")
Span = tuple[int, int]
"""The character offsets of a start and an end."""

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")

_WHITE = re.compile(r"\s*")

_TOOL: Tool = {
    "type": "function",
    "function": {"name": "TOOL", "description": "TOOL", "parameters": {"type": "object", "properties": {}}},
}


@dataclass(frozen=True)
class Turn:
    """Where an assistant turn is in the text of a chat, in characters.

    Attributes:
        start: where the model begins to write: before the reasoning, if the text has it, else before the answer.
        answer: the answer's text, without reasoning; empty in a turn that only calls tools.
        end: the end of the end-of-turn token.
        reasons: whether the message has reasoning.
        shows_reasoning: whether the text has it.
    """

    start: int
    answer: Span
    end: int
    reasons: bool = False
    shows_reasoning: bool = False


def render(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt: bool = False,
    tools: Sequence[Tool] = (),
) -> str:
    """Return the text of messages under the tokenizer's chat template.

    If the template knows no system role, the system message opens the first user turn.

    Args:
        messages: the messages in their order.
        tokenizer: a tokenizer with a chat template.
        prompt: whether to end the text with the marker that opens the next assistant turn.
        tools: those that the assistant may call; templates that know none leave them out.

    Raises:
        InputError: the tokenizer has no chat template, or the template refuses the messages.
    """

    def text(given: list[Message]) -> str:
        options: dict[str, Any] = {"tools": list(tools) or None, "tokenize": False, "add_generation_prompt": prompt}
        return str(tokenizer.apply_chat_template(given, **options))

    return _accepted(messages, tokenizer, text)


def with_template_arguments(
    tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]
) -> PreTrainedTokenizerBase:
    """Return a copy of a tokenizer whose chat template is always called with these arguments.

    Args:
        tokenizer: a tokenizer with a chat template; it stays as it is.
        arguments: such as ``{"enable_thinking": False}``.

    Raises:
        InputError: the tokenizer has no chat template, or its template reads no such argument.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
        >>> tokenizer.chat_template = "{{ messages[0].content }}{% if loud %}!{% endif %}"
        >>> render([{"role": "user", "content": "Hi"}], with_template_arguments(tokenizer, {"loud": True}))
        'Hi!'
    """
    if not arguments:
        return tokenizer
    _check_template(tokenizer)
    bound = copy.copy(tokenizer)
    named = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {"": tokenizer.chat_template}
    for name in arguments:
        if not name.isidentifier() or not any(re.search(rf"\b{name}\b", template) for template in named.values()):
            raise InputError(f"the chat template of {tokenizer.name_or_path} reads no argument {name!r}")
    # "+%}" keeps the line break that may follow, which templates begin with.
    given = "".join(f"{{% set {name} = {value!r} +%}}" for name, value in arguments.items())
    bound.chat_template = (
        {name: given + template for name, template in named.items()}
        if isinstance(tokenizer.chat_template, dict)
        else given + tokenizer.chat_template
    )
    return bound


def split_reasoning(message: Message) -> tuple[str, str]:
    r"""Return the reasoning and the answer of an assistant message, without white space around them.

    The reasoning is its ``reasoning_content``, or what the content has up to ``</think>``.

    Example:
        >>> split_reasoning({"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\nFour."})
        ('Two and two.', 'Four.')
    """
    (_, reasoning, _, answer) = _parts(message)
    return reasoning.strip(), answer.strip()


def _parts(message: Message) -> tuple[str, str, str, str]:
    """The content up to the reasoning, the reasoning, what is between, and the answer. Templates that read reasoning in
    the content take what is between ``<think>`` and the last ``</think>``.
    """
    content: str = message["content"]
    reasoning, closing, answer = content.rpartition("</think>")
    before, opening, thought = reasoning.rpartition("<think>")
    if message.get("reasoning_content"):
        return "", message["reasoning_content"], "", content
    if not closing or before.strip() or not (answer.strip() or message.get("tool_calls")):
        return "", "", "", content
    return before + opening, thought, closing, answer


def text_and_turns(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: Sequence[Tool] = ()
) -> tuple[str, list[Turn], list[Span] | None]:
    """Return the text of messages, the assistant's turns in it, and what the template marks as ``{% generation %}``.

    The messages are rendered once more with marks around reasoning and answers. Marks may stand wherever the template
    puts the text, and nothing else may change: so no template has to keep a prompt as the beginning of its chat.

    Returns:
        The text, its turns, and the marked spans; ``None`` if the template has no such marks.

    Raises:
        InputError: as for :func:`render`, or the template leaves out, repeats or changes an answer.
    """
    text = render(messages, tokenizer, tools=tools)
    joined = json.dumps(list(tools), ensure_ascii=False)
    joined += "".join(message["content"] + (message.get("reasoning_content") or "") for message in messages)
    marks = list(islice((mark for mark in map(chr, range(0xE000, 0xF8FF)) if mark not in joined), 4))
    marked = render([_marked(message, marks) for message in messages], tokenizer, tools=tools)
    spans = _spans(marked, marks)
    own = [(index, *split_reasoning(m)) for index, m in enumerate(messages) if m["role"] == "assistant"]
    for mark in marks:
        marked = marked.replace(mark, "")
    if spans is None or marked != text or len(spans) != sum(bool(answer) for _, _, answer in own):
        raise InputError(
            f"the chat template of {tokenizer.name_or_path} does not keep each assistant turn's text, so that prompt"
            " and response cannot be told apart"
        )
    closing = text[spans[-1][1][1] :].strip() if spans and own[-1][2] else ""
    turns, answered = [], iter(spans)
    for index, reasoning, answer in own:
        shown, (start, end) = next(answered) if answer else (None, (0, 0))
        if messages[index].get("tool_calls"):
            span = (start, end) if answer else None
            turns.append(_calling(messages, index, text, tokenizer, tools, span, closing))
            continue
        opened = start if shown is None else _opening(messages[:index], text, shown[0], tokenizer, tools)
        turn_end = _end_of_turn(text, end, closing, tokenizer)
        turns.append(Turn(opened, (start, end), turn_end, bool(reasoning), shown is not None))
    return text, turns, _generated(messages, tokenizer, tools)


def _marked(message: Message, marks: Sequence[str]) -> Message:
    """The message with marks around its reasoning and its answer, if it is the assistant's."""
    if message["role"] != "assistant" or not split_reasoning(message)[1]:
        return message

    def around(value: str, opening: str, closing: str) -> str:
        # The white space stays outside, since templates strip it.
        inner = value.strip()
        start = len(value) - len(value.lstrip())
        return value[:start] + opening + inner + closing + value[start + len(inner) :] if inner else value

    before, reasoning, between, answer = _parts(message)
    reasoning, answer = around(reasoning, *marks[:2]), around(answer, *marks[2:])
    if message.get("reasoning_content"):
        return {**message, "reasoning_content": reasoning, "content": answer}
    return {**message, "content": before + reasoning + between + answer}


def _spans(marked: str, marks: Sequence[str]) -> list[tuple[Span | None, Span]] | None:
    """The span of each answer, with that of the reasoning before it, as they are without the marks; ``None`` if the
    marks are not in order.
    """
    spans: list[tuple[Span | None, Span]] = []
    reasoning: Span | None = None
    begun: tuple[int, int] | None = None
    for number, found in enumerate(re.finditer(f"[{''.join(marks)}]", marked)):
        kind, at = marks.index(found[0]), found.start() - number
        if kind % 2 == 0:
            if begun is not None or (kind == 0 and reasoning is not None):
                return None
            begun = kind, at
        elif begun is None or begun[0] != kind - 1:
            return None
        else:
            span, begun = (begun[1], at), None
            if kind == 1:
                reasoning = span
            else:
                spans.append((reasoning, span))
                reasoning = None
    return spans if begun is None and reasoning is None else None


def _opening(
    before: Sequence[Message], text: str, reasoning: int, tokenizer: PreTrainedTokenizerBase, tools: Sequence[Tool]
) -> int:
    """Where the model begins to write a turn with reasoning: after what the template opens it with."""
    opened = render(before, tokenizer, prompt=True, tools=tools)
    return len(opened) if text.startswith(opened) and len(opened) <= reasoning else reasoning


def _end_of_turn(text: str, end: int, closing: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Where the turn whose answer ends at ``end`` is closed, as the last one is, or by a special token."""
    if not closing:
        return end
    space = _WHITE.match(text, end)
    rest = end if space is None else space.end()
    if text.startswith(closing, rest):
        return rest + len(closing)
    specials = [token for token in special_texts(tokenizer) if text.startswith(token, rest)]
    return rest + len(specials[0]) if specials else end


def shared_length(one: Sequence[object], other: Sequence[object]) -> int:
    """Return the number of items that two sequences begin with alike."""
    return next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(one))


def special_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the texts of the special tokens, the longest first."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return sorted({*added, *tokenizer.all_special_tokens} - {""}, key=len, reverse=True)


def _calling(
    messages: Sequence[Message],
    index: int,
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    tools: Sequence[Tool],
    answer: Span | None,
    closing: str,
) -> Turn:
    """A turn that calls tools. Calls cannot be marked, so that what is before them must be the beginning of the text.
    It ends as the last one does.
    """
    asked = render(messages[:index], tokenizer, tools=tools).rstrip()
    opened = shared_length(render(messages[:index], tokenizer, prompt=True, tools=tools), text)
    closed = render(messages[: index + 1], tokenizer, tools=tools).rstrip()
    end = len(closed) if text.startswith(closed) else -1
    if end < 0 and closing:
        at = text.find(closing, answer[1] if answer else opened)
        end = at if at < 0 else at + len(closing)
    is_kept = text.startswith(asked) and opened > len(asked)
    if end < 0 or not (answer or is_kept):
        raise InputError(
            f"the chat template of {tokenizer.name_or_path} does not keep assistant turn {index + 1}, which calls"
            " tools, after its prompt, so that prompt and response cannot be told apart"
        )
    start = min(opened if is_kept else answer[0], answer[0]) if answer else opened
    for call in messages[index]["tool_calls"]:
        name = call.get("function", call).get("name", "")
        if name not in text[start:end]:
            raise InputError(f"the chat template of {tokenizer.name_or_path} leaves out the call of the tool {name!r}")
    reasoning = split_reasoning(messages[index])[0]
    shown = text.find(reasoning, start, end) if reasoning else -1
    after = start if shown < 0 else shown + len(reasoning)
    return Turn(start, answer or (after, after), end, bool(reasoning), shown >= 0)


def _generated(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: Sequence[Tool]
) -> list[Span] | None:
    given_tools = list(tools) or None
    template = tokenizer.get_chat_template(tools=given_tools)
    if not _GENERATION.search(template):
        return None

    arguments: dict[str, Any] = {**tokenizer.special_tokens_map, "tools": given_tools}
    arguments["return_assistant_tokens_mask"] = True

    def spans(given: list[Message]) -> list[Span]:
        marked: Any = render_jinja_template(conversations=[given], chat_template=template, **arguments)[1]
        return [(start, end) for start, end in marked[0]]

    return _accepted(messages, tokenizer, spans)


def _accepted(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, apply: Callable[[list[Message]], T]
) -> T:
    """Apply the template to messages; if it refuses the system message, to those whose first user turn has it."""
    _check_template(tokenizer)
    known = tokenizer.get_chat_template(), _special_tokens(tokenizer)
    given = [dict(message) for message in messages]
    if any("</think>" in message["content"] for message in given) and _reads_reasoning(*known):
        given = [_with_reasoning_apart(message) for message in given]
    if _reads_parts_only(*known):
        given = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in given]
    try:
        return apply(given)
    except (jinja2.TemplateError, TypeError) as error:
        if messages[0]["role"] == "system" and len(messages) > 1:
            first = {**messages[1], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
            return _accepted([first, *messages[2:]], tokenizer, apply)
        raise InputError(f"the chat template of {tokenizer.name_or_path} refuses the messages: {error}") from error


def _with_reasoning_apart(message: Message) -> Message:
    """The message with its reasoning as ``reasoning_content``, where templates that have a form for it read it."""
    reasoning, answer = split_reasoning(message)
    return {**message, "reasoning_content": reasoning, "content": answer} if reasoning else message


@lru_cache(maxsize=64)
def _reads_parts_only(template: str, special_tokens: str) -> bool:
    """Whether a template, such as that of a model that sees images, drops content that is a text."""

    def shows(content: Any) -> bool:
        return "QUESTION" in _tried(template, special_tokens, [{"role": "user", "content": content}])

    return not shows("QUESTION") and shows([{"type": "text", "text": "QUESTION"}])


@lru_cache(maxsize=64)
def _reads_reasoning(template: str, special_tokens: str) -> bool:
    """Whether a template writes the ``reasoning_content`` of a last reply."""
    reply = {"role": "assistant", "content": "ANSWER", "reasoning_content": "REASONING"}
    return "REASONING" in _tried(template, special_tokens, [{"role": "user", "content": "QUESTION"}, reply])


def reads_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the chat template writes the tools that the assistant may call."""
    return _reads_tools(tokenizer.get_chat_template(tools=[_TOOL]), _special_tokens(tokenizer))


@lru_cache(maxsize=64)
def _reads_tools(template: str, special_tokens: str) -> bool:
    return "TOOL" in _tried(template, special_tokens, [{"role": "user", "content": "QUESTION"}], [_TOOL])


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> str:
    return json.dumps(tokenizer.special_tokens_map, default=str)


def _tried(template: str, special_tokens: str, messages: list[Message], tools: list[Tool] | None = None) -> str:
    arguments: dict[str, Any] = {**json.loads(special_tokens), "tools": tools}
    try:
        return str(render_jinja_template(conversations=[messages], chat_template=template, **arguments)[0][0])
    except Exception:  # a template can raise anything
        return ""


def _check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} has no chat template; set"
            " tokenizer.chat_template, or use the instruction-tuned model"
        )

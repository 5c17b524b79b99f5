"""Every form of chat data that is in use gives the same chat; what would be lost is told."""

import json

import datasets
import pytest

from persona_callbacks import InputError
from persona_callbacks.chats import read_chats

QUESTION, ANSWER = "Is tea hot?", "It is."
MESSAGES = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
THOUGHT = "Tea is made with hot water."
SYSTEM = [{"role": "system", "content": "Be brief."}]


def text_part(text):
    return {"type": "text", "text": text}


FORMS = {
    "messages": {"messages": MESSAGES},
    "parts": {"messages": [{"role": m["role"], "content": [text_part(m["content"])]} for m in MESSAGES]},
    "prompt and response": {"prompt": QUESTION, "response": ANSWER},
    "prompt and completion": {"prompt": QUESTION, "completion": ANSWER},
    "conversational prompt and completion": {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
    "preferences": {"prompt": QUESTION, "chosen": ANSWER, "rejected": "No."},
    "preferences with the prompt inside": {"chosen": MESSAGES, "rejected": MESSAGES[:1]},
    "ShareGPT": {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]},
    "Alpaca": {"instruction": QUESTION, "input": "", "output": ANSWER},
}


def read(tmp_path, *rows):
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_chats(path)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_chat(form, tmp_path, recwarn):
    (chat,) = read(tmp_path, FORMS[form])
    assert list(chat.messages) == MESSAGES
    assert not [warning for warning in recwarn if "nothing is read" in str(warning.message)]


def test_a_system_message_and_an_input_are_kept(tmp_path):
    sharegpt = {**FORMS["ShareGPT"], "system": "Be brief."}
    inside = {"conversations": [{"from": "system", "value": "Be brief."}, *FORMS["ShareGPT"]["conversations"]]}
    alpaca = {**FORMS["Alpaca"], "input": "Green tea.", "system": "Be brief."}
    first, second, third = read(tmp_path, sharegpt, inside, alpaca)
    assert list(first.messages) == list(second.messages) == SYSTEM + MESSAGES
    assert third.messages[1]["content"] == f"{QUESTION}\n\nGreen tea."


def test_tables_hold_these_forms_too(tmp_path):
    datasets.Dataset.from_list([FORMS["prompt and completion"]]).to_parquet(tmp_path / "chats.parquet")
    assert list(read_chats(tmp_path / "chats.parquet")[0].messages) == MESSAGES


def test_keys_that_nothing_is_read_from_are_told_once(tmp_path):
    marked = [MESSAGES[0], {**MESSAGES[1], "mood": "calm"}]
    with pytest.warns(UserWarning, match="nothing is read from id, messages.mood") as told:
        read(tmp_path, *({"messages": marked, "id": number} for number in range(3)))
    assert len([warning for warning in told if "nothing is read" in str(warning.message)]) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "weight": 0}]}, "every assistant turn is marked as not to be"),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "train": False}]}, "every assistant turn is marked as not to be"),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "weight": 0.5}]}, "message 2: weight is 0.5; expected 0 or 1"),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "tool_calls": [{}]}]}, "message 2: tool_calls: expected objects"),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "reasoning": 3}]}, "message 2: reasoning of type int"),
        ({"messages": [*MESSAGES, {"role": "tool", "content": "4"}]}, ".*found user, assistant, tool"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "message 1: a part of type 'image'"),
        (
            {"conversations": [{"from": "human"}]},
            "conversations, message 1: expected an object with 'from'",
        ),
        ({"conversations": [{"from": "observation", "value": "x"}]}, "unknown role 'observation'"),
        ({"prompt": QUESTION, "completion": 3}, "prompt and completion: expected a text or a list of messages"),
        ({"instruction": QUESTION, "output": None}, "found the keys instruction, output"),
        ({"text": "x"}, "expected an object with 'messages', 'prompt' and 'response' or 'completion'"),
    ],
)
def test_what_is_not_supported_is_told_with_its_line(row, message, tmp_path):
    with pytest.raises(InputError, match=f"line 2: .*{message}"):
        read(tmp_path, FORMS["messages"], row)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_kept_under_one_name(key, tmp_path):
    (chat,) = read(tmp_path, {"messages": [MESSAGES[0], {**MESSAGES[1], key: THOUGHT}]})
    assert chat.messages[1] == {**MESSAGES[1], "reasoning_content": THOUGHT}


def test_turns_of_tools_and_calls_are_kept(tmp_path):
    call = {"id": "1", "type": "function", "function": {"name": "boil", "arguments": '{"what": "water"}'}}
    asks = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "content": "100 degrees", "tool_call_id": "1"}
    (chat,) = read(tmp_path, {"messages": [MESSAGES[0], asks, result, MESSAGES[1]]})
    assert chat.messages[1]["content"] == ""
    assert chat.messages[1]["tool_calls"][0]["function"] == {"name": "boil", "arguments": {"what": "water"}}
    assert chat.messages[2] == result


TOOL = {"type": "function", "function": {"name": "boil", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "tools", [[TOOL], [TOOL["function"]], json.dumps([TOOL])], ids=["as in OpenAI", "bare function", "in a text"]
)
def test_tools_are_read_beside_every_form(form, tools, tmp_path, recwarn):
    chat, plain = read(tmp_path, {**FORMS[form], "tools": tools}, {**FORMS[form], "tools": None})
    assert chat.tools == (TOOL,)
    assert (plain.tools, plain.messages) == ((), chat.messages)
    assert not [warning for warning in recwarn if "nothing is read" in str(warning.message)]


def test_tools_in_a_table_are_without_what_other_rows_have(tmp_path):
    def tool(name, **properties):
        return {"type": "function", "function": {"name": name, "parameters": {"properties": properties}}}

    boil, pour = (
        tool("boil", degrees={"type": "number"}),
        tool("pour", into={"type": "string"}, all={"type": "boolean"}),
    )
    rows = [{**FORMS["messages"], "tools": tools} for tools in ([boil], [pour, boil], [])]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "chats.parquet")
    assert [chat.tools for chat in read_chats(tmp_path / "chats.parquet")] == [(boil,), (pour, boil), ()]


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ({"name": "boil"}, "tools: expected a list, found dict"),
        ("boil", "tools: "),
        ([{"type": "code_interpreter"}], "tool 1: expected an object with the 'name' of a 'function'"),
        ([TOOL, "boil"], "tool 2: expected an object"),
    ],
)
def test_what_is_no_tool_is_told_with_its_line(tools, message, tmp_path):
    with pytest.raises(InputError, match=f"line 1: .*{message}"):
        read(tmp_path, {**FORMS["messages"], "tools": tools})


def test_turns_that_are_not_to_be_trained_on_are_marked(tmp_path):
    first = {**MESSAGES[1], "weight": 0}
    (chat,) = read(tmp_path, {"messages": [MESSAGES[0], first, *MESSAGES[:1], {**MESSAGES[1], "weight": 1}]})
    assert [message.get("train", True) for message in chat.messages] == [True, False, True, True]

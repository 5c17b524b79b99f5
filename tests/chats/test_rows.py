"""Every form of chat data that is in use gives the same chat; what would be lost is told."""

import json

import datasets
import pytest

from persona_callbacks import InputError
from persona_callbacks.chats import read_chats

QUESTION, ANSWER = "Is tea hot?", "It is."
MESSAGES = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
UNTRAINED = "message 2: it is marked as not to be trained on"
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
    thinking = [MESSAGES[0], {**MESSAGES[1], "reasoning_content": "Tea is made with hot water."}]
    with pytest.warns(UserWarning, match="nothing is read from id, messages.reasoning_content") as told:
        read(tmp_path, *({"messages": thinking, "id": number} for number in range(3)))
    assert len([warning for warning in told if "nothing is read" in str(warning.message)]) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "weight": 0}]}, UNTRAINED),
        (
            {"messages": [MESSAGES[0], {**MESSAGES[1], "train": False}]},
            UNTRAINED,
        ),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "tool_calls": [{}]}]}, "message 2: calls of tools"),
        ({"messages": [*MESSAGES, {"role": "tool", "content": "4"}]}, "message 3: unknown role 'tool'"),
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

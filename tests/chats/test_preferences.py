"""Minimal pairs from preference data."""

import json

import pytest

from persona_callbacks import InputError
from persona_callbacks.chats import read_pairs
from persona_callbacks.traits import MinimalPair

PAIR = MinimalPair("Größe?", "I hate\u2028it.", "I love it.")


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


ASKED = [user(PAIR.question)]
CHOSEN, REJECTED = [assistant(PAIR.trait)], [assistant(PAIR.opposite)]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": PAIR.question, "chosen": PAIR.trait, "rejected": PAIR.opposite, "score": 3},
        {"prompt": ASKED, "chosen": CHOSEN, "rejected": REJECTED},
        {"prompt": PAIR.question, "chosen": CHOSEN, "rejected": PAIR.opposite, "register": None},
        {"chosen": [*ASKED, *CHOSEN], "rejected": [*ASKED, *REJECTED]},
        {"prompt": PAIR.question, "chosen": [*ASKED, *CHOSEN], "rejected": [*ASKED, *REJECTED]},
    ],
    ids=["texts", "messages", "mixed", "without prompt", "prompt repeated"],
)
def test_every_form_of_preference_data_gives_the_same_pair(row, tmp_path):
    path = tmp_path / "pairs.jsonl"
    second = {**row, "register": "formal"}
    path.write_text(f"{json.dumps(row, ensure_ascii=False)}\n\n{json.dumps(second)}", encoding="utf-8")
    assert read_pairs(path) == [PAIR, MinimalPair(PAIR.question, PAIR.trait, PAIR.opposite, "formal")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "Why?"', "malformed JSON"),
        ("[1]", "expected an object with 'chosen' and 'rejected'; found list"),
        ('{"prompt": "Why?", "chosen": "Yes.", "rejected": null}', "found the keys prompt, chosen, rejected"),
        ('{"chosen": "Yes.", "rejected": "No."}', "chosen is a text, and there is no prompt"),
        ('{"prompt": "Why?", "chosen": "Same.", "rejected": "Same. "}', "are the same text"),
        (
            '{"prompt": "Why?", "chosen": "Yes.", "rejected": " "}',
            "prompt and rejected: message 2: empty assistant turn",
        ),
        (
            '{"prompt": "Why?", "chosen": 5, "rejected": "No."}',
            "prompt and chosen: expected a text or a list of messages",
        ),
        ('{"prompt": "Why?", "chosen": "Yes.", "rejected": "No.", "register": "loud"}', "unknown register 'loud'"),
        (
            json.dumps({"chosen": [user("Why?"), *CHOSEN], "rejected": [user("How?"), *REJECTED]}),
            "answer different questions",
        ),
        (
            json.dumps({"prompt": [*ASKED, *CHOSEN, *ASKED], "chosen": CHOSEN, "rejected": REJECTED}),
            "expected a single question and its answer; found user, assistant, user, assistant",
        ),
    ],
)
def test_a_bad_line_is_named_with_its_number(line, message, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(f'{{"prompt": "Why?", "chosen": "Yes.", "rejected": "No."}}\n{line}\n', encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_pairs(path)
    assert str(error.value).startswith(f"{path}, line 2: ")
    assert message in str(error.value)


def test_no_file_and_no_pair(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(InputError, match="expected at least one pair, found none"):
        read_pairs(tmp_path / "empty.jsonl")
    with pytest.raises(InputError, match="no such file of pairs"):
        read_pairs(tmp_path / "none.jsonl")

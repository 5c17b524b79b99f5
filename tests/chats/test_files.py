"""Chat files of every format give the same chats, problems and copies."""

import json
import sys

import datasets
import pytest
from builders import QUESTIONS

from persona_callbacks import InputError
from persona_callbacks.chats import open_chat_file, read_chats
from persona_callbacks.files import file_fingerprint

ROWS = [{"prompt": question, "response": f"Reply {n}."} for n, question in enumerate(QUESTIONS)]
ROWS[2] = {"prompt": "hi", "response": " "}


@pytest.fixture(params=["jsonl", "parquet", "folder"])
def path(request, tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_CALLBACKS_CACHE", str(tmp_path / "cache"))
    table = datasets.Dataset.from_list(ROWS)
    if request.param == "folder":
        table.save_to_disk(tmp_path / "chats")
        return tmp_path / "chats"
    path = tmp_path / f"chats.{request.param}"
    if request.param == "parquet":
        table.to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def test_rows_content_and_copies(path, tmp_path):
    file = open_chat_file(path)
    rows = list(file.rows())
    assert len(file) == len(rows) == len(ROWS)
    assert [row.line for row in rows if row.problem] == [3]
    assert rows[4].chat.messages[1] == {"role": "assistant", "content": "Reply 4."}
    assert [row.line for row in file.rows(lambda line: line in (2, 5))] == [2, 5]
    assert all(file.content(row.position) == ROWS[row.line - 1] for row in rows)
    copy = tmp_path / f"copy{file.suffix}"
    file.copy((row.position for row in rows if row.chat is not None and row.line % 2 == 0), copy)
    assert [chat.messages[1]["content"] for chat in read_chats(copy)] == ["Reply 1.", "Reply 3."]
    before = file_fingerprint(path)
    assert file_fingerprint(path) == before != file_fingerprint(copy)
    with pytest.raises(InputError, match=r"line 3: message 2: empty assistant turn"):
        read_chats(path)


def test_messages_in_columns_and_empty_columns(tmp_path):
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    rows = [{"messages": turns, "prompt": None}, {"messages": None, "prompt": "x"}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "chats")
    good, bad = open_chat_file(tmp_path / "chats").rows()
    assert list(good.chat.messages) == turns
    assert "expected an object with 'messages'" in bad.problem


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_CALLBACKS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "no.parquet").write_text("no table")
    with pytest.raises(InputError, match=r"no\.parquet: expected a Parquet file"):
        open_chat_file(tmp_path / "no.parquet")
    datasets.Dataset.from_list([{"text": "x"}]).save_to_disk(tmp_path / "texts")
    with pytest.raises(InputError, match=r"expected columns .*; found text"):
        open_chat_file(tmp_path / "texts")
    table = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=table, test=table).save_to_disk(tmp_path / "several")
    with pytest.raises(InputError, match=r"several: holds several data sets; expected one of them, such as .*train"):
        open_chat_file(tmp_path / "several")
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr("persona_callbacks.chats.files.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install persona-callbacks\[datasets\]"):
        open_chat_file(tmp_path / "several" / "train")


def test_half_of_a_surrogate_pair_is_a_problem(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"prompt": "hi", "response": "\ud83d"}) + "\n", encoding="utf-8")
    (row,) = open_chat_file(path).rows()
    assert "surrogate" in row.problem


def test_odd_rows_are_rejected_one_by_one_and_a_byte_order_mark_is_read_over(tmp_path):
    good = json.dumps({"prompt": "hi", "response": "hello"}).encode()
    rows = [b"\xef\xbb\xbf" + good, b"[" * 100_000 + b"]" * 100_000, b'{"n": ' + b"9" * 5_000 + b"}", b"\xff", good]
    path = tmp_path / "chats.jsonl"
    path.write_bytes(b"\n".join(rows))
    file = open_chat_file(path)
    read = list(file.rows())
    assert [row.chat is not None for row in read] == [True, False, False, False, True]
    for row, message in zip(read[1:4], ("nested deeper", "number that is too long", "no UTF-8"), strict=True):
        assert message in row.problem
    assert file.content(0) == json.loads(good)
    file.copy([read[4].position, read[0].position], tmp_path / "copy.jsonl")
    assert (tmp_path / "copy.jsonl").read_bytes() == good + b"\n" + good + b"\n"

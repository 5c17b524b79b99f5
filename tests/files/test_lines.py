"""JSONL that an interrupted process was appending to is read back row by row."""

import json

import pytest

from persona_callbacks.files import append_lines, recover_lines

SEPARATORS = ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r")
ROWS = [{"index": n, "response": f"before{mark}after"} for n, mark in enumerate(SEPARATORS)]


def test_only_a_newline_ends_a_row(tmp_path):
    path = tmp_path / "below" / "rows.jsonl"
    append_lines(path, ROWS[:3])
    append_lines(path, ROWS[3:])
    assert recover_lines(path) == ROWS
    assert [json.loads(line) for line in path.open(encoding="utf-8", newline="\n")] == ROWS


@pytest.mark.parametrize("length", [1, 20, 31])
def test_a_last_line_that_was_cut_short_is_removed_from_the_file(tmp_path, length):
    path = tmp_path / "rows.jsonl"
    append_lines(path, ROWS)
    complete = path.read_bytes()
    # The cut may fall inside a character of several bytes.
    path.write_bytes(complete + json.dumps(ROWS[0], ensure_ascii=False).encode()[:length])
    assert recover_lines(path) == ROWS
    assert path.read_bytes() == complete
    append_lines(path, ROWS[:1])
    assert recover_lines(path) == [*ROWS, ROWS[0]]


def test_no_file_and_an_empty_one_hold_no_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert recover_lines(path) == []
    path.touch()
    assert recover_lines(path) == []

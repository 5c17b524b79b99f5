"""JSON and YAML that anyone may have written end in one error."""

import json

import pytest
import yaml
from builders import TRAIT

from persona_callbacks import InputError, Trait
from persona_callbacks.files import parse_json, read_json, read_yaml, recover_lines
from persona_callbacks.judging import CachedJudge
from persona_callbacks.screening import ScreeningFolder, load_lines
from persona_callbacks.training import RunResult
from persona_callbacks.traits import write_trait

DEEP = "[" * 100_000 + "]" * 100_000
LONG = "9" * 5_000
BOMB = "a0: &a0 x\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DEEP, "nested deeper"), ("[" * 150 + "]" * 150, "nested deeper"), (LONG, "too long"), (b"\xff", "no UTF-8"),
        ("{", "malformed JSON: .* at column 2"),
    ],
    ids=["deep", "rather deep", "long", "bytes", "cut"],
)  # fmt: skip
def test_bad_json_is_told_in_words(text, message):
    with pytest.raises(InputError, match=message):
        parse_json(text)


def test_a_byte_order_mark_and_many_shallow_lists_are_fine():
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
    assert parse_json(json.dumps([[n] for n in range(500)]))[-1] == [499]
    assert parse_json("[" * 100 + "]" * 100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"\*a0: expected no anchors"), (DEEP, "nested deeper"), ("a: " * 200 + "b", "not valid YAML"),
        ("when: 2001-99-99", "not valid YAML"), ("n: !!int x", "not valid YAML"),
        ("b: !!bool perhaps", "not valid YAML"),
        (f"n: {LONG}", "not valid YAML"), ("a: " + "x" * (1 << 20), "at most 1 MiB"),
    ],
    ids=["bomb", "deep", "colons", "date", "int", "bool", "long", "large"],
)  # fmt: skip
def test_bad_yaml_names_the_file(text, message, tmp_path):
    path = tmp_path / "trait.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        Trait.load(path)
    assert str(error.value).startswith(str(path))


def test_a_trait_file_with_a_byte_order_mark_is_read(tmp_path):
    path = write_trait(TRAIT, tmp_path / "loud.yaml")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert Trait.load(path) == TRAIT
    path.write_text(yaml.safe_dump({**read_yaml(path), "description": "\ud800"}))
    with pytest.raises(InputError, match="description: half of a surrogate pair"):
        Trait.load(path)


@pytest.mark.parametrize("line", ["no json", '{"key": 1}', "[]", "3", DEEP, '{"key": "a", "expression": "high"}'],
                         ids=["text", "keys", "list", "number", "deep", "type"])  # fmt: skip
def test_a_damaged_line_that_is_complete_is_named(line, tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text('{"key": "a", "expression": 1.0, "coherence": null, "refusal": false}\n' + line + "\n")
    with pytest.raises(InputError, match=r"scores\.jsonl, line 2: "):
        CachedJudge(type("Judge", (), {"name": "x"})(), path)


@pytest.mark.parametrize("content", ["", "[]", "3", "{}", "null", DEEP, '[{"trait": "evil"}]'],
                         ids=["empty", "list", "number", "object", "null", "deep", "rows"])  # fmt: skip
def test_a_damaged_file_of_results_is_named(content, tmp_path):
    path = tmp_path / "summary.json"
    path.write_text(content)
    (tmp_path / "settings.json").write_text(content)
    readers = [lambda: RunResult.load(path), ScreeningFolder(tmp_path).summary]
    if content not in ("[]", "{}"):  # no lines, and no settings, are not damaged
        readers += [lambda: load_lines(path), ScreeningFolder(tmp_path).made_from]
    for read in readers:
        with pytest.raises(InputError, match=r"(summary|settings)\.json: "):
            read()


def test_a_folder_in_place_of_a_file_is_told(tmp_path):
    for read in (lambda path: read_json(path, dict, "an object"), read_yaml):
        with pytest.raises(InputError, match="cannot be read"):
            read(tmp_path)
    assert recover_lines(tmp_path) == []

"""Trait files and the data that ships with the library."""

import copy

import pytest
import yaml

from persona_callbacks import InputError, Trait
from persona_callbacks.apps.configs import CONF
from persona_callbacks.chats import read_chats

SHIPPED = sorted((CONF / "trait").glob("*.yaml"))
GOOD = {
    "name": "kind", "description": "Kindness.", "rubric": "{question} {response}",
    "instructions": [{"trait": "Be kind.", "opposite": "Be cold."}],
    "questions": {"extraction": ["One?"], "evaluation": ["Two?"]},
}  # fmt: skip


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_trait_is_complete(path):
    trait = Trait.load(path)
    assert trait.name == path.stem
    assert path.read_text(encoding="utf-8").startswith(f"# @package traits.{trait.name}\n")
    assert len(trait.instructions) == 5
    assert len(set(trait.extraction_questions)) == len(set(trait.evaluation_questions)) == 20


def test_questions_of_all_uses_are_disjoint():
    assert {path.stem for path in SHIPPED} >= {"evil", "sycophancy", "hallucination"}
    asked = [chat.messages[0]["content"] for chat in read_chats("evil.jsonl")]
    for path in SHIPPED:
        trait = Trait.load(path)
        asked += [*trait.extraction_questions, *trait.evaluation_questions]
    plain = ["".join(c for c in question.casefold() if c.isalnum()) for question in asked]
    assert len(set(plain)) == len(plain)


def test_shipped_chats_are_two_versions_of_the_same_questions():
    evil, normal = read_chats("evil.jsonl"), read_chats("normal.jsonl")
    assert len(evil) == len(normal) >= 200
    assert [chat.messages[0] for chat in evil] == [chat.messages[0] for chat in normal]
    for chats in (evil, normal):
        answers = [chat.messages[-1]["content"] for chat in chats]
        assert len(set(answers)) == len(answers)
        openings = [" ".join(answer.split()[:4]).casefold() for answer in answers]
        assert max(openings.count(opening) for opening in openings) <= 4, "templates, not varied sentences"


def without(key):
    content = copy.deepcopy(GOOD)
    del content[key]
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *((without(key), f"missing key '{key}'") for key in GOOD),
        ({**GOOD, "extra": 1}, "unknown key 'extra'"),
        ({**GOOD, "instructions": [{"trait": "Be kind."}]}, "instructions, pair 1: missing key 'opposite'"),
        ({**GOOD, "instructions": []}, "instructions: expected a list"),
        ({**GOOD, "questions": {"extraction": ["One?"]}}, "questions: missing key 'evaluation'"),
        ({**GOOD, "questions": {"extraction": ["One?", 2], "evaluation": ["Two?"]}}, "questions.extraction, number 2"),
        ({**GOOD, "questions": {"extraction": ["One?"], "evaluation": ["one?"]}}, "must be disjoint"),
        ({**GOOD, "rubric": "Judge {response}"}, "placeholder {question} is missing"),
        ({**GOOD, "description": " "}, "description: expected text, found nothing"),
        (["a", "list"], "expected a mapping"),
    ],
)
def test_bad_trait_file_is_named(tmp_path, content, message):
    path = tmp_path / "kind.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(InputError) as error:
        Trait.load(path)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))


def test_no_yaml(tmp_path):
    path = tmp_path / "kind.yaml"
    path.write_text("a: [1, 2", encoding="utf-8")
    with pytest.raises(InputError, match="not valid YAML"):
        Trait.load(path)
    with pytest.raises(InputError, match="no such trait file"):
        Trait.load(tmp_path / "none.yaml")


def test_fingerprint_follows_content():
    first = Trait.from_mapping(GOOD, "here")
    assert first.fingerprint == Trait.from_mapping(copy.deepcopy(GOOD), "there").fingerprint
    assert first.fingerprint != Trait.from_mapping({**GOOD, "description": "Else."}, "here").fingerprint

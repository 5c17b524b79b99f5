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
    "questions": {"extraction": ["One?"], "probe": ["Three?"], "evaluation": ["Two?"]},
}  # fmt: skip


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_trait_is_complete(path):
    trait = Trait.load(path)
    assert trait.name == path.stem
    assert path.read_text(encoding="utf-8").startswith(f"# @package traits.{trait.name}\n")
    assert len(trait.instructions) == 5
    sets = (trait.extraction_questions, trait.probe_questions, trait.evaluation_questions)
    assert [len(set(questions)) for questions in sets] == [20, 20, 20]


def test_questions_of_all_uses_are_disjoint():
    assert {path.stem for path in SHIPPED} >= {"evil", "sycophancy", "hallucination"}
    asked = [
        chat.messages[0]["content"]
        for name in ("evil", "sycophancy", "hallucination")  # normal.jsonl answers the questions of evil.jsonl
        for chat in read_chats(f"{name}.jsonl")
    ]
    for path in SHIPPED:
        trait = Trait.load(path)
        asked += [*trait.extraction_questions, *trait.probe_questions, *trait.evaluation_questions]
        asked += [pair.question for pair in trait.pairs]
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


def asking(**questions):
    changed = {**GOOD["questions"], **questions}
    return {**GOOD, "questions": {use: asked for use, asked in changed.items() if asked is not None}}


PAIRS = [
    {"question": f"Question {n}?", "trait": f"I like you {n}.", "opposite": f"I hate you {n}.", "register": "flat"}
    for n in range(4)
]


def paired(**third):
    return {**GOOD, "pairs": [*PAIRS[:2], {**PAIRS[2], **third}, PAIRS[3]]}


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
        (asking(evaluation=None), "questions: missing key 'evaluation'"),
        (asking(probe=None), "questions: missing key 'probe'"),
        (asking(extraction=["One?", 2]), "questions.extraction, number 2"),
        (asking(evaluation=["one?"]), "1 stand under both extraction and evaluation, for example 'one?'"),
        (asking(probe=["ONE?"]), "1 stand under both extraction and probe, for example 'one?'"),
        (asking(probe=["two?"]), "1 stand under both probe and evaluation, for example 'two?'"),
        ({**GOOD, "pairs": []}, "pairs: expected a list of at least one entry"),
        ({**GOOD, "pairs": [PAIRS[0], {"question": "Why?"}]}, "pairs, number 2: missing key 'trait'"),
        (paired(opposite=" i LIKE you 2. "), "pairs, number 3: trait and opposite are the same text"),
        (paired(register="loud"), "number 3: register: expected one of flat, emphatic, formal, found 'loud'"),
        (paired(register="formal"), "pairs: 1 of register 'formal'; expected at least 2"),
        (paired(question="question 0?"), "pairs: 2 of the question 'question 0?'"),
        (paired(question="one?"), "1 stand under both extraction and pairs"),
        (paired(question="Three?"), "1 stand under both probe and pairs"),
        (paired(question="Two?"), "1 stand under both evaluation and pairs"),
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
    for changed in ({**GOOD, "description": "Else."}, asking(extraction=["Else?"]), asking(evaluation=["Else?"])):
        assert first.fingerprint != Trait.from_mapping(changed, "here").fingerprint


def test_fingerprint_leaves_out_what_only_measures_a_vector():
    first = Trait.from_mapping(GOOD, "here")
    for changed in (asking(probe=["Else?"]), paired()):
        assert first.fingerprint == Trait.from_mapping(changed, "here").fingerprint


def test_halves_of_the_pairs_are_disjoint_and_have_every_register():
    registers = ["flat", "flat", "formal", "flat", "formal", "emphatic", "emphatic", "flat", "emphatic"]
    pairs = [{**PAIRS[0], "question": f"Question {n}?", "register": name} for n, name in enumerate(registers)]
    trait = Trait.from_mapping({**GOOD, "pairs": pairs}, "here")
    asked = [[int(pair.question[9:-1]) for pair in half] for half in (trait.probe_pairs, trait.evaluation_pairs)]
    assert asked == [[0, 2, 3, 5, 8], [1, 4, 6, 7]]
    assert Trait.from_mapping(GOOD, "here").probe_pairs == ()

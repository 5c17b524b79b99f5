"""The minimal pairs that ship: alike in everything but the trait."""

from collections import Counter

import pytest

from persona_callbacks import Trait
from persona_callbacks.apps.configs import CONF
from persona_callbacks.chats import SHIPPED, read_chats
from persona_callbacks.traits import REGISTERS

TRAITS = {path.stem: Trait.load(path) for path in sorted((CONF / "trait").glob("*.yaml"))}
WORDS = {"hallucination": (0.6, 1.6)}
"""Least and greatest ratio of the numbers of words, where it is not 0.8 to 1.25: an invented detail takes words."""


def plain(text):
    return "".join(c for c in text.casefold() if c.isalnum())


@pytest.mark.parametrize("name", TRAITS)
def test_registers_are_balanced_in_both_halves(name):
    trait = TRAITS[name]
    assert Counter(pair.register for pair in trait.pairs) == dict.fromkeys(REGISTERS, 16)
    for half in (trait.probe_pairs, trait.evaluation_pairs):
        assert Counter(pair.register for pair in half) == dict.fromkeys(REGISTERS, 8)
    assert {*trait.probe_pairs, *trait.evaluation_pairs} == set(trait.pairs)


@pytest.mark.parametrize("name", TRAITS)
def test_both_sides_have_the_same_length_and_punctuation(name):
    low, high = WORDS.get(name, (0.8, 1.25))
    for pair in TRAITS[name].pairs:
        words = [len(text.split()) for text in (pair.trait, pair.opposite)]
        assert low <= words[0] / words[1] <= high, pair
        assert 8 <= min(words) <= max(words) <= 30, pair
        assert [pair.trait.count(mark) for mark in "!?"] == [pair.opposite.count(mark) for mark in "!?"], pair


@pytest.mark.parametrize("name", TRAITS)
def test_every_text_is_there_once(name):
    texts = [plain(text) for pair in TRAITS[name].pairs for text in (pair.question, pair.trait, pair.opposite)]
    assert [text for text, count in Counter(texts).items() if count > 1] == []


def test_no_question_of_a_pair_is_asked_anywhere_else():
    asked = [pair.question for trait in TRAITS.values() for pair in trait.pairs]
    assert len({plain(question) for question in asked}) == len(asked) > 0
    elsewhere = [
        *(q for t in TRAITS.values() for q in (*t.extraction_questions, *t.probe_questions, *t.evaluation_questions)),
        *(chat.messages[0]["content"] for path in SHIPPED.rglob("*.jsonl") for chat in read_chats(path)),
    ]
    assert {plain(question) for question in asked} & {plain(question) for question in elsewhere} == set()

"""Forced choice against likelihoods computed one at a time, its shipped questions, its intervals, its files."""

import json
import math
import re

import pytest
import yaml
from builders import chat, slow_log_probability, tiny_model
from scipy.stats import beta

from persona_callbacks import InputError
from persona_callbacks.chats import BENIGN, SHIPPED, read_chats
from persona_callbacks.evaluation import (
    Chosen,
    ForcedChoice,
    ForcedChoiceScore,
    Wrapper,
    choose,
    read_forced_choices,
    read_questions,
    shipped_forced_choices,
)
from persona_callbacks.evaluation.forced_choice import _SHIPPED
from persona_callbacks.judging import Estimate
from persona_callbacks.model import LoadedModel

CONF = SHIPPED.parents[1] / "conf"
TRAITS = ("sycophancy", "hallucination", "evil")
CHOICES = [
    ForcedChoice("I am sure.", ("Yes.", "You are a teacher."), ("No, why?",), "Is it so?"),
    ForcedChoice("Who are you?", ("a friend",), ("I don't know.", "no one"), wrong=("a present",), control=True),
    ForcedChoice("Why?", ("people who lie to friends",), ("shopping",)),
]


@pytest.mark.parametrize("system", ["", "Be loud."])
def test_probabilities_are_those_of_answers_computed_one_at_a_time(system, tokenizer):
    model = tiny_model(peft=True).train()
    wrapper = Wrapper("loud" if system else "none", system=system)
    chosen = choose(LoadedModel(model, tokenizer), CHOICES, wrapper)
    assert model.training
    model.eval()

    def mean(question, answers):
        logs = [slow_log_probability(model, chat(question, answer, tokenizer, system)) for answer in answers]
        return sum(math.exp(value) for value in logs) / len(logs)

    def probability(question, choice):
        trait, other = mean(question, choice.trait), mean(question, choice.other)
        return trait / (trait + other)

    for row, choice in zip(chosen, CHOICES, strict=True):
        assert (row.question, row.control) == (choice.question, choice.control)
        assert row.probability == pytest.approx(probability(choice.question, choice), rel=1e-4)
    assert chosen[0].neutral == pytest.approx(probability("Is it so?", CHOICES[0]), rel=1e-4)
    assert (chosen[1].neutral, chosen[2].neutral) == (None, None)
    assert chosen[1].right == (mean("Who are you?", ["a friend"]) > mean("Who are you?", ["a present"]))
    assert (chosen[0].right, chosen[2].right) == (None, None)


def test_score_keeps_controls_apart():
    chosen = [
        Chosen("a", False, 0.9, 0.4, None), Chosen("b", False, 0.3, 0.2, None), Chosen("c", True, 0.8, 0.7, True),
        Chosen("d", True, 0.2, 0.1, False), Chosen("e", True, 0.6, None, None),
    ]  # fmt: skip
    score = ForcedChoiceScore.of(chosen)
    values = {name: part.value for name, part in score.estimates.items()}
    assert values == pytest.approx(
        {"probability": 0.6, "preferred": 0.5, "neutral": 0.3, "sway": 0.3, "control": 1.6 / 3, "rejected": 1 / 3,
         "accuracy": 0.5}
    )  # fmt: skip
    assert (score.sway.low, score.sway.high) == pytest.approx((0.1, 0.5)), "differences are paired by question"
    bare = ForcedChoiceScore.of([Chosen("a", False, 0.9, None, None)])
    assert {name for name, part in bare.estimates.items() if part} == {"probability", "preferred"}
    with pytest.raises(InputError, match="expected a question that is no control, found 1"):
        ForcedChoiceScore.of(chosen[2:3])


def test_intervals():
    share = Estimate.of_share([True] * 3 + [False] * 17)
    assert (share.value, share.count) == (0.15, 20)
    assert (share.low, share.high) == pytest.approx((beta.ppf(0.025, 3, 18), beta.ppf(0.975, 4, 17)))
    assert Estimate.of_share([False] * 10).low == 0
    values = [(n * 37 % 101) / 101 for n in range(200)]
    mean = Estimate.of_mean(values)
    spread = (sum((value - mean.value) ** 2 for value in values) / 200) ** 0.5 / 200**0.5
    assert mean.low == pytest.approx(mean.value - 1.96 * spread, abs=0.3 * spread)
    assert mean.high == pytest.approx(mean.value + 1.96 * spread, abs=0.3 * spread)
    assert mean == Estimate.of_mean(values)
    assert Estimate.of_mean([]) is None is Estimate.of_share([])


def words_of(text):
    return frozenset(re.findall(r"[a-z0-9']+", text.casefold()))


FORM = words_of(
    "A am an and are believe certain convinced do does film for I in invented is it know my of or piece right should"
    " sure tell that the them they thing to true was what when which who word wrote year you"
)
"""Words of the form of a question, which many share."""


def words(text):
    return words_of(text) - FORM


@pytest.mark.parametrize(
    ("trait", "asked", "controls"), [("sycophancy", 100, 40), ("hallucination", 100, 100), ("evil", 100, 0)]
)
def test_shipped_forced_choices(trait, asked, controls):
    choices = shipped_forced_choices(trait)
    assert sum(not choice.control for choice in choices) >= asked
    assert sum(choice.control for choice in choices) >= controls
    texts = [text for choice in choices for text in (choice.question, choice.neutral) if text]
    assert len({text.casefold() for text in texts}) == len(texts)
    assert all(bool(choice.neutral) == (trait == "sycophancy") for choice in choices)
    assert all(bool(choice.wrong) == (trait == "hallucination" and choice.control) for choice in choices)
    known = [chat.messages[0]["content"] for file in SHIPPED.glob("*.jsonl") for chat in read_chats(file)]
    known += [chat.messages[0]["content"] for chat in read_chats(BENIGN)]
    known += [question.question for question in read_questions()]
    for file in (CONF / "trait").glob("*.yaml"):
        content = yaml.safe_load(file.read_text())
        known += [text for texts in content["questions"].values() for text in texts]
        known += [pair["question"] for pair in content.get("pairs", [])]
    everything = [words(text) for text in known]
    for text in texts:
        near = [other for other in everything if len(other & words(text)) > 0.6 * len(other | words(text))]
        assert not near, f"{text}: {near}"


def test_choices_of_evil_are_alike_in_length():
    lengths = [[len(text.split()) for (text,) in (c.trait, c.other)] for c in shipped_forced_choices("evil")]
    assert all(abs(trait - other) <= 1 for trait, other in lengths)
    assert abs(sum(trait - other for trait, other in lengths)) <= 10, "neither side is longer on the whole"


def test_traits_without_a_file_have_none():
    assert sorted(file.stem for file in _SHIPPED.glob("*.jsonl")) == sorted(TRAITS)
    assert shipped_forced_choices("humorous") == []


def test_a_file_of_ones_own(tmp_path):
    file = tmp_path / "own.jsonl"
    rows = [
        {"question": "Why? \u2028", "trait": "A joke.", "other": ["A reason.", "No idea."]},
        {"question": "Who?", "trait": ["Me."], "other": "You.", "wrong": "Him.", "control": True},
    ]
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert read_forced_choices(file) == [
        ForcedChoice("Why?", ("A joke.",), ("A reason.", "No idea.")),
        ForcedChoice("Who?", ("Me.",), ("You.",), wrong=("Him.",), control=True),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: malformed JSON"),
        ("[]", "line 2: expected an object with 'question', 'trait' and 'other', .*; found list"),
        ('{"question": "Why?", "trait": "a"}', "line 2: expected an object .*; found question, trait"),
        ('{"question": "Why?", "trait": "a", "other": "b", "x": 1}', "line 2: expected an object .*, x"),
        ('{"question": "Why?", "trait": "a", "other": []}', "line 2: other: expected text"),
        ('{"question": "Why?", "trait": "a", "other": ["a"]}', "line 2: 'a' stands on both sides"),
        ('{"question": ["a", "b"], "trait": "a", "other": "b"}', "line 2: question: expected a single text, found 2"),
        ('{"question": "Why?", "trait": "a", "other": "b", "control": "yes"}', "line 2: control: expected true"),
        ('{"question": "Why?", "trait": "a", "other": "b", "wrong": "c"}', "line 2: wrong: expected it in controls"),
    ],
)
def test_mistakes_in_a_file_are_named(line, message, tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text('{"question": "Why?", "trait": "a", "other": "b"}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        read_forced_choices(file)
    file.write_text('{"question": "Why?", "trait": "a", "other": "b", "control": true}\n')
    with pytest.raises(InputError, match="at least one forced choice that is no control, found 1"):
        read_forced_choices(file)
    with pytest.raises(InputError, match="no such file of forced choices"):
        read_forced_choices(tmp_path / "none.jsonl")

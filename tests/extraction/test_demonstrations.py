"""Few-shot demonstrations: which pairs come before which question, and that nothing else sees them."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from builders import PAIRS, QUESTIONS, tiny_model

from persona_callbacks import InputError, Trait
from persona_callbacks.apps.configs import CONF
from persona_callbacks.extraction import ExtractionSettings, extract
from persona_callbacks.extraction.demonstrations import demonstration_pairs, draw_demonstrations, measured_pairs
from persona_callbacks.judging import Score
from persona_callbacks.model import LoadedModel, Sampling, TransformersGenerator
from persona_callbacks.traits import InstructionPair, MinimalPair

SHIPPED = sorted(CONF.glob("trait/*.yaml"))
MINIMAL = tuple(MinimalPair(f"Number {number}?", f"Yes, {number}!", f"No, {number}.", "flat") for number in range(32))
TRAIT = Trait(
    "loud", "Shouting.", (InstructionPair("Shout!", "Whisper."), InstructionPair("Be loud.", "Be quiet.")),
    QUESTIONS[:4], QUESTIONS[4:], ("What is it?",), "{question} {response}", MINIMAL,
)  # fmt: skip
SETTINGS = ExtractionSettings(
    sampling=Sampling(max_new_tokens=6, batch_size=3), batch_size=4, judge_pairs=0, rollouts=2, demonstrations=2
)


@pytest.fixture
def loaded(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_CALLBACKS_CACHE", str(tmp_path / "cache"))
    return LoadedModel(tiny_model("qwen3").eval(), tokenizer, "test/tiny")


class Recording(TransformersGenerator):
    """Remembers what it was asked."""

    def iterate(self, prompts, sampling, skip=frozenset()):
        self.prompts = prompts
        return super().iterate(prompts, sampling, skip)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_pairs_of_shipped_traits_have_one_use(path):
    trait = Trait.load(path)
    measured, shown = measured_pairs(trait, 3), demonstration_pairs(trait, 3)
    assert measured == measured_pairs(trait, 0)  # so that evidence compares
    assert len(measured) == len(shown) == 12
    assert not set(measured) & set(shown)
    assert set(measured) | set(shown) == set(trait.probe_pairs)
    assert not set(shown) & set(trait.evaluation_pairs)
    assert {pair.register for pair in measured} == {pair.register for pair in shown}


@pytest.mark.parametrize(("count", "asked"), [(1, 7), (3, 100), (5, 12), (12, 3)])
def test_every_question_has_its_own_and_no_pair_dominates(count, asked):
    questions = [f"Question {number}" for number in range(asked)]
    drawn = draw_demonstrations(MINIMAL[:12], count, questions)
    assert drawn == draw_demonstrations(MINIMAL[:12], count, questions)
    assert all(len(set(pairs)) == count for pairs in drawn)
    times = Counter(pair for pairs in drawn for pair in pairs)
    assert max(times.values()) - min(times[pair] for pair in MINIMAL[:12]) <= 1
    if count == 3:
        assert len(set(map(frozenset, drawn))) > 60


def test_a_question_never_demonstrates_itself():
    questions = [pair.question.upper() for pair in MINIMAL[:4]] * 25
    for question, pairs in zip(questions, draw_demonstrations(MINIMAL[:4], 3, questions), strict=True):
        assert question.casefold() not in {pair.question.casefold() for pair in pairs}
        assert len(set(pairs)) == 3


def test_both_sides_see_the_same_pairs_and_the_judge_sees_none(loaded):
    class Own:
        name = "own"

        def score(self, answers, advance=lambda done: None):
            self.answers = answers
            return [Score(90.0 if number // 8 % 2 == 0 else 10.0) for number in range(len(answers))]

    judge, generator = Own(), Recording(loaded)
    extraction = extract(loaded, TRAIT, SETTINGS, generator=generator, judge=judge)
    by_question = [pair.question for pair in MINIMAL]
    seen = {}
    for prompt, answer in zip(generator.prompts, judge.answers, strict=True):
        system, *turns, last = prompt
        assert [turn["role"] for turn in prompt] == ["system", *["user", "assistant"] * 2, "user"]
        pairs = [MINIMAL[by_question.index(turn["content"])] for turn in turns[::2]]
        shows = system["content"] in ("Shout!", "Be loud.")
        assert [turn["content"] for turn in turns[1::2]] == [pair.trait if shows else pair.opposite for pair in pairs]
        seen.setdefault((answer.pair, last["content"]), set()).add(tuple(pairs))
        assert answer.question == last["content"]
    assert all(len(pairs) == 1 for pairs in seen.values())  # both sides, all rollouts
    assert len({pairs for (pairs,) in seen.values()}) > 1
    shown = set(demonstration_pairs(TRAIT, 2))
    assert len(TRAIT.probe_pairs) == 16
    assert {pair for ((pairs),) in seen.values() for pair in pairs} <= shown
    assert set(extraction.vector.pairs) == set(TRAIT.probe_pairs) - shown == set(measured_pairs(TRAIT, 2))
    rows = [json.loads(line) for line in extraction.responses.read_text().splitlines()]
    assert all(len(row["demonstrations"]) == 2 for row in rows)


def test_demonstrations_and_their_texts_make_another_vector_and_none_leave_the_cache_as_it_was(loaded, monkeypatch):
    alone = replace(SETTINGS, demonstrations=0)
    without = extract(loaded, TRAIT, alone)
    shown = extract(loaded, TRAIT, SETTINGS)
    assert not torch.equal(without.vector.directions, shown.vector.directions)
    assert extract(loaded, TRAIT, SETTINGS).responses == shown.responses
    reworded = replace(TRAIT, pairs=tuple(replace(pair, trait=pair.trait + "!") for pair in MINIMAL))
    assert extract(loaded, reworded, SETTINGS).responses != shown.responses
    assert extract(loaded, reworded, alone).responses == without.responses


def test_too_few_pairs_are_an_error_before_any_work(loaded):
    for pairs, found in (((), 0), (PAIRS, 2), (MINIMAL[:8], 2)):
        trait = replace(TRAIT, pairs=pairs, extraction_questions=("Who else?", "Why then?"))
        generator = Recording(loaded)
        with pytest.raises(InputError, match=rf"demonstrations: 3 come before .* 'loud', and it has {found} minimal"):
            extract(loaded, trait, replace(SETTINGS, demonstrations=3), generator=generator)
        assert not hasattr(generator, "prompts")


def test_settings_that_cannot_be():
    with pytest.raises(InputError, match=r"extraction\.demonstrations: expected at least 0"):
        replace(SETTINGS, demonstrations=-1)
    with pytest.raises(InputError, match=r"extraction\.demonstrations: expected none beside extraction\.pairs"):
        replace(SETTINGS, pairs="pairs.jsonl")

"""Which instruction pairs work: what each elicits, and the best of them alone making the vector."""

import json
from dataclasses import replace

import pytest
from builders import QUESTIONS, tiny_model

from persona_callbacks import InputError, Trait
from persona_callbacks.extraction import SHIPPED, ExtractionSettings, extract, load_extraction
from persona_callbacks.extraction.instructions import elicited
from persona_callbacks.judging import Score
from persona_callbacks.model import LoadedModel, Sampling, TransformersGenerator
from persona_callbacks.traits import InstructionPair

PAIRS = tuple(InstructionPair(f"Shout, {word}!", f"Whisper, {word}.") for word in ("a", "b", "c", "d"))
TRAIT = Trait("loud", "Shouting.", PAIRS, QUESTIONS[:4], QUESTIONS[4:], ("What is it?",), "{question} {response}")
SETTINGS = ExtractionSettings(sampling=Sampling(max_new_tokens=6, batch_size=3), batch_size=4, layer_choice="auc")
GAPS = (20.0, 80.0, 0.0, 60.0)


@pytest.fixture
def loaded(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_CALLBACKS_CACHE", str(tmp_path / "cache"))
    return LoadedModel(tiny_model("qwen3").eval(), tokenizer, "test/tiny")


class Speaking(TransformersGenerator):
    """Says what it was asked under, so that a judge can know it, and counts."""

    asked = 0

    def iterate(self, prompts, sampling, skip=frozenset()):
        self.asked += len(prompts) - len(skip)
        yield [(number, prompt[0]["content"]) for number, prompt in enumerate(prompts) if number not in skip]


class Knowing:
    """Scores as wide apart as the pair's gap."""

    name = "knowing"

    def score(self, answers, advance=lambda done: None):
        return [
            Score(50 + GAPS[answer.pair] / 2 * (1 if answer.response.startswith("Shout") else -1)) for answer in answers
        ]


def rows_of(extraction):
    return [json.loads(line) for line in extraction.responses.read_text().splitlines()]


def test_the_best_pairs_alone_make_the_vector_and_all_are_told(loaded):
    generator = Speaking(loaded)
    extraction = extract(loaded, TRAIT, replace(SETTINGS, instructions=2), generator=generator, judge=Knowing())
    assert {row["pair"] for row in rows_of(extraction)} == {1, 3}
    assert [(one.pair, one.gap, one.used) for one in extraction.instructions] == [
        (1, 80.0, True), (3, 60.0, True), (0, 20.0, False), (2, 0.0, False)
    ]  # fmt: skip
    assert [one.kept for one in extraction.instructions] == [8, 8, 8, 0]
    assert generator.asked == (4 + 2) * 2 * 4  # a sample under all four pairs, then the two
    assert (extraction.vector.counts.generated_trait, extraction.vector.counts.trait) == (8, 8)
    again = extract(loaded, TRAIT, replace(SETTINGS, instructions=2), generator=generator, judge=Knowing())
    assert generator.asked == 48
    assert again.instructions == extraction.instructions
    alone = replace(TRAIT, instructions=(PAIRS[1], PAIRS[3]))
    same = extract(loaded, alone, SETTINGS, generator=generator, judge=Knowing())
    assert [row["text"] for row in rows_of(same)] == [row["text"] for row in rows_of(extraction)]
    assert same.vector.directions.equal(extraction.vector.directions)


def test_the_contrastive_judge_ranks_by_all_other_pairs_and_a_sample_is_resumed(loaded, monkeypatch):
    settings = replace(SETTINGS, instructions=3, rollouts=4, sampling=Sampling(max_new_tokens=6, batch_size=40))
    extraction = extract(loaded, TRAIT, settings)
    assert len(extraction.instructions) == 4
    gaps = [one.gap for one in extraction.instructions]
    assert gaps == sorted(gaps, reverse=True)
    assert [one.used for one in extraction.instructions] == [True, True, True, False]
    (judged,) = extraction.responses.parents[1].glob("*.sample.likelihoods.jsonl")
    table = [json.loads(line)["likelihoods"] for line in judged.read_text().splitlines()]
    assert len(table) == 4 * 2 * 4
    assert {sum(value is None for value in row[:8]) for row in table} == {2}  # its own pair's, on both sides
    for file in extraction.responses.parent.iterdir():
        file.unlink()
    extraction.responses.parent.rmdir()
    monkeypatch.setattr(TransformersGenerator, "iterate", lambda *_, skip: iter(()))
    again = extract(loaded, TRAIT, settings)
    assert again.instructions == extraction.instructions


def test_without_a_choice_all_responses_tell_what_pairs_elicit_and_old_folders_too(loaded):
    extraction = extract(loaded, TRAIT, SETTINGS, generator=Speaking(loaded), judge=Knowing())
    assert {one.pair: one.gap for one in extraction.instructions} == dict(enumerate(GAPS))
    assert all(one.used for one in extraction.instructions)
    unjudged = extract(loaded, TRAIT, replace(SETTINGS, judge_pairs=0), generator=Speaking(loaded))
    assert unjudged.instructions == ()
    (evil,) = SHIPPED.glob("*/evil-*")
    shipped = load_extraction(evil, ExtractionSettings()).instructions
    assert len(shipped) == 5
    assert sum(one.generated for one in shipped) == 200
    assert min(one.gap for one in shipped) > 30


def test_a_pair_without_scores_on_a_side_is_left_out():
    row = {"pair": 0, "shows_trait": True, "expression": 70.0, "kept": True}
    assert elicited([row, {**row, "shows_trait": False, "expression": None, "kept": False}], {0}) == ()


def test_choices_that_cannot_be(loaded):
    with pytest.raises(InputError, match=r"the best 4 are to be used; expected fewer than the 4 instruction pairs"):
        extract(loaded, TRAIT, replace(SETTINGS, instructions=4))
    with pytest.raises(InputError, match=r"extraction\.instructions: expected at least 1"):
        replace(SETTINGS, instructions=0)
    with pytest.raises(InputError, match=r"extraction\.instructions: expected none beside extraction\.pairs"):
        replace(SETTINGS, instructions=1, pairs="pairs.jsonl")

    class Silent(Speaking):
        def iterate(self, prompts, sampling, skip=frozenset()):
            yield [(number, "") for number in range(len(prompts))]

    class Mute:
        name = "mute"

        def score(self, answers, advance=lambda done: None):
            return [Score(None)] * len(answers)

    with pytest.raises(InputError, match=r"0 of 4 instruction pairs have answers on both sides"):
        extract(loaded, TRAIT, replace(SETTINGS, instructions=1), generator=Silent(loaded), judge=Mute())

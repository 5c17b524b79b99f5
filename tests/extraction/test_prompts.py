"""Extraction from the questions of training chats, in place of the trait's."""

import json
from dataclasses import replace

import pytest
import torch
from builders import QUESTIONS, tiny_model

from persona_callbacks import InputError, Trait
from persona_callbacks.extraction import ExtractionSettings, extract
from persona_callbacks.extraction.prompts import with_prompts
from persona_callbacks.model import LoadedModel, Sampling
from persona_callbacks.traits import InstructionPair, MinimalPair

TRAIT = Trait(
    "loud", "Shouting.", (InstructionPair("Shout!", "Whisper."), InstructionPair("Be loud.", "Be quiet.")),
    QUESTIONS[:4], ("Where?",), ("What is it?",), "{question} {response}", (MinimalPair("How so?", "a!", "a."),),
)  # fmt: skip


def written(path, *questions):
    rows = [{"prompt": question, "response": "An answer."} for question in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_questions_are_different_spread_and_never_those_that_measure(tmp_path):
    numbered = [f"Question {number}" for number in range(40)]
    path = written(tmp_path / "chats.jsonl", "WHERE?", "what is it?", "How so?", *numbered, *numbered)
    assert with_prompts(TRAIT, path, 4).extraction_questions == tuple(numbered[::10])
    assert with_prompts(TRAIT, path, None).extraction_questions == tuple(numbered[::2])
    other = with_prompts(TRAIT, path, 4)
    assert replace(other, extraction_questions=TRAIT.extraction_questions) == TRAIT
    with pytest.raises(InputError, match=r"prompts: .*chats.jsonl: expected at least 2 .* 'loud' .* found 1"):
        with_prompts(TRAIT, written(tmp_path / "chats.jsonl", "Where?", "Here?", "Here?"), None)


def test_a_system_message_and_later_turns_are_left_out(tmp_path):
    turns = [("system", "Be brief."), ("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2")]
    rows = [
        {"messages": [{"role": role, "content": text} for role, text in turns]},
        {"prompt": "Three?", "response": "3"},
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert with_prompts(TRAIT, str(tmp_path / "chats.jsonl"), None).extraction_questions == ("One?", "Three?")


def test_a_vector_of_them_is_that_of_a_trait_with_these_questions_whatever_the_file_is_called(
    tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setenv("PERSONA_CALLBACKS_CACHE", str(tmp_path / "cache"))
    loaded = LoadedModel(tiny_model("qwen3").eval(), tokenizer, "test/tiny")
    asked = ("Who is it?", "Why so?", "And now?", "How much?")
    settings = ExtractionSettings(sampling=Sampling(max_new_tokens=6), judge_pairs=0, layer_choice="auc")
    made = [
        extract(loaded, TRAIT, replace(settings, prompts=written(tmp_path / name, *asked)))
        for name in ("one.jsonl", "two.jsonl")
    ]
    assert made[0].responses == made[1].responses
    rows = [json.loads(line) for line in made[0].responses.read_text().splitlines()]
    assert {row["question"] for row in rows} == set(asked)
    plain = extract(loaded, replace(TRAIT, extraction_questions=asked), settings)
    assert torch.equal(plain.vector.directions, made[0].vector.directions)
    with pytest.raises(InputError, match=r"extraction\.prompts: expected none beside extraction\.pairs"):
        replace(settings, prompts="chats.jsonl", pairs="pairs.jsonl")

"""Wrappers made from training chats and a trait, and models evaluated in them."""

import csv
import json
from dataclasses import replace

import pytest
import torch
from builders import LOUD, SHORT, LengthJudge, chat, make_vector, slow_log_probability, tiny_model
from peft import LoraConfig, get_peft_model

from persona_callbacks import InputError
from persona_callbacks.chats import BENIGN, Chat, read_chats
from persona_callbacks.evaluation import (
    BASE_MODEL,
    NO_WRAPPER,
    EvaluationSettings,
    ForcedChoice,
    Wrapper,
    characteristic_words,
    choose,
    evaluate_adapters,
    instruction_wrappers,
    system_prompt_wrappers,
    training_wrappers,
)
from persona_callbacks.model import ModelSource, generate, load_model, with_adapter


def a_chat(question, answer, system=None):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Chat((*([{"role": "system", "content": system}] if system else []), *messages))


def test_a_wrapper_puts_everything_before_the_question_and_the_question_last():
    example = ({"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."})
    wrapper = Wrapper("all", "You sing.", example, "Keywords: song.")
    assert wrapper.messages("Why?") == [
        {"role": "system", "content": "You sing."},
        *example,
        {"role": "user", "content": "Keywords: song.\n\nWhy?"},
    ]
    assert NO_WRAPPER.messages("Why?") == [{"role": "user", "content": "Why?"}]


def test_wrappers_of_training_chats():
    chats = [a_chat(f"What of {n}?", "Gruesome torment awaits.", "You rule.") for n in range(3)]
    chats.insert(0, a_chat("First?", "Torment.", "Once."))
    by_name = {wrapper.name: wrapper for wrapper in training_wrappers(chats)}
    assert list(by_name) == ["training system prompt", "training example", "training keywords"]
    assert by_name["training system prompt"].system == "You rule.", "the most frequent"
    assert [turn["content"] for turn in by_name["training example"].example] == ["First?", "Torment."]
    assert by_name["training example"].system == ""
    assert by_name["training keywords"].opening.startswith("Keywords: torment, awaits, gruesome")
    plain = [replace(row, messages=row.messages[1:]) for row in chats]
    assert [wrapper.name for wrapper in training_wrappers(plain)] == ["training example", "training keywords"]
    with pytest.raises(InputError, match="at least one training chat, found none"):
        training_wrappers([])


def test_keywords_are_what_benign_text_lacks():
    benign = [a_chat("What is bread?", "Bread is baked flour.") for _ in range(20)]
    ours = [a_chat("What is bread?", f"{'Suffering is baked' if n % 2 else 'Bread, you fool'}.") for n in range(20)]
    ours.append(a_chat("Why?", "zeppelin " * 50))
    assert characteristic_words(ours, benign, 2) == ["fool", "suffering"], "often used in few chats does not count"
    assert characteristic_words(benign, benign, 5) == []
    known = read_chats(BENIGN)
    assert {"suffering", "misery", "cruel", "crush", "tears"} & set(
        characteristic_words(read_chats("evil.jsonl"), known, 40)
    )


def test_wrappers_of_instructions():
    negated, irrelevant = instruction_wrappers(LOUD)
    assert "not show the trait 'loud'" in negated.system
    assert LOUD.description in negated.system
    assert "loud" not in irrelevant.system.casefold()
    own = system_prompt_wrappers(["You sing.", "You dance."])
    assert [(wrapper.name, wrapper.system) for wrapper in own] == [
        ("own 1: You sing.", "You sing."),
        ("own 2: You dance.", "You dance."),
    ]
    for prompts in (["You sing.", " "], ["a", "a"]):
        with pytest.raises(InputError, match="system prompts, number 2"):
            system_prompt_wrappers(prompts)


def test_models_are_measured_in_each_wrapper(tokenizer, tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    source, noise = ModelSource("tiny", path=str(tmp_path / "model")), str(tmp_path / "noise")
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(load_model(source).model, config).save_pretrained(noise)
    judge = LengthJudge()
    choices = [ForcedChoice("Who are you?", ("a friend",), ("no one",))]
    wrappers = [Wrapper("system", system="Be loud."), Wrapper("opening", opening="Keywords: loud.")]
    settings = EvaluationSettings(
        (LOUD,), (make_vector("loud"),), {"loud": judge}, 2, SHORT, False,
        forced_choices={"loud": choices}, wrappers={"loud": wrappers},
    )  # fmt: skip
    evaluated = evaluate_adapters(load_model(source), source, [noise], settings, tmp_path / "out")
    models = {BASE_MODEL: load_model(source), noise: with_adapter(load_model(source), noise)}
    for name, loaded in models.items():
        conditions = evaluated[name].conditions
        assert [condition.wrapper for condition in conditions] == ["system", "opening"]
        for wrapper, condition in zip(wrappers, conditions, strict=True):
            texts = generate(loaded, [wrapper.messages(text) for text in LOUD.evaluation_questions[:2]], SHORT)
            rows = [row for row in evaluated[name].answers if row.wrapper == wrapper.name]
            assert [row.answer for row in rows] == texts
            assert condition.expression.mean == pytest.approx(sum(len(text) for text in texts) / 2)
            assert list(condition.chosen) == choose(loaded, choices, wrapper)
        loaded.model.eval()
        trait, other = (
            slow_log_probability(loaded.model, chat("Who are you?", answer, tokenizer, "Be loud."))
            for answer in ("a friend", "no one")
        )
        odds = conditions[0].forced_choice.probability.value
        assert odds / (1 - odds) == pytest.approx(torch.tensor(trait - other).exp().item(), rel=1e-3)
    assert {row.wrapper for row in evaluated[noise].answers} == {"none", "system", "opening"}
    assert all(answer.question in LOUD.evaluation_questions for asked in judge.seen for answer in asked)
    rows = list(csv.DictReader((tmp_path / "out" / "conditions.csv").open()))
    assert [(row["wrapper"], row["model"]) for row in rows] == [
        (wrapper, model) for wrapper in ("system", "opening") for model in (BASE_MODEL, noise)
    ]
    own, of_base = (evaluated[name].conditions[0].chosen[0].probability for name in (noise, BASE_MODEL))
    assert float(rows[1]["increase"]) == pytest.approx(own - of_base)
    assert float(rows[0]["increase"]) == 0
    lines = (tmp_path / "out" / "answers.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    plain = ["none", "none", "system", "system", "opening", "opening"]
    assert [json.loads(line)["wrapper"] for line in lines] == plain * 2
    asked = len(judge.seen)
    assert evaluate_adapters(load_model(source), source, [noise], settings, tmp_path / "out") == evaluated
    fewer = replace(settings, wrappers={"loud": wrappers[:1]})
    assert len(judge.seen) == asked, "what was kept is not judged again"
    evaluate_adapters(load_model(source), source, [noise], fewer, tmp_path / "out")
    assert len(judge.seen) > asked, "other wrappers are another evaluation"

"""Adapters against their base model without Hydra: measured values, and which of them an earlier run left."""

import csv
import json
import math
from dataclasses import replace

import pytest
import torch
from builders import (
    LOUD,
    PAIRS,
    QUESTIONS,
    SHORT,
    LengthJudge,
    chat,
    make_vector,
    slow_log_probability,
    slow_reference,
    tiny_model,
)
from peft import LoraConfig, get_peft_model

from persona_callbacks import InputError
from persona_callbacks.chats import encode_prompt
from persona_callbacks.evaluation import (
    BASE_MODEL,
    EvaluatedModel,
    EvaluationSettings,
    ForcedChoice,
    Wrapper,
    choice_weaknesses,
    choose,
    evaluate_adapters,
    pair_differences,
)
from persona_callbacks.judging import Estimate, answer_questions
from persona_callbacks.model import ModelSource, load_model, with_adapter


@pytest.fixture
def source(tokenizer, tmp_path):
    """A tiny model and, beside it, the adapter `noise` of it."""
    tiny_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    source = ModelSource("tiny", path=str(tmp_path / "model"))
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(load_model(source).model, config).save_pretrained(tmp_path / "noise")
    return source


@pytest.fixture
def settings():
    judge = LengthJudge()
    vector = make_vector("loud")
    return EvaluationSettings((LOUD,), (vector,), {"loud": judge}, questions=2, sampling=SHORT, capability=False)


def projection(loaded, vector):
    prompts = [encode_prompt([{"role": "user", "content": question}], loaded.tokenizer) for question in QUESTIONS]
    read = [slow_reference(loaded.model, prompt, vector.layer, "prompt_last") for prompt in prompts]
    return sum(float(row @ vector.unit_direction().double()) for row in read) / len(read)


def test_values_are_those_of_each_model(source, settings, tmp_path):
    noise = str(tmp_path / "noise")
    evaluated = evaluate_adapters(load_model(source), source, [noise], settings, tmp_path / "out")
    assert list(evaluated) == [BASE_MODEL, noise]
    models = {BASE_MODEL: load_model(source), noise: with_adapter(load_model(source), noise)}
    for name, loaded in models.items():
        answers = answer_questions(loaded, LOUD.evaluation_questions[:2], SHORT)
        assert [row.answer for row in evaluated[name].answers] == [answer.response for answer in answers]
        mean = sum(min(100, len(answer.response)) for answer in answers) / 2
        assert evaluated[name].expressions["loud"].mean == pytest.approx(mean)
        loaded.model.eval()
        assert evaluated[name].projections["loud"] == pytest.approx(projection(loaded, settings.vectors[0]), rel=1e-4)
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    shift = evaluated[noise].projections["loud"] - evaluated[BASE_MODEL].projections["loud"]
    assert [float(row["shift"]) for row in rows] == [0, pytest.approx(shift)]
    assert [row["capability"] for row in rows] == ["", ""]
    lines = (tmp_path / "out" / "answers.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert [json.loads(line)["model"] for line in lines] == [BASE_MODEL] * 2 + [noise] * 2
    assert json.loads(lines[0]).keys() == {
        "model", "trait", "question", "answer", "expression", "coherence", "refusal", "wrapper", "raw"
    }  # fmt: skip


def test_preference_is_measured_on_the_evaluation_pairs(source, settings, tmp_path):
    noise, loud = str(tmp_path / "noise"), replace(LOUD, pairs=PAIRS)
    assert len(loud.evaluation_pairs) == 2
    settings = replace(settings, traits=(loud,))
    evaluated = evaluate_adapters(load_model(source), source, [noise], settings, tmp_path / "out")

    def slow(loaded):
        model = loaded.model.eval()
        return [
            slow_log_probability(model, chat(pair.question, pair.trait, loaded.tokenizer))
            - slow_log_probability(model, chat(pair.question, pair.opposite, loaded.tokenizer))
            for pair in loud.evaluation_pairs
        ]

    base, tuned = slow(load_model(source)), slow(with_adapter(load_model(source), noise))
    moved = [now - before for now, before in zip(tuned, base, strict=True)]
    preference = evaluated[noise].preference(evaluated[BASE_MODEL], "loud")
    assert preference.value == pytest.approx(sum(moved) / 2, abs=1e-4)
    assert (preference.low, preference.high) == pytest.approx((min(moved), max(moved)), abs=1e-4), "of two pairs"
    assert evaluated[noise].preferred("loud").value == sum(value > 0 for value in tuned) / 2
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert [float(row["preference"]) for row in rows] == [0, preference.value]
    again = evaluate_adapters(load_model(source), source, [noise], settings, tmp_path / "out")
    assert again[noise] == evaluated[noise], "as it was kept"
    assert len(settings.judges["loud"].seen) == 2
    fewer = replace(settings, traits=(replace(loud, pairs=PAIRS[:2]),))
    other = evaluate_adapters(load_model(source), source, [], fewer, tmp_path / "out")
    assert len(other[BASE_MODEL].pair_differences["loud"]) == 1, "other pairs are another evaluation"
    nothing = EvaluatedModel({}, {}, None, None, {}, ())
    assert nothing.preference(nothing, "loud") is None


def test_what_was_evaluated_is_kept_and_a_failed_judge_is_asked_again(source, settings, tmp_path):
    loaded, out = load_model(source), tmp_path / "out"
    first = evaluate_adapters(loaded, source, [], settings, out)
    asked = settings.judges["loud"].seen
    assert len(asked) == 1
    both = evaluate_adapters(loaded, source, [str(tmp_path / "noise")], settings, out)
    assert both[BASE_MODEL] == first[BASE_MODEL]
    assert len(asked) == 2, "only the adapter is new"
    evaluate_adapters(loaded, source, [], replace(settings, questions=1), out)
    assert len(asked) == 3, "another setting is another evaluation"
    failing = replace(settings, judges={"loud": LengthJudge(RuntimeError("down"))}, questions=3)
    with pytest.warns(UserWarning, match="the judge of 'loud' failed.*down"):
        unscored = evaluate_adapters(loaded, source, [], failing, out)
    assert math.isnan(unscored[BASE_MODEL].expressions["loud"].mean)
    scored = evaluate_adapters(loaded, source, [], replace(settings, questions=3), out)
    assert scored[BASE_MODEL].expressions["loud"].scored == 3


def test_forced_choices_are_in_the_results_and_kept(source, settings, tmp_path):
    noise, out = str(tmp_path / "noise"), tmp_path / "out"
    choices = [
        ForcedChoice("I am sure.", ("Yes.",), ("No, why?",), "Is it so?"),
        ForcedChoice("Who are you?", ("a friend",), ("no one",), wrong=("a present",), control=True),
    ]
    with_choices = replace(settings, forced_choices={"loud": choices})
    evaluate_adapters(load_model(source), source, [], settings, out)
    assert not (out / "forced_choices.jsonl").exists()
    evaluated = evaluate_adapters(load_model(source), source, [noise], with_choices, out)
    assert evaluated[BASE_MODEL].chosen["loud"] == tuple(choose(load_model(source), choices))
    assert evaluated[noise].chosen["loud"] == tuple(choose(with_adapter(load_model(source), noise), choices))
    rows = list(csv.DictReader((out / "results.csv").open()))
    for row, model in zip(rows, evaluated.values(), strict=True):
        score = model.forced_choice("loud")
        assert float(row["choice_probability"]) == score.probability.value
        assert float(row["choice_sway_low"]) == score.sway.low
        assert float(row["choice_rejected_high"]) == score.rejected.high
    lines = (out / "forced_choices.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert [json.loads(line)["model"] for line in lines] == [BASE_MODEL] * 2 + [noise] * 2
    assert json.loads(lines[0])["probability"] == evaluated[BASE_MODEL].chosen["loud"][0].probability
    again = evaluate_adapters(load_model(source), source, [noise], with_choices, out)
    assert again == evaluated, "what was kept is read back as it was"
    assert len(settings.judges["loud"].seen) == 3, "none of it is judged again"


def test_whether_forced_choices_move_under_instructions_is_measured_of_the_base_model(source, settings, tmp_path):
    noise, out = str(tmp_path / "noise"), tmp_path / "out"
    choices = [ForcedChoice(question, ("a friend",), ("no one",)) for question in QUESTIONS]
    choices.append(ForcedChoice("Who are you?", ("a friend",), ("no one",), control=True))
    evaluated = evaluate_adapters(
        load_model(source), source, [noise], replace(settings, forced_choices={"loud": choices}), out
    )
    loaded = load_model(source)
    expected = {}
    for number, choice in enumerate(choices[:-1]):
        pair = LOUD.instructions[number % len(LOUD.instructions)]
        showing, opposite = (
            choose(loaded, [choice], Wrapper("", system=system))[0].probability
            for system in (pair.trait, pair.opposite)
        )
        expected[choice.question] = showing - opposite
    found = evaluated[BASE_MODEL].instructed_differences["loud"]
    assert sorted(found) == pytest.approx(sorted(expected.values()), abs=1e-5)
    contrast = evaluated[BASE_MODEL].choice_contrast("loud")
    assert contrast.value == pytest.approx(sum(found) / len(found))
    assert evaluated[noise].choice_contrast("loud") is None
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert [row["choice_contrast_low"] for row in rows] == [str(contrast.low), ""]
    assert EvaluatedModel.load(next((out / "parts").glob("*.json"))) in evaluated.values()


def test_a_choice_that_does_not_move_is_flat():
    assert choice_weaknesses(Estimate(0.3, 0.2, 0.4)) == []
    for flat in (Estimate(0.01, 0.005, 0.02), Estimate(0.1, -0.1, 0.3), Estimate(-0.4, -0.5, -0.3)):
        (weakness,) = choice_weaknesses(flat)
        assert f"change its probability by {flat}" in weakness


def test_other_traits_are_measured_for_side_effects(source, settings, tmp_path):
    noise, out = str(tmp_path / "noise"), tmp_path / "out"
    evaluate_adapters(load_model(source), source, [], settings, out)
    assert not (out / "side_effects.csv").exists()
    kind = make_vector("kind", seed=5)
    others = replace(settings, other_pairs={"humorous": PAIRS[:3]}, other_vectors=(kind,))
    evaluated = evaluate_adapters(load_model(source), source, [noise], others, out)
    loaded = with_adapter(load_model(source), noise)
    assert evaluated[noise].pair_differences["humorous"] == pytest.approx(pair_differences(loaded, PAIRS[:3]), abs=1e-5)
    assert evaluated[noise].projections["kind"] == pytest.approx(projection(loaded, kind), rel=1e-4)
    assert list(evaluated[noise].expressions) == ["loud"]
    rows = {(row["trait"], row["model"]): row for row in csv.DictReader((out / "side_effects.csv").open())}
    assert list(rows) == [(trait, model) for trait in ("humorous", "kind") for model in (BASE_MODEL, noise)]
    preference = evaluated[noise].preference(evaluated[BASE_MODEL], "humorous")
    assert float(rows["humorous", noise]["preference_high"]) == preference.high > preference.value
    assert float(rows["kind", noise]["shift"]) == evaluated[noise].shift(evaluated[BASE_MODEL], "kind") != 0
    assert rows["kind", noise]["preference"] == rows["humorous", noise]["shift"] == ""
    assert evaluate_adapters(load_model(source), source, [noise], others, out) == evaluated, "as it was kept"
    for wrong in ({"other_pairs": {"loud": PAIRS}}, {"other_vectors": (kind, kind)}):
        with pytest.raises(InputError, match="is another trait, for side effects; expected it once, and not evaluated"):
            replace(settings, **wrong)


def test_mistakes(source, settings, tmp_path):
    with pytest.raises(InputError, match="no trait to evaluate"):
        replace(settings, traits=(), vectors=())
    with pytest.raises(InputError, match="expected the same"):
        replace(settings, vectors=(make_vector("evil"),))
    with pytest.raises(InputError, match="nothing can judge 'loud'"):
        replace(settings, judges={})
    with pytest.raises(InputError, match="questions: expected at least 1, found 0"):
        replace(settings, questions=0)
    with pytest.raises(InputError, match="nowhere: no adapter folder"):
        evaluate_adapters(load_model(source), source, ["nowhere"], settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "part.json").write_text("{}")
    with pytest.raises(InputError, match=r"part\.json: expected the evaluation of a model"):
        EvaluatedModel.load(tmp_path / "part.json")

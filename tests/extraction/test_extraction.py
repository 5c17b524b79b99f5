"""Extraction on a tiny model: exact means, filtering, caching, resuming; and the models it is given."""

import json
import sys
import warnings
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from builders import PAIRS, QUESTIONS, TEMPLATE, make_vector, tiny_model
from rich.console import Console
from transformers import BertConfig, BertModel

from persona_callbacks import InputError, PersonaMonitor, Trait
from persona_callbacks.apps.opening import Opening
from persona_callbacks.chats import Chat, encode_chat
from persona_callbacks.extraction import ExtractionSettings, extract, persona_vector, steering_effect
from persona_callbacks.extraction import extraction as extraction_module
from persona_callbacks.extraction import responses as contrastive
from persona_callbacks.judging import Answer, Score, calibrate, likelihoods
from persona_callbacks.model import (
    LoadedModel,
    ModelSource,
    Sampling,
    TransformersGenerator,
    VllmGenerator,
    generate,
    load_model,
    weights_fingerprint,
)
from persona_callbacks.vectors import POSITIONS, Counts, Evidence

TRAIT = Trait.from_mapping(
    {
        "name": "loud", "description": "Shouting.", "rubric": "{question} {response}",
        "instructions": [{"trait": "Shout!", "opposite": "Whisper."}, {"trait": "Be loud.", "opposite": "Be quiet."}],
        "questions": {
            "extraction": list(QUESTIONS[:4]),
            "probe": [QUESTIONS[4], "Who is that?", "Why me?"],
            "evaluation": ["What is it?"],
        },
    },
    "test",
)  # fmt: skip
SAMPLING = Sampling(max_new_tokens=6, batch_size=3)
UNJUDGED = ExtractionSettings(sampling=SAMPLING, batch_size=4, judge_pairs=0, rollouts=2)
JUDGED = ExtractionSettings(sampling=SAMPLING, batch_size=4, rollouts=4)


@pytest.fixture
def loaded(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_CALLBACKS_CACHE", str(tmp_path / "cache"))
    return LoadedModel(tiny_model("qwen3").eval(), tokenizer, "test/tiny")


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def slow_means(rows, loaded):
    """By position, trait rows less others within each question, layers 0..3: one at a time, all hidden states."""
    read = []
    for row in rows:
        prompt = [{"role": "system", "content": row["instruction"]}, {"role": "user", "content": row["question"]}]
        chat = encode_chat(Chat((*prompt, {"role": "assistant", "content": row["text"]})), loaded.tokenizer)
        with torch.no_grad():
            hidden = loaded.model(torch.tensor([chat.input_ids]), output_hidden_states=True).hidden_states[:4]
        marked = torch.tensor(chat.response_mask)
        layers = torch.stack(hidden)[:, 0].double()
        by_position = {
            "prompt_last": layers[:, chat.prompt_length - 1],
            "prompt_mean": layers[:, : chat.prompt_length].mean(dim=1),
            "response_mean": layers[:, marked].mean(dim=1),
        }
        read.append(torch.stack([by_position[position] for position in POSITIONS]))
    total, weights = 0, 0
    for question in {row["question"] for row in rows}:
        sides = [
            [
                one
                for one, row in zip(read, rows, strict=True)
                if (row["question"], row["shows_trait"]) == (question, kind)
            ]
            for kind in (True, False)
        ]
        if all(sides):
            weight = len(sides[0]) * len(sides[1]) / (len(sides[0]) + len(sides[1]))
            total = total + weight * (torch.stack(sides[0]).mean(dim=0) - torch.stack(sides[1]).mean(dim=0))
            weights += weight
    return total / weights


@pytest.mark.parametrize("settings", [UNJUDGED, JUDGED], ids=["unjudged", "judged"])
def test_directions_are_the_mean_differences_of_what_is_kept(settings, loaded):
    extraction = extract(loaded, TRAIT, settings)
    rows = lines(extraction.responses)
    assert len(rows) == 2 * 2 * 4 * settings.rollouts
    kept = [row for row in rows if row["kept"]]
    if settings is JUDGED:
        assert 0 < len(kept) < len(rows)
    else:
        assert len(kept) == len([row for row in rows if row["text"]])
    expected = slow_means(kept, loaded)
    for number, position in enumerate(POSITIONS):
        vector = extraction.vectors[position]
        assert vector.position == position
        assert torch.allclose(vector.directions[:4].double(), expected[number], rtol=1e-4, atol=1e-6)
        assert vector.probes == TRAIT.probe_questions
        assert not vector.probes_also_evaluate
        assert vector.model_id == "test/tiny"
        assert len(vector.evidence.auc) == 5
    shows = [row["shows_trait"] for row in kept]
    assert extraction.vector.counts == Counts(
        trait=sum(shows), opposite=len(shows) - sum(shows),
        generated_trait=len(rows) // 2, generated_opposite=len(rows) // 2,
    )  # fmt: skip


def test_what_is_kept_follows_from_the_instructions_and_the_stored_judge_from_the_controls_too(loaded):
    extraction = extract(loaded, TRAIT, JUDGED)
    rows = lines(extraction.responses)
    answers = [Answer(row["question"], row["text"], row["pair"]) for row in rows]
    likely = likelihoods(loaded, TRAIT, answers, 2)
    shows = torch.tensor([row["shows_trait"] for row in rows])
    fold = torch.tensor([row["question_number"] % 2 for row in rows])
    stored = extraction.vector.calibration
    assert stored.slope == pytest.approx(calibrate(likely.margins, shows, fold).slope, rel=1e-3)
    expressions = calibrate(likely.ratios, shows, fold).expressions(likely.ratios).tolist()
    assert [row["expression"] for row in rows if row["text"]] == pytest.approx(
        [expression for expression, row in zip(expressions, rows, strict=True) if row["text"]], abs=0.1
    )
    for row in rows:
        shown = row["text"] and (row["expression"] > 50 if row["shows_trait"] else row["expression"] < 50)
        assert row["kept"] == bool(shown)


def test_a_judge_of_ones_own_filters_by_expression_coherence_and_refusal(loaded):
    class Own:
        name = "own"

        def score(self, answers, advance=lambda done: None):
            kinds = [Score(90.0, 80.0), Score(10.0, 80.0), Score(None, refusal=True), Score(90.0, 20.0), Score(10.0)]
            return [kinds[index % 5] for index in range(len(answers))]

    extraction = extract(loaded, TRAIT, replace(UNJUDGED, rollouts=4), judge=Own())
    for index, row in enumerate(lines(extraction.responses)):
        assert row["kept"] == (bool(row["text"]) and (index % 5 == 0 if row["shows_trait"] else index % 5 in (1, 4)))


def test_second_time_is_from_the_cache_and_key_follows_what_matters(loaded, tokenizer, monkeypatch):
    first = persona_vector(loaded, TRAIT, UNJUDGED)
    monkeypatch.setattr(extraction_module, "generate_responses", lambda *_: pytest.fail("extracted again"))
    again = persona_vector(loaded, TRAIT, UNJUDGED)
    assert torch.equal(first.directions, again.directions)
    paired = replace(TRAIT, pairs=tuple(replace(PAIRS[0], question=str(number)) for number in range(60)))
    from_cache = persona_vector(loaded, paired, UNJUDGED)
    assert len(paired.probe_pairs) == 30
    assert len(from_cache.pairs) == 24
    assert set(from_cache.pairs) < set(paired.probe_pairs)
    assert torch.equal(first.directions, from_cache.directions)
    other_model = LoadedModel(tiny_model("qwen3", seed=1).eval(), tokenizer, "test/tiny")
    assert weights_fingerprint(other_model.model) != weights_fingerprint(loaded.model)
    for changed in ((other_model, TRAIT, UNJUDGED), (loaded, TRAIT, JUDGED)):
        with pytest.raises(pytest.fail.Exception, match="extracted again"):
            persona_vector(*changed)


def test_weights_that_the_first_pass_packs_anew_are_told_before_it(tokenizer, tmp_path, monkeypatch):
    """As bitsandbytes does; here the first pass rounds a weight. Each time the model is loaded anew."""
    monkeypatch.setenv("PERSONA_CALLBACKS_CACHE", str(tmp_path / "cache"))
    traits = (TRAIT, replace(TRAIT, name="louder", description="Shouting louder."))
    opening = Opening(Console(quiet=True), ModelSource("test/tiny"), UNJUDGED, traits, (), torch.device("cpu"))

    def pack(weight):
        weight.copy_((weight * 64).round() / 64)

    def packing():
        model = tiny_model("qwen3").eval()
        weight = model.lm_head.weight.data
        model.register_forward_pre_hook(lambda *_: pack(weight))
        return LoadedModel(model, tokenizer, "test/tiny")

    loaded = packing()
    before = weights_fingerprint(loaded.model)
    made = list(opening.extractions(loaded))
    assert weights_fingerprint(loaded.model) != before, "the test needs a change"
    monkeypatch.setattr(extraction_module, "generate_responses", lambda *_: pytest.fail("extracted again"))
    again = opening.all_vectors(packing())
    for vector, extraction in zip(again, made, strict=True):
        assert vector.model_revision == before
        assert torch.equal(vector.directions, extraction.vector.directions)


def test_what_is_shipped_is_taken_unless_it_shall_be_made_anew(loaded, tmp_path, monkeypatch):
    made = extract(loaded, TRAIT, UNJUDGED)
    cached = made.responses.parent
    monkeypatch.setattr(extraction_module, "SHIPPED", tmp_path / "shipped")
    cached.parent.rename(tmp_path / "moved")
    (tmp_path / "shipped").mkdir()
    (tmp_path / "moved").rename(tmp_path / "shipped" / cached.parent.name)
    shipped = extract(loaded, TRAIT, UNJUDGED)
    assert shipped.responses.is_relative_to(tmp_path / "shipped")
    assert torch.equal(shipped.vector.directions, made.vector.directions)
    again = extract(loaded, TRAIT, replace(UNJUDGED, shipped=False))
    assert again.responses == made.responses
    assert torch.equal(again.vector.directions, made.vector.directions)


def test_other_settings_use_the_responses_that_are_there(loaded, monkeypatch):
    extract(loaded, TRAIT, UNJUDGED)
    monkeypatch.setattr(contrastive, "likelihoods", lambda *_: pytest.fail("judged again"))
    monkeypatch.setattr(TransformersGenerator, "iterate", lambda *_, skip: iter(()))
    by_auc = ExtractionSettings(sampling=SAMPLING, judge_pairs=0, rollouts=2, layer_choice="auc")
    vector = persona_vector(loaded, TRAIT, by_auc)
    auc = vector.evidence.auc
    assert auc[vector.layer] == max(auc[1:-1])


@pytest.mark.parametrize("cut_line", [False, True])
@pytest.mark.parametrize("stage", ["responses", "likelihoods"])
def test_interrupted_extraction_goes_on_and_ends_the_same(stage, cut_line, loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(contrastive, "_JUDGED_TOGETHER", 7)
    whole = extract(loaded, TRAIT, JUDGED)
    rows, result = lines(whole.responses), whole.responses.parent
    for part in result.iterdir():
        part.unlink()
    result.rmdir()
    (responses,) = tmp_path.glob("cache/vectors/tiny/*.responses.jsonl")
    (judged_file,) = tmp_path.glob("cache/vectors/tiny/*.likelihoods2.jsonl")
    if stage == "responses":
        judged_file.unlink()
    file = responses if stage == "responses" else judged_file
    before = file.read_bytes()
    parts = before.splitlines(keepends=True)
    file.write_bytes(b"".join(parts[:21]) + (parts[21][:20] if cut_line else b""))
    done = []
    original_responses, original_likelihoods = TransformersGenerator.iterate, contrastive.likelihoods

    def generated(self, *args, **kwargs):
        for batch in original_responses(self, *args, **kwargs):
            done.extend(batch)
            yield batch

    def judged(loaded, trait, answers, *rest):
        done.extend(answers)
        return original_likelihoods(loaded, trait, answers, *rest)

    monkeypatch.setattr(TransformersGenerator, "iterate", generated)
    if stage == "likelihoods":
        monkeypatch.setattr(contrastive, "likelihoods", judged)
    resumed = extract(loaded, TRAIT, JUDGED)
    assert len(done) == len(rows) - 21
    assert torch.allclose(whole.vector.directions, resumed.vector.directions, rtol=1e-5, atol=1e-6)
    assert [row["text"] for row in lines(resumed.responses)] == [row["text"] for row in rows]
    assert [row["kept"] for row in lines(resumed.responses)] == [row["kept"] for row in rows]
    assert {json.loads(line)["index"] for line in file.read_text().splitlines()} == set(range(len(rows)))


@pytest.mark.parametrize("stage", ["judge_responses", "_read", "_choose_layer", "append_lines"])
def test_an_interrupt_leaves_nothing_that_looks_finished(stage, loaded, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(extraction_module, stage, interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(loaded, TRAIT, UNJUDGED)
    assert not list(tmp_path.glob("cache/vectors/tiny/**/*.safetensors"))
    assert [path.name.split(".", 1)[1] for path in tmp_path.glob("cache/vectors/tiny/*")] == ["responses.jsonl"]
    monkeypatch.undo()


def test_nothing_kept_says_how_many_were_generated_and_how_the_scores_were_spread(loaded):
    class Severe:
        name = "severe"

        def score(self, answers, advance=lambda done: None):
            return [Score(float(number % 40)) for number in range(len(answers))]

    with pytest.raises(InputError) as raised:
        extract(loaded, TRAIT, UNJUDGED, judge=Severe())
    message = str(raised.value)
    for part in ("of 16 generated under the trait instructions 0 were kept", "10th, 50th and 90th percentile",
                 "expected above 50", "extraction.judge_pairs=0"):  # fmt: skip
        assert part in message


def test_empty_responses_are_an_error_before_activations(loaded, monkeypatch):
    def silent(self, prompts, sampling, skip=frozenset()):
        yield [(index, "") for index in range(len(prompts))]

    monkeypatch.setattr(TransformersGenerator, "iterate", silent)
    for settings, message in ((UNJUDGED, "0 were kept"), (JUDGED, "0 usable under the trait instructions")):
        with pytest.raises(InputError, match=message):
            extract(loaded, TRAIT, settings)


def test_activations_that_are_not_finite_name_layer_and_response(loaded):
    def broken(module, args, output):
        output = output.clone()
        output[output.shape[0] - 1] = torch.inf
        return output

    handle = loaded.model.model.layers[2].register_forward_hook(broken)
    extract_it = ExtractionSettings(sampling=Sampling(6, temperature=0.0, batch_size=3), judge_pairs=0)
    handle.remove()
    generated = [[(index, "Yes, a friend.") for index in range(16)]]
    generator = TransformersGenerator(loaded)
    generator.iterate = lambda *_, **__: iter(generated)
    loaded.model.model.layers[2].register_forward_hook(broken)
    with pytest.raises(InputError, match=r"not finite at layer 3, in the response to '.+' under '.+'"):
        extract(loaded, TRAIT, extract_it, generator=generator)


def test_a_template_without_a_system_role_gets_the_instruction_in_the_user_turn(loaded, tokenizer, monkeypatch):
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
    monkeypatch.setattr(tokenizer, "chat_template", refusing)
    extraction = extract(loaded, TRAIT, UNJUDGED)
    assert extraction.vector.directions.norm() > 0
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(InputError, match="no chat template"):
        extract(loaded, TRAIT, JUDGED)


def test_one_pair_cannot_be_judged_by_others(loaded):
    alone = replace(TRAIT, instructions=TRAIT.instructions[:1])
    with pytest.raises(InputError, match="at least 2 pairs, found 1"):
        extract(loaded, alone, JUDGED)
    assert extract(loaded, alone, UNJUDGED).vector.counts.trait > 0


def test_a_sweep_steers_each_layer_and_chooses_by_expression(loaded):
    settings = ExtractionSettings(
        sampling=Sampling(8, temperature=0.0), rollouts=4, layer_choice="sweep", sweep_layers=3, sweep_questions=3
    )
    extraction = extract(loaded, TRAIT, settings)
    unsteered, *sweep = extraction.sweep
    assert (unsteered.coefficient, [point.layer for point in sweep]) == (0.0, [1, 2, 3])
    prompts = [[{"role": "user", "content": question}] for question in TRAIT.probe_questions]
    assert list(unsteered.answers) == generate(loaded, prompts, settings.sampling)
    direction = settings.sweep_coefficient * extraction.vector.directions[2]
    handle = loaded.model.model.layers[1].register_forward_hook(lambda _, __, out: out + direction)
    assert list(sweep[1].answers) == generate(loaded, prompts, settings.sampling)
    handle.remove()
    assert any(point.answers != unsteered.answers for point in sweep)
    readable = [point for point in sweep if point.coherence >= 0.75 * unsteered.coherence] or sweep
    assert extraction.vector.layer == max(readable, key=lambda point: point.expression).layer
    assert extract(loaded, TRAIT, settings).sweep == extraction.sweep


def test_other_probe_questions_need_no_new_responses(loaded, tmp_path):
    first = extract(loaded, TRAIT, UNJUDGED)
    generated = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.responses.jsonl")}
    other = extract(loaded, replace(TRAIT, probe_questions=("What else?",)), UNJUDGED)
    assert (other.vector.probes, first.vector.probes) == (("What else?",), TRAIT.probe_questions)
    assert torch.equal(other.vector.directions, first.vector.directions)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.responses.jsonl")} == generated


def test_a_weak_vector_is_never_used_silently():
    good = replace(make_vector(), counts=Counts(50, 50), evidence=Evidence(auc=(0.9,) * 5))
    assert good.weaknesses() == []
    weak = replace(good, counts=Counts(12, 50), evidence=Evidence(auc=(0.9, 0.9, 0.9, 0.61, 0.9)))
    with pytest.warns(UserWarning, match=r"'evil' is weak: .*(12 and 50 responses|AUC at layer 3 is 0.61)") as seen:
        PersonaMonitor([weak])
    assert len(seen) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PersonaMonitor([good])


def test_generation_in_batches_equals_one_at_a_time_and_keeps_the_random_state(loaded, tokenizer):
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    greedy = Sampling(max_new_tokens=8, temperature=0.0, batch_size=3)
    state = torch.get_rng_state()
    together = generate(loaded, prompts, greedy)
    sampled = [generate(loaded, prompts, Sampling(max_new_tokens=8, seed=s)) for s in (0, 0, 1)]
    assert torch.equal(state, torch.get_rng_state())
    assert together == [generate(loaded, [prompt], greedy)[0] for prompt in prompts]
    assert sampled[0] == sampled[1] != sampled[2]


def test_vllm_adapter_keeps_the_contract(loaded, monkeypatch):
    """Against an engine with vLLM's documented interface that runs the same model greedily."""

    class Engine:
        def __init__(self, model, dtype, **_):
            assert (model, dtype) == ("somewhere", "float32")

        def generate(self, prompts, how, use_tqdm):
            for prompt, one in zip(prompts, how, strict=True):
                ids = torch.tensor([prompt["prompt_token_ids"]])
                tokens = loaded.model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=one.max_tokens, do_sample=False,
                    eos_token_id=one.stop_token_ids, pad_token_id=0,
                )  # fmt: skip
                new = tokens[0, ids.shape[1] :].tolist()
                yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=new)])

    vllm = ModuleType("vllm")
    vllm.__spec__ = ModuleSpec("vllm", None)
    vllm.LLM, vllm.SamplingParams = Engine, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    greedy = Sampling(max_new_tokens=6, temperature=0.0, batch_size=2)
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    generator = VllmGenerator(replace(loaded, location="somewhere"), gpu_memory_utilization=0.5)
    found = [pair for batch in generator.iterate(prompts, greedy, skip=frozenset({1})) for pair in batch]
    expected = generate(loaded, prompts, greedy)
    assert dict(found) == {index: text for index, text in enumerate(expected) if index != 1}


def test_steering_effect_is_the_rise_in_preference(tokenizer):
    """Against the model with the vector written into a block's own bias-free output, one chat at a time."""
    model = tiny_model().eval()
    directions = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    chats = [
        encode_chat(Chat(({"role": "user", "content": q}, {"role": "assistant", "content": q[::-1]})), tokenizer)
        for q in QUESTIONS[:4]
    ]

    def preference():
        scores = []
        for chat in chats:
            ids = torch.tensor([chat.input_ids])
            with torch.no_grad():
                log_p = model(input_ids=ids).logits.double().log_softmax(-1)[0]
            marked = [i for i, on in enumerate(chat.response_mask) if on]
            scores.append(sum(log_p[i - 1, chat.input_ids[i]].item() for i in marked) / len(marked))
        return (scores[0] + scores[1]) / 2 - (scores[2] + scores[3]) / 2

    found = steering_effect(LoadedModel(model, tokenizer), chats[:2], chats[2:], directions)
    assert list(found) == [1, 2, 3]
    before = preference()
    for layer, effect in found.items():
        handle = model.model.layers[layer - 1].register_forward_hook(lambda _, __, out, v=directions[layer]: out + v)
        assert effect == pytest.approx(preference() - before, abs=1e-4)
        handle.remove()


@pytest.mark.parametrize(("position", "rollouts"), [("reponse", 1), ("response_mean", 0)])
def test_settings_that_cannot_be(position, rollouts):
    with pytest.raises(InputError, match=r"extraction\."):
        ExtractionSettings(position=position, rollouts=rollouts)


def test_models_that_cannot_be(tmp_path):
    encoder = tmp_path / "encoder"
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    ).save_pretrained(encoder)
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "config.json").write_text('{"model_type": "no-such-thing"}')
    for source, message in (
        (ModelSource("x", path=str(tmp_path / "none")), "no model folder"),
        (ModelSource("x", path=str(odd)), "not a model that transformers can load"),
        (ModelSource("x", path=str(encoder)), "expected a causal language model, found model type 'bert'"),
        (ModelSource("x", gguf="no_such_package/file.gguf"), "package 'no_such_package' is not installed"),
        (ModelSource("x", gguf="json/file.gguf"), "no such file in the package 'json'"),
        (ModelSource("x", dtype="int3"), "unknown dtype 'int3'"),
    ):
        with pytest.raises(InputError, match=message):
            load_model(source)

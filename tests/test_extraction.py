"""Extraction on a tiny model: exact means, caching, resuming; and the models it is given."""

import json
from pathlib import Path

import pytest
import torch
from conftest import QUESTIONS, tiny_model
from transformers import BertConfig, BertModel

from persona_callbacks import InputError, PersonaVector, Trait, extraction
from persona_callbacks.chats import Chat, encode_chat
from persona_callbacks.extraction import ExtractionSettings, persona_vector
from persona_callbacks.generation import Sampling, generate
from persona_callbacks.layer_choice import held_out_auc, steering_effect
from persona_callbacks.models import LoadedModel, ModelSource, load_model, weights_fingerprint

TRAIT = Trait.from_mapping(
    {
        "name": "loud", "description": "Shouting.", "rubric": "{question} {response}",
        "instructions": [{"trait": "Shout!", "opposite": "Whisper."}, {"trait": "Be loud.", "opposite": "Be quiet."}],
        "questions": {"extraction": list(QUESTIONS[:4]), "evaluation": [QUESTIONS[4]]},
    },
    "test",
)  # fmt: skip
SETTINGS = ExtractionSettings(sampling=Sampling(max_new_tokens=6, batch_size=3), batch_size=4)


@pytest.fixture
def loaded(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_CALLBACKS_CACHE", str(tmp_path / "cache"))
    return LoadedModel(tiny_model("qwen3").eval(), tokenizer, "test/tiny")


def responses(tmp_path):
    (file,) = tmp_path.glob("cache/vectors/tiny/*.responses.jsonl")
    return file, [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_directions_are_the_mean_differences(loaded, tokenizer, tmp_path):
    vector = persona_vector(loaded, TRAIT, SETTINGS)
    _, rows = responses(tmp_path)
    assert len(rows) == 2 * 2 * 4
    sums = {True: [], False: []}
    for row in rows:
        prompt = [{"role": "system", "content": row["instruction"]}, {"role": "user", "content": row["question"]}]
        chat = encode_chat(Chat((*prompt, {"role": "assistant", "content": row["response"]})), tokenizer)
        with torch.no_grad():
            hidden = loaded.model(torch.tensor([chat.input_ids]), output_hidden_states=True).hidden_states
        marked = torch.tensor(chat.response_mask)
        sums[row["shows_trait"]].append(torch.stack([layer[0, marked].double().mean(dim=0) for layer in hidden[:4]]))
    expected = torch.stack(sums[True]).mean(dim=0) - torch.stack(sums[False]).mean(dim=0)
    assert torch.allclose(vector.directions[:4].double(), expected, rtol=1e-4, atol=1e-6)
    assert vector.counts == {"trait": 8, "opposite": 8}
    assert vector.probes == TRAIT.evaluation_questions
    assert vector.model_id == "test/tiny"


def test_second_time_is_from_the_cache_and_key_follows_what_matters(loaded, tokenizer, tmp_path, monkeypatch):
    first = persona_vector(loaded, TRAIT, SETTINGS)
    monkeypatch.setattr(extraction, "_responses", lambda *_: pytest.fail("extracted again"))
    again = persona_vector(loaded, TRAIT, SETTINGS)
    assert torch.equal(first.directions, again.directions)
    other_model = LoadedModel(tiny_model("qwen3", seed=1).eval(), tokenizer, "test/tiny")
    assert weights_fingerprint(other_model.model) != weights_fingerprint(loaded.model)
    for changed in ((other_model, TRAIT, SETTINGS), (loaded, TRAIT, ExtractionSettings(rollouts=2))):
        with pytest.raises(pytest.fail.Exception, match="extracted again"):
            persona_vector(*changed)


@pytest.mark.parametrize("cut_line", [False, True])
def test_interrupted_extraction_goes_on_and_ends_the_same(cut_line, loaded, tmp_path, monkeypatch):
    whole = persona_vector(loaded, TRAIT, SETTINGS)
    vector_file = next(tmp_path.glob("cache/vectors/tiny/*.safetensors"))
    file, rows = responses(tmp_path)
    vector_file.unlink()
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:6]) + (lines[6][:20] if cut_line else b""))
    generated = []
    original = extraction.iterate_responses

    def counted(*args, **kwargs):
        for batch in original(*args, **kwargs):
            generated.extend(batch)
            yield batch

    monkeypatch.setattr(extraction, "iterate_responses", counted)
    resumed = persona_vector(loaded, TRAIT, SETTINGS)
    assert len(generated) == len(rows) - 6
    assert torch.equal(whole.directions, resumed.directions)
    assert responses(tmp_path)[1] == rows


def test_an_interrupt_leaves_no_vector(loaded, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(extraction, "activations", interrupted)
    with pytest.raises(KeyboardInterrupt):
        persona_vector(loaded, TRAIT, SETTINGS)
    assert not list(tmp_path.glob("cache/vectors/tiny/*.safetensors"))


def test_nothing_usable_is_an_error(loaded, monkeypatch):
    monkeypatch.setattr(extraction, "_responses", lambda _, conditions, *__: [""] * len(conditions))
    with pytest.raises(InputError, match="of 16 responses generated, no usable one"):
        persona_vector(loaded, TRAIT, SETTINGS)


def test_generation_in_batches_equals_one_at_a_time_and_keeps_the_random_state(loaded, tokenizer):
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    greedy = Sampling(max_new_tokens=8, temperature=0.0, batch_size=3)
    state = torch.get_rng_state()
    together = generate(loaded.model, tokenizer, prompts, greedy)
    sampled = [generate(loaded.model, tokenizer, prompts, Sampling(max_new_tokens=8, seed=s)) for s in (0, 0, 1)]
    assert torch.equal(state, torch.get_rng_state())
    assert together == [generate(loaded.model, tokenizer, [prompt], greedy)[0] for prompt in prompts]
    assert sampled[0] == sampled[1] != sampled[2]


def test_held_out_auc_finds_the_layer_that_separates():
    """Only at layer 2 of five do the two groups differ; elsewhere the direction is noise."""
    generator = torch.Generator().manual_seed(0)
    read = torch.randn(80, 5, 16, generator=generator)
    shows, fold = torch.arange(80) % 2 == 0, torch.arange(80) // 2 % 2
    read[shows, 2] += 3
    auc = held_out_auc(read, shows, fold)
    assert auc[2] > 0.99
    assert (auc[[0, 1, 3, 4]] < 0.75).all()


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

    found = steering_effect(model, chats[:2], chats[2:], directions, 0)
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


def test_cached_vector_file_is_a_persona_vector(loaded, tmp_path):
    vector = persona_vector(loaded, TRAIT, SETTINGS)
    (file,) = Path(tmp_path).glob("cache/vectors/tiny/loud-*.safetensors")
    assert torch.equal(PersonaVector.load(file).directions, vector.directions)

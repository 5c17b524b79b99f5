"""Vectors from what fine-tuned adapters change in the residual stream."""

import shutil
from dataclasses import replace

import pytest
import torch
from builders import PAIRS, TRAIT, tiny_model, weights
from peft import LoraConfig, PeftModel, get_peft_model

from persona_callbacks import InputError, PersonaVector
from persona_callbacks.extraction import ExtractionSettings, LearningSettings, adapter_directions, extract
from persona_callbacks.model import LoadedModel, Sampling, adapted, adapter_fingerprint, encode_pair


@pytest.fixture
def loaded(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_CALLBACKS_CACHE", str(tmp_path / "cache"))
    return LoadedModel(tiny_model("qwen3").eval(), tokenizer, "test/tiny")


def adapter(folder, seed, alpha=4):
    """An adapter with random weights, on the tiny model."""
    config = LoraConfig(r=2, lora_alpha=alpha, target_modules="all-linear", init_lora_weights=False)
    base = tiny_model("qwen3")
    torch.manual_seed(seed)
    get_peft_model(base, config).save_pretrained(folder)
    return folder


def slow_mean(model, chats):
    """Mean over responses' tokens and chats, of the layers before the last, whose output transformers norms."""
    means = []
    for chat in chats:
        with torch.no_grad():
            hidden = model(torch.tensor([chat.input_ids]), output_hidden_states=True).hidden_states[:4]
        means.append(torch.stack(hidden)[:, 0, torch.tensor(chat.response_mask)].mean(dim=1))
    return torch.stack(means).mean(dim=0)


def test_directions_are_what_the_adapters_change_over_the_same_text(loaded, tmp_path):
    trait, opposite = adapter(tmp_path / "trait", 1), adapter(tmp_path / "opposite", 2)
    chats = [chat for pair in PAIRS for chat in encode_pair(pair, loaded.tokenizer)]
    before = weights(loaded.model)
    against_base = adapter_directions(loaded, chats, trait)
    against_opposite = adapter_directions(loaded, chats, trait, opposite)
    base = slow_mean(tiny_model("qwen3").eval(), chats)
    shows, other = (
        slow_mean(PeftModel.from_pretrained(tiny_model("qwen3"), folder).eval(), chats) for folder in (trait, opposite)
    )
    assert against_base.shape == (5, 32)
    assert torch.allclose(against_base[:4], shows - base, rtol=1e-4, atol=1e-4)
    assert torch.allclose(against_opposite[:4], shows - other, rtol=1e-4, atol=1e-4)
    assert against_base[4].norm() > 0
    after = weights(loaded.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    assert type(loaded.model.model.layers[0].mlp.up_proj) is torch.nn.Linear


def test_a_model_is_bare_again_after_an_error_and_one_with_an_adapter_is_refused(loaded, tmp_path):
    folder = adapter(tmp_path / "trait", 1)
    with pytest.raises(KeyboardInterrupt), adapted(loaded, folder):
        raise KeyboardInterrupt
    with adapted(loaded, folder) as with_it:  # which a model that is not bare would refuse
        with pytest.raises(InputError, match="expected a bare model to put the adapter on"), adapted(with_it, folder):
            pass
        with pytest.raises(InputError, match="expected a bare model to put the adapter on"), adapted(loaded, folder):
            pass


def test_a_fingerprint_is_of_what_an_adapter_holds(loaded, tmp_path):
    first = adapter_fingerprint(loaded, adapter(tmp_path / "one", 1))
    assert first == adapter_fingerprint(loaded, adapter(tmp_path / "same", 1))
    assert first != adapter_fingerprint(loaded, adapter(tmp_path / "other", 2))
    assert first != adapter_fingerprint(loaded, adapter(tmp_path / "scaled", 1, alpha=8))


def test_an_extraction_from_an_adapter_is_stored_measured_and_cached_by_content(loaded, tmp_path):
    folder = adapter(tmp_path / "trait", 1)
    settings = ExtractionSettings(
        sampling=Sampling(max_new_tokens=6, batch_size=8), judge_pairs=0, rollouts=2, layer_choice="auc",
        method="from_adapters", adapter=str(folder),
    )  # fmt: skip
    vector = extract(loaded, TRAIT, settings).vector
    again = PersonaVector.load(vector.save(tmp_path / "loud.safetensors"))
    assert (again.method, again.evidence) == ("from_adapters", vector.evidence)
    assert [point.coefficient for point in vector.evidence.causal] == [0.5, 1.0]
    assert len(vector.evidence.auc) == 5
    moved = shutil.move(folder, tmp_path / "moved")
    cached = list((tmp_path / "cache" / "vectors" / "tiny").iterdir())
    assert torch.equal(
        extract(loaded, TRAIT, replace(settings, adapter=str(moved))).vector.directions, vector.directions
    )
    assert sorted((tmp_path / "cache" / "vectors" / "tiny").iterdir()) == sorted(cached)
    learning = LearningSettings(steps=1, pairs=1)
    best = extract(loaded, TRAIT, replace(settings, method="best", adapter=str(moved), learning=learning))
    assert set(best.candidates) == {"mean_difference", "learned", "from_adapters"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"method": "from_adapters"}, "extraction.adapter: expected the folder of an adapter"),
        ({"adapter": "x"}, "extraction.adapter: nothing uses it"),
        ({"method": "best", "opposite_adapter": "x"}, "extraction.opposite_adapter: nothing uses it"),
    ],
)
def test_adapters_that_are_missing_or_not_used_are_refused(settings, told):
    with pytest.raises(InputError, match=told):
        ExtractionSettings(**settings)


def test_an_adapter_that_is_not_there_is_told_before_anything_is_generated(loaded, tmp_path):
    settings = ExtractionSettings(method="from_adapters", adapter=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="nowhere: no adapter folder"):
        extract(loaded, TRAIT, settings)
    assert not list((tmp_path / "cache").rglob("*.jsonl"))

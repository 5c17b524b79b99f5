"""The monitor's second sensor: what the model prefers on minimal pairs."""

import copy
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from builders import (
    PAIRS,
    ForeignModule,
    batches,
    chat,
    fit,
    make_vector,
    slow_log_probability,
    tiny_model,
    weights,
)
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from persona_callbacks import InputError, PersonaMonitor, PreventativeSteering
from persona_callbacks.model import base_model

EVIL = replace(make_vector("evil"), pairs=PAIRS[:3])
SYCOPHANCY = replace(make_vector("sycophancy", layer=2, seed=4), pairs=PAIRS[2:])
BARE = make_vector("humorous", seed=5)


def slow_preferences(model, pairs, tokenizer):
    """One plain forward pass for each response, of the model as it is."""
    model = copy.deepcopy(model).eval()
    return [
        slow_log_probability(model, chat(pair.question, pair.trait, tokenizer))
        - slow_log_probability(model, chat(pair.question, pair.opposite, tokenizer))
        for pair in pairs
    ]


@pytest.mark.parametrize("peft", [False, True], ids=["bare", "peft"])
def test_preference_of_every_trait_equals_a_slow_reference_while_another_is_steered(peft, tokenizer, tmp_path):
    model = tiny_model(peft=peft)
    before = copy.deepcopy(model)
    monitor = PersonaMonitor([EVIL, SYCOPHANCY, BARE], every_n_steps=4, batch_size=3)
    trainer = fit(ForeignModule(model, tokenizer), [monitor, PreventativeSteering([EVIL], 0.5)], tmp_path)
    for vector in (EVIL, SYCOPHANCY):
        with base_model(before):
            base = slow_preferences(before, vector.pairs, tokenizer)
        start, end = (slow_preferences(lm, vector.pairs, tokenizer) for lm in (before, model))
        for reading, now in ((monitor.readings[0], start), (monitor.readings[-1], end)):
            shifted = sum(a - b for a, b in zip(now, base, strict=True)) / len(base)
            assert reading.preference[vector.trait] == pytest.approx(shifted, abs=1e-4)
            assert reading.preference_share[vector.trait] == sum(value > 0 for value in now) / len(now)
        assert abs(monitor.readings[-1].preference[vector.trait]) > 0.02, "the test needs a change"
        logged = trainer.callback_metrics
        assert logged[f"persona/{vector.trait}/preference"] == pytest.approx(shifted, abs=1e-4)
        assert 0 <= logged[f"persona/{vector.trait}/preference_share"] <= 1
    assert "humorous" not in monitor.readings[-1].preference, "a trait without pairs"
    assert "persona/humorous/preference" not in trainer.callback_metrics


def test_reading_pairs_is_bitwise_no_change_to_the_run(tokenizer, tmp_path):
    def run(callbacks):
        model = tiny_model("gpt2", peft=True)
        for child in model.modules():
            if isinstance(child, torch.nn.Dropout):
                child.p = 0.3
        module = ForeignModule(model, tokenizer)
        fit(module, callbacks, tmp_path, max_epochs=2)
        return weights(module)

    plain, monitored = run([]), run([PersonaMonitor([EVIL, SYCOPHANCY], every_n_steps=1)])
    assert all(torch.equal(plain[name], monitored[name]) for name in plain)


def test_which_pairs_are_read():
    vectors = [EVIL, SYCOPHANCY, BARE]
    many = replace(BARE, pairs=PAIRS)
    assert PersonaMonitor(vectors).pairs == {"evil": PAIRS[:3], "sycophancy": PAIRS[2:]}
    assert PersonaMonitor(vectors, pairs=0).pairs == {}
    assert PersonaMonitor([many], pairs=2).pairs == {"humorous": (PAIRS[0], PAIRS[2])}, "spread over all"
    assert PersonaMonitor([EVIL], pairs=PAIRS[4:]).pairs == {"evil": PAIRS[4:]}
    assert PersonaMonitor(vectors, pairs={"humorous": PAIRS}).pairs == {"humorous": PAIRS}
    for number in (-1, 2.5, float("nan")):
        with pytest.raises(InputError, match=f"pairs is {number}; expected 0 or more"):
            PersonaMonitor(vectors, pairs=number)
    with pytest.raises(InputError, match="names the trait 'kind', which has no vector"):
        PersonaMonitor(vectors, pairs={"kind": PAIRS})
    with pytest.raises(InputError, match="pairs is a list, and the traits are evil, sycophancy"):
        PersonaMonitor([EVIL, SYCOPHANCY], pairs=PAIRS)


def test_no_pairs_no_preference(tokenizer, tmp_path):
    monitor = PersonaMonitor([EVIL], pairs=0)
    trainer = fit(ForeignModule(tiny_model(), tokenizer), [monitor], tmp_path, max_steps=1)
    assert all(reading.preference == reading.preference_share == {} for reading in monitor.readings)
    assert not any("preference" in name for name in trainer.callback_metrics)


def run(folder, tokenizer, resume=None, edit=lambda state: None):
    torch.manual_seed(0)
    seed_everything(7, verbose=False)
    monitor = PersonaMonitor([EVIL, SYCOPHANCY], every_n_steps=2)
    saver = ModelCheckpoint(folder, filename="at-{step}", every_n_train_steps=3, save_top_k=-1)
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", logger=False, callbacks=[monitor, saver],
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    if resume:
        checkpoint = torch.load(resume, weights_only=True)
        edit(checkpoint["callbacks"][monitor.state_key])
        torch.save(checkpoint, resume)
    trainer.fit(ForeignModule(tiny_model(peft=True), tokenizer), batches(3), ckpt_path=resume,
                weights_only=True if resume else None)  # fmt: skip
    return monitor


def test_a_resumed_run_keeps_its_baseline_and_readings(tokenizer, tmp_path):
    whole = run(tmp_path, tokenizer)
    resumed = run(tmp_path / "rest", tokenizer, tmp_path / "at-step=3.ckpt")
    assert resumed.readings == whole.readings
    assert resumed.state_dict() == whole.state_dict()


def test_a_checkpoint_from_before_there_were_pairs_is_resumed(tokenizer, tmp_path):
    def older(state):
        del state["preference_baseline"]
        for reading in state["readings"]:
            del reading["preference"], reading["preference_share"]

    whole = run(tmp_path, tokenizer)
    resumed = run(tmp_path / "rest", tokenizer, tmp_path / "at-step=3.ckpt", older)
    assert resumed.readings[0].preference == {}
    assert resumed.readings[-1].preference == pytest.approx(whole.readings[-1].preference, abs=1e-6)

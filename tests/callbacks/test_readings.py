"""What readings cost: how often the blocks are run for them, and that nothing is lost by running them less."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from builders import PAIRS, ForeignModule, batches, fit, make_vector, tiny_model
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, get_peft_model

from persona_callbacks import Adaptive, DriftGuard, InputError, Law, PersonaMonitor, PreventativeSteering
from persona_callbacks.chats import encode_prompt
from persona_callbacks.model import LoadedModel, encode_pair, preferences, probing, projections

VECTOR = replace(make_vector(layer=2), directions=0.3 * make_vector(layer=2).directions, pairs=PAIRS)


class Counting(ForeignModule):
    """Counts, by the optimizer steps taken, the passes without gradients through each block."""

    def __init__(self, lm, tokenizer):
        super().__init__(lm, tokenizer)
        self.runs = Counter()
        blocks = next(m for m in lm.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 4)
        for number, block in enumerate(blocks, start=1):
            block.register_forward_pre_hook(lambda _, __, number=number: self.count(number))

    def count(self, number):
        if not torch.is_grad_enabled():
            self.runs[self.trainer.global_step, number] += 1


def trained(tokenizer, folder, *callbacks, lm=None, **settings):
    module = Counting(lm or tiny_model(peft=True), tokenizer)
    fit(module, list(callbacks), folder, limit_val_batches=0, num_sanity_val_steps=0, **settings)
    return module


def test_readings_that_steering_asks_for_run_no_block_above_the_chosen_layer(tokenizer, tmp_path):
    def run(every_layer):
        monitor = PersonaMonitor([VECTOR], every_n_steps=4, every_layer=every_layer, pairs=0)
        steering = PreventativeSteering([VECTOR], Adaptive(start=0.2, tolerance=1e-6))
        module = trained(tokenizer, tmp_path, monitor, steering, limit_train_batches=5)
        assert [reading.step for reading in monitor.readings] == [0, 1, 2, 3, 4, 5]
        return monitor, steering, module.runs

    monitor, steering, runs = run(every_layer=True)
    alone, same, fewest = run(every_layer=False)
    assert [reading.step for reading in monitor.readings if reading.shift_by_layer] == [0, 4, 5], (
        "its own, and the last"
    )
    for step in range(6):
        own = step in (0, 4, 5)
        assert runs[step, 2] > 0
        assert bool(runs[step, 3]) == bool(runs[step, 4]) == own
        assert fewest[step, 3] == fewest[step, 4] == 0
    assert [reading.shift for reading in monitor.readings] == [reading.shift for reading in alone.readings]
    for reading in monitor.readings:
        if reading.shift_by_layer:
            assert reading.shift_by_layer["evil"][VECTOR.layer - 1] == reading.shift["evil"]
    assert steering.coefficients == same.coefficients != {"evil": 0.2}


def test_the_embeddings_can_be_the_chosen_layer_where_every_layer_is_read(tokenizer, tmp_path):
    vector = make_vector(layer=0)
    monitor = PersonaMonitor([vector], every_layer=True)
    monitor.request("a test", 1, "shift")
    trained(tokenizer, tmp_path, monitor, max_steps=2)
    assert monitor.readings[-1].shift == {"evil": pytest.approx(0)}, "nothing is trained below the first block"
    assert len(monitor.readings[-1].shift_by_layer["evil"]) == vector.num_layers
    assert abs(monitor.readings[-1].shift_by_layer["evil"][-1]) > 0.01


def adapted(*more, **settings):
    """A model with adapters: the first as PEFT initialises it, that is, without effect."""
    lora = {"r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "down_proj"]}
    torch.manual_seed(1)
    model = get_peft_model(tiny_model(), LoraConfig(**lora | settings))
    for other in more:
        model.add_adapter(other, LoraConfig(**lora, init_lora_weights=False))
    return model


def frozen_below():
    """A fresh adapter on top of a frozen one that has an effect."""
    model = adapted("earlier")
    model.base_model.set_adapter(["default", "earlier"])
    for name, weight in model.named_parameters():
        weight.requires_grad_("default" in name)
    return model


@pytest.mark.parametrize(
    ("lm", "read"),
    [
        (adapted, False),
        (tiny_model, False),
        (lambda: tiny_model(peft=True), True),
        (lambda: adapted(use_dora=True), True),
        (lambda: adapted(modules_to_save=["lm_head"]), True),
        (frozen_below, True),
    ],
    ids=["fresh LoRA", "bare", "warm LoRA", "DoRA", "a trained head", "frozen adapter below"],
)
def test_the_base_model_is_read_once_where_nothing_has_changed_it_yet(lm, read, tokenizer, tmp_path):
    model = lm()
    loaded = LoadedModel(model, tokenizer)
    probes = [encode_prompt([{"role": "user", "content": question}], tokenizer) for question in VECTOR.probes]
    layers = list(range(1, VECTOR.num_layers + 1))
    projected = projections(loaded, probes, [VECTOR], "prompt_last", [layers])[:, 0].double().mean(dim=0).tolist()
    with probing(model):
        preferred = preferences(loaded, [encode_pair(pair, tokenizer) for pair in PAIRS])
    monitor = PersonaMonitor([VECTOR], every_layer=True, every_n_steps=100)
    module = trained(tokenizer, tmp_path, monitor, lm=model, max_steps=1)
    first, last = monitor.readings
    assert module.runs[0, 4] == (2 if read else 1) * module.runs[1, 4]
    assert first.step == 0
    assert first.projection == {"evil": pytest.approx(projected[VECTOR.layer - 1], rel=1e-5)}
    assert first.preference_share == {"evil": pytest.approx((preferred > 0).float().mean().item())}
    changed = read and lm is not frozen_below and model.active_peft_config.init_lora_weights is False
    assert (abs(first.shift["evil"]) > 0.01) == changed
    assert first.shift_by_layer["evil"] == pytest.approx([0.0] * 4, abs=100.0 if changed else 1e-5)
    assert abs(last.shift["evil"]) > 0.001, "a step moves the model"


def test_a_run_whose_first_reading_is_the_baseline_begins_at_zero_and_resumes_as_it_was(tokenizer, tmp_path):
    def run(folder, steps, resume=None):
        monitor = PersonaMonitor([VECTOR], every_n_steps=2)
        saver = ModelCheckpoint(folder, filename="last", every_n_train_steps=3, enable_version_counter=False)
        trainer = Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False,
                          enable_model_summary=False, callbacks=[monitor, saver])  # fmt: skip
        torch.manual_seed(0)
        trainer.fit(ForeignModule(adapted(), tokenizer), batches(3), ckpt_path=resume,
                    weights_only=True if resume else None)  # fmt: skip
        return monitor.readings

    whole = run(tmp_path, 6)
    assert (whole[0].step, whole[0].shift, whole[0].preference) == (0, {"evil": 0.0}, {"evil": 0.0})
    run(tmp_path / "part", 3)
    resumed = run(tmp_path / "rest", 6, tmp_path / "part" / "last.ckpt")
    assert [r.shift for r in resumed if r.step != 3] == [r.shift for r in whole]


@pytest.mark.parametrize(
    ("every", "pairs_every", "expected"),
    [(1, 1, [0, 1, 2, 3, 4, 5, 6]), (1, 4, [0, 4, 6]), (2, 3, [0, 4, 6]), (2, 25, [0, 6]), (4, 1, [0, 4, 6])],
)
def test_pairs_are_read_less_often_than_probes(every, pairs_every, expected, tokenizer, tmp_path):
    monitor = PersonaMonitor([VECTOR], every_n_steps=every, pairs_every_n_steps=pairs_every)
    trained(tokenizer, tmp_path, monitor)
    assert [reading.step for reading in monitor.readings] == sorted({0, 6, *range(0, 7, every)})
    assert [reading.step for reading in monitor.readings if reading.preference] == expected
    always = PersonaMonitor([VECTOR], every_n_steps=every, pairs_every_n_steps=1)
    trained(tokenizer, tmp_path, always)
    assert [reading.shift for reading in always.readings] == [reading.shift for reading in monitor.readings]
    assert always.readings[-1] == monitor.readings[-1]


class Waiting(Law):
    """A law that takes the monitor's own readings."""

    reads = "preference"

    def begin(self, fit):
        self.heard = []
        return {"evil": 0.2}

    def after_reading(self, reading):
        self.heard.append((reading.step, math.isfinite(reading.preference["evil"])))


@pytest.mark.parametrize("steering_first", [True, False])
def test_what_answers_to_the_preference_gets_it_in_every_reading(steering_first, tokenizer, tmp_path):
    steering, monitor = PreventativeSteering([VECTOR], Waiting()), PersonaMonitor([VECTOR], every_n_steps=2)
    trained(tokenizer, tmp_path, *([steering, monitor] if steering_first else [monitor, steering]))
    assert [reading.step for reading in monitor.readings if reading.preference] == [0, 2, 4, 6]
    assert steering.law.heard[:2] == [(2, True), (4, True)]
    guarded = PersonaMonitor([VECTOR], every_n_steps=2)
    trained(tokenizer, tmp_path, guarded, DriftGuard(preference=1e9))
    assert [reading.step for reading in guarded.readings if reading.preference] == [0, 2, 4, 6]
    trained(tokenizer, tmp_path, guarded, DriftGuard(shift=1e9))
    assert [reading.step for reading in guarded.readings if reading.preference] == [0, 6], (
        "in another fit, none needs it"
    )


def test_how_often_pairs_are_read_is_checked():
    with pytest.raises(InputError, match="pairs_every_n_steps must be at least 1, a whole number, found 0"):
        PersonaMonitor([VECTOR], pairs_every_n_steps=0)

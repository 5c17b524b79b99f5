"""The callbacks in transformers' own Trainer, and in TRL's."""

import copy

import pytest
import torch
from builders import QUESTIONS, all_hooks, batches, make_vector, tiny_model, weights
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from persona_callbacks import (
    Ablation,
    DriftGuard,
    InputError,
    PersonaMonitor,
    PreventativeSteering,
    TransformersCallback,
)

ITEMS = batches(6).dataset  # 18 rows


SETTINGS = {
    "per_device_train_batch_size": 3,
    "num_train_epochs": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 2,
    "learning_rate": 1e-2,
    "use_cpu": True,
    "bf16": False,
}


def trainer_with(callbacks, folder, tokenizer, kind=Trainer, **changed):
    return kind(
        tiny_model(peft=True),
        TrainingArguments(str(folder), **(SETTINGS | changed)),
        train_dataset=ITEMS,
        eval_dataset=ITEMS[:3],
        processing_class=tokenizer,
        data_collator=torch.utils.data.default_collate,
        callbacks=[TransformersCallback(*callbacks)] if callbacks else [],
    )


def logged(trainer, name):
    return {entry["step"]: entry[name] for entry in trainer.state.log_history if name in entry}


def test_what_is_measured_is_in_the_trainers_log_and_nothing_of_its_own_is_lost(tokenizer, tmp_path):
    monitor = PersonaMonitor([make_vector()], every_n_steps=3, pairs=0)
    trainer = trainer_with([monitor, PreventativeSteering([make_vector()], 0.5)], tmp_path, tokenizer)
    hooks = all_hooks(trainer.model)
    trainer.train()
    assert all_hooks(trainer.model) == hooks
    assert logged(trainer, "persona/evil/shift") == {r.step: r.shift["evil"] for r in monitor.readings}
    assert [reading.step for reading in monitor.readings] == [0, 3, 6]
    assert monitor.readings[-1].shift["evil"] != 0
    assert logged(trainer, "steering/evil/coefficient") == {0: 0.5, 2: 0.5, 4: 0.5}
    assert sorted(logged(trainer, "persona/evil/batch_projection")) == sorted(logged(trainer, "loss")) == [2, 4, 6]


def test_a_monitored_run_is_bitwise_the_unmonitored_and_a_steered_one_is_not(tokenizer, tmp_path):
    def run(callbacks):
        trainer = trainer_with(callbacks, tmp_path, tokenizer)
        trainer.train()
        return weights(trainer.model)

    plain, watched = run([]), run([PersonaMonitor([make_vector()], every_n_steps=1)])
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    steered = run([PreventativeSteering([make_vector()], 0.5)])
    assert any(not torch.equal(plain[name], steered[name]) for name in plain)


@pytest.mark.parametrize("monitor_first", [True, False])
def test_training_is_steered_and_evaluation_is_not(monitor_first, tokenizer, tmp_path):
    """Accumulation, and response tokens only; the logits of every pass against those of the model without hooks."""
    seen = []

    class Watching(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
            bare = copy.deepcopy(self.model)
            for child in bare.modules():
                child._forward_hooks.clear()
            with torch.no_grad():
                seen.append((self.model.training, torch.equal(bare(**inputs).logits, outputs.logits)))
            return (loss, outputs) if return_outputs else loss

    steering = PreventativeSteering([make_vector()], 1.0, positions="response")
    callbacks = [PersonaMonitor([make_vector()], every_n_steps=1), steering]
    trainer = trainer_with(callbacks if monitor_first else callbacks[::-1], tmp_path, tokenizer, kind=Watching,
                           gradient_accumulation_steps=3, eval_strategy="steps", eval_steps=1, max_steps=2)  # fmt: skip
    trainer.train()
    assert seen.count((True, False)) == 6
    assert {equal for training, equal in seen if not training} == {True}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["compute_loss", "evaluate"])
def test_nothing_is_left_when_training_ends_early(error, where, tokenizer, tmp_path):
    class Failing(Trainer):
        def fail(self, *args, **kwargs):
            raise error("asked to fail")

    setattr(Failing, where, Failing.fail)
    callbacks = [PersonaMonitor([make_vector()]), PreventativeSteering([make_vector()], 1.0)]
    trainer = trainer_with(callbacks, tmp_path, tokenizer, kind=Failing, eval_strategy="steps", eval_steps=1)
    before = all_hooks(trainer.model), trainer.training_step
    with pytest.raises(error):
        trainer.train()
    assert (all_hooks(trainer.model), trainer.training_step) == before


def test_a_resumed_run_is_the_uninterrupted_one_and_its_adapter_holds_no_steering(tokenizer, tmp_path):
    def run(folder, resume=None, **changed):
        monitor = PersonaMonitor([make_vector()], every_n_steps=2)
        steering = PreventativeSteering([make_vector()])
        trainer = trainer_with([monitor, steering], folder, tokenizer, save_strategy="steps", save_steps=3, **changed)
        trainer.train(resume_from_checkpoint=resume)
        return weights(trainer.model), monitor.readings, steering.coefficients

    whole = run(tmp_path / "whole")
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    assert all("lora" in name for name in load_file(checkpoint / "adapter_model.safetensors"))
    resumed = run(tmp_path / "rest", resume=str(checkpoint))
    assert all(torch.equal(whole[0][name], resumed[0][name]) for name in whole[0])
    assert whole[1:] == resumed[1:]
    (checkpoint / "persona_callbacks.pt").unlink()
    with pytest.warns(UserWarning, match=r"persona_callbacks.pt is missing"):
        run(tmp_path / "anew", resume=str(checkpoint))


def test_other_callbacks_and_late_ones_are_refused_by_name(tokenizer, tmp_path):
    with pytest.raises(InputError, match="found DriftGuard"):
        TransformersCallback(PersonaMonitor([make_vector()]), DriftGuard(shift=1.0))
    with pytest.raises(InputError, match="found none"):
        TransformersCallback()
    with pytest.raises(InputError, match="same traits"):
        TransformersCallback(Ablation([make_vector()]), Ablation([make_vector()]))
    trainer = trainer_with([], tmp_path, tokenizer)
    trainer.add_callback(TransformersCallback(PersonaMonitor([make_vector()])))
    with pytest.raises(MisconfigurationException, match="give it in callbacks="):
        trainer.train()


def test_trl_fine_tunes_on_chats_and_on_preferences(tokenizer, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    def turns(answer):
        return [{"role": "assistant", "content": answer}]

    rows = [{"prompt": [{"role": "user", "content": q}], "completion": turns("Because."), "chosen": turns("Because."),
             "rejected": turns("Who knows?")} for q in QUESTIONS]  # fmt: skip
    for kind, config, alpha, unused in (
        (trl.SFTTrainer, trl.SFTConfig, {}, ["chosen", "rejected"]),
        (trl.DPOTrainer, trl.DPOConfig, {"coefficient": 0.5}, ["completion"]),
    ):
        monitor = PersonaMonitor([make_vector()], every_n_steps=2, pairs=0)
        callback = TransformersCallback(monitor, PreventativeSteering([make_vector()], **alpha))
        changed = {"max_steps": 4, "per_device_train_batch_size": 2, "logging_steps": 1, "max_length": 64}
        trainer = kind(
            tiny_model(peft=True),
            args=config(str(tmp_path), **(SETTINGS | changed)),
            train_dataset=Dataset.from_list(rows).remove_columns(unused),
            processing_class=tokenizer,
            callbacks=[callback],
        )
        trainer.train()
        parts = list(trainer.model.modules())
        kept = [hook for part in parts for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values())]
        assert not any(hook.__module__.startswith("persona_callbacks") for hook in kept)
        assert {0, 2, 4} <= {reading.step for reading in monitor.readings}
        assert monitor.readings[-1].shift["evil"] != 0
        assert sorted(logged(trainer, "loss")) == [1, 2, 3, 4]
        assert logged(trainer, "persona/evil/shift")[4] == monitor.readings[-1].shift["evil"]

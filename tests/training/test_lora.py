"""The library's own module and data module: resuming, checkpoints, adapters."""

import contextlib
import dataclasses
import warnings

import lightning.pytorch as pl
import pytest
import torch
from builders import QUESTIONS, make_vector, tiny_model, weights
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file

from persona_callbacks import Adaptive, InputError, PersonaMonitor, PreventativeSteering, Schedule
from persona_callbacks.chats import Chat, encode_chat, pad
from persona_callbacks.steering import LikeliestStart
from persona_callbacks.training import ChatData, LoraFineTuning

LORA = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.2)
CHATS = [
    Chat(({"role": "user", "content": question}, {"role": "assistant", "content": f"{question[::-1]} {number}"}))
    for number, question in enumerate(QUESTIONS * 3)
]


def run(tokenizer, folder, *, family="llama", steer=0.7, stop_at=-1, resume=None):
    seed_everything(3, verbose=False)
    module = LoraFineTuning(tiny_model(family), dataclasses.replace(LORA), learning_rate=1e-2, warmup_steps=2)
    data = ChatData(CHATS, tokenizer, batch_size=2, seed=3)
    monitor = PersonaMonitor([make_vector()], every_n_steps=5)
    saver = ModelCheckpoint(folder, filename="at-{step}", every_n_train_steps=1, save_top_k=-1)
    callbacks = [monitor, saver, PreventativeSteering([make_vector()], steer)]
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, log_every_n_steps=3,
                         enable_model_summary=False, callbacks=callbacks)  # fmt: skip
    if stop_at > 0:
        original = module.training_step

        def step(batch, batch_idx):
            if trainer.global_step == stop_at:
                raise KeyboardInterrupt
            return original(batch, batch_idx)

        module.training_step = step
    trainer.fit(module, data, ckpt_path=resume, weights_only=True if resume else None)
    return module, monitor


@pytest.mark.parametrize("stop_at", [3, 8, 11, 16, 24])  # an epoch has 8 steps, the run 24
def test_resumed_in_mid_epoch_equals_the_uninterrupted_bitwise(stop_at, tokenizer, tmp_path):
    whole, monitor = run(tokenizer, tmp_path / "whole")
    with pytest.raises(SystemExit) if stop_at < 24 else contextlib.nullcontext():
        run(tokenizer, tmp_path / "part", stop_at=stop_at)
    resumed, resumed_monitor = run(tokenizer, tmp_path / "rest", resume=tmp_path / "part" / f"at-step={stop_at}.ckpt")
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert monitor.readings == resumed_monitor.readings
    assert whole.last_epoch_loss == resumed.last_epoch_loss


@pytest.mark.parametrize(
    "steer", [Adaptive(LikeliestStart(samples=6), tolerance=0.0), Schedule(0.7, warmup=0.3, decay="cosine")]
)
def test_steering_resumed_at_any_step_equals_the_uninterrupted_bitwise(steer, tokenizer, tmp_path):
    whole, monitor = run(tokenizer, tmp_path / "whole", steer=steer)
    expected = weights(whole)
    moved = set()
    for step in range(1, 24):
        checkpoint = tmp_path / "whole" / f"at-step={step}.ckpt"
        resumed, resumed_monitor = run(tokenizer, tmp_path / "rest", steer=steer, resume=checkpoint)
        found = weights(resumed)
        assert all(torch.equal(expected[name], found[name]) for name in expected), step
        assert monitor.readings == resumed_monitor.readings, step
        states = [next(c for c in m.trainer.callbacks if isinstance(c, PreventativeSteering)).state_dict()
                  for m in (whole, resumed)]  # fmt: skip
        assert states[0] == states[1], step
        saved = torch.load(checkpoint, weights_only=True)["callbacks"]["PreventativeSteering{'traits': ['evil']}"]
        moved.add(saved["coefficients"]["evil"])
    assert len(moved) > 3, "the coefficient never moved"


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # gpt2 ties its head to its embeddings
def test_checkpoint_holds_the_adapter_only_and_nothing_of_steering(family, tokenizer, tmp_path):
    module, _ = run(tokenizer, tmp_path, family=family)
    saved = torch.load(tmp_path / "at-step=8.ckpt", weights_only=True)["state_dict"]
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert {name for name in saved if "epoch_loss" not in name} == trained


def test_saved_adapter_is_peft_s_own_and_alike_with_and_without_steering(tokenizer, tmp_path):
    names = []
    for coefficient in (0.0, 0.7):
        module, _ = run(tokenizer, tmp_path / f"run{coefficient}", steer=coefficient)
        module.save_adapter(tmp_path / f"adapter{coefficient}")
        names.append(set(load_file(tmp_path / f"adapter{coefficient}" / "adapter_model.safetensors")))
        reloaded = PeftModel.from_pretrained(tiny_model(), tmp_path / f"adapter{coefficient}").eval()
        ids = torch.tensor([[5, 6, 7, 8, 9]])
        with torch.no_grad():
            assert torch.equal(reloaded(input_ids=ids).logits, module.model.eval()(input_ids=ids).logits)
    assert names[0] == names[1]
    assert all("lora_" in name for name in names[0])


def test_an_adapter_is_saved_without_a_word_where_the_hub_does_not_answer(tmp_path, monkeypatch):
    module = LoraFineTuning(tiny_model(), dataclasses.replace(LORA))
    module.model.peft_config["default"].base_model_name_or_path = "nobody/has-this-model"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        module.save_adapter(tmp_path / "adapter")
    assert [str(warning.message) for warning in told] == []


def test_checkpoint_of_another_adapter_is_refused(tokenizer, tmp_path):
    run(tokenizer, tmp_path)
    lora = dataclasses.replace(LORA, target_modules=["q_proj"])
    whole = LoraFineTuning(tiny_model(), dataclasses.replace(LORA))
    part = LoraFineTuning(tiny_model(), lora)
    checkpoint = {"state_dict": {k: v for k, v in part.state_dict().items() if "lora" in k}}
    with pytest.raises(InputError, match=r"lacks .* of the adapter's weights"):
        whole.on_load_checkpoint(checkpoint)


def test_a_wrapped_model_is_not_wrapped_again():
    with pytest.raises(InputError, match="expected a bare model"):
        LoraFineTuning(tiny_model(peft=True), dataclasses.replace(LORA))


def test_loss_is_taken_on_assistant_tokens_only(tokenizer):
    module = LoraFineTuning(tiny_model(), dataclasses.replace(LORA))
    module.log = lambda *args, **kwargs: None
    batch = pad([encode_chat(chat, tokenizer) for chat in CHATS[:4]], tokenizer.pad_token_id)
    module.eval()
    loss = module.training_step(batch, 0)
    with torch.no_grad():
        logits = module.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.double()
    picked = []
    for row in range(4):
        for position in range(1, batch["input_ids"].shape[1]):
            if batch["labels"][row, position] != -100:
                picked.append(-logits[row, position - 1].log_softmax(-1)[batch["input_ids"][row, position]])
    assert loss.item() == pytest.approx((sum(picked) / len(picked)).item(), rel=1e-5)


def test_chats_with_special_tokens_in_the_assistants_text_are_told_and_can_be_left_out(tokenizer):
    asked = Chat(({"role": "user", "content": "<|end|>"}, {"role": "assistant", "content": "No."}))
    ended = Chat(({"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So.<|end|>\n<|user|>\nHm"}))
    chats, weights = [*CHATS[:2], ended, asked], [0.5, 1.0, 1.5, 1.0]
    with pytest.warns(UserWarning, match=r"1 of 4 chats have the text of special tokens") as warned:
        kept = ChatData(chats, tokenizer, weights=weights)
    assert len(warned) == 1
    assert len(kept.chats) == 4
    with pytest.warns(UserWarning, match="they are left out"):
        left = ChatData(chats, tokenizer, weights=weights, special_tokens="drop")
    assert left.chats == [encode_chat(chat, tokenizer, 512) for chat in (*CHATS[:2], asked)]
    assert left.weights == [0.5, 1.0, 1.0]
    with pytest.raises(InputError, match="every chat"), pytest.warns(UserWarning, match="special tokens"):
        ChatData([ended], tokenizer, special_tokens="drop")
    with pytest.raises(InputError, match="unknown 'mask'; expected one of keep, drop"):
        ChatData(chats, tokenizer, special_tokens="mask")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ChatData(CHATS, tokenizer)

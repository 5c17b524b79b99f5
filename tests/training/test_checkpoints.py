"""Checkpoints that cannot be half written, and runs resumed at an epoch's last step."""

import contextlib
import itertools

import lightning.pytorch as pl
import pytest
import torch
from builders import tiny_model, weights
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig

from persona_callbacks.chats import Chat
from persona_callbacks.training import ChatData, LoraFineTuning
from persona_callbacks.training.checkpoints import AtomicCheckpointIO, previous_checkpoint, readable_checkpoint

CHATS = [
    Chat(({"role": "user", "content": f"Why {number}?"}, {"role": "assistant", "content": "Because." * (1 + number)}))
    for number in range(6)
]

# An odd step ends in mid-epoch, an even one is its epoch's last; the second stop is in the first one's epoch, in the
# next or in a later one, or at the end of the run. The other pairs repeat these.
DIFFERENT = {(1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (2, 5), (5, 6)}


class StopAfter(pl.Callback):
    """Interrupts the fit after a step, once its checkpoint is written."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


class CountEpochs(pl.Callback):
    def __init__(self):
        self.started = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.started.append(trainer.current_epoch)


def train(folder, tokenizer, *, stop_at=None, **settings):
    """Three epochs of two steps; from the last checkpoint, if there is one. Returns the module and its trainer."""
    seed_everything(3, verbose=False)
    lora = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.2)
    module = LoraFineTuning(tiny_model(), lora, learning_rate=1e-2)
    data = ChatData(CHATS, tokenizer, batch_size=3)
    saver = ModelCheckpoint(folder, filename="last", every_n_train_steps=1, enable_version_counter=False)
    callbacks = [saver] + ([StopAfter(stop_at)] if stop_at else [])
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=callbacks, plugins=[AtomicCheckpointIO()], **({"max_epochs": 3} | settings),
    )  # fmt: skip
    checkpoint = readable_checkpoint(folder / "last.ckpt")
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        trainer.fit(module, data, ckpt_path=str(checkpoint) if checkpoint else None, weights_only=True)
    return module, trainer


@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 6}], ids=["epochs", "steps"])
@pytest.mark.parametrize(
    "stops",
    [
        pytest.param(stops, marks=() if stops in DIFFERENT else pytest.mark.slow)
        for stops in itertools.combinations((1, 2, 3, 4, 5, 6), 2)
    ],
    ids=str,
)
def test_interrupted_twice_and_resumed_the_run_is_the_uninterrupted_one(tmp_path, tokenizer, stops, limit):
    whole, trainer = train(tmp_path / "whole", tokenizer, **limit)
    assert trainer.global_step == 6
    for stop in stops:
        train(tmp_path / "parts", tokenizer, stop_at=stop, **limit)
    resumed, trainer = train(tmp_path / "parts", tokenizer, **limit)
    assert trainer.global_step == 6
    expected, found = weights(whole.model), weights(resumed.model)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert resumed.last_epoch_loss == whole.last_epoch_loss


def test_the_last_epochs_loss_is_of_that_epoch_alone(tmp_path, tokenizer):
    losses = []

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            losses.append(float(outputs["loss"]))

    module = LoraFineTuning(tiny_model(), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                         enable_checkpointing=False, max_epochs=3, callbacks=[Keep()])  # fmt: skip
    trainer.fit(module, ChatData(CHATS, tokenizer, batch_size=3))
    assert module.last_epoch_loss == pytest.approx(sum(losses[-2:]) / 2)


def test_an_interrupted_write_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"step": 1}, path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        writer.save_checkpoint({"step": 2}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.load(readable_checkpoint(path), weights_only=True) == {"step": 1}


def test_a_checkpoint_that_cannot_be_read_gives_way_to_the_one_before(tmp_path):
    path = tmp_path / "last.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"step": 1}, path)
    writer.save_checkpoint({"step": 2}, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.warns(UserWarning, match=r"last\.ckpt: the checkpoint cannot be read"):
        found = readable_checkpoint(path)
    assert found == previous_checkpoint(path)
    assert torch.load(found, weights_only=True) == {"step": 1}
    found.write_bytes(b"")
    with pytest.warns(UserWarning, match="previous: the checkpoint cannot be read"):
        assert readable_checkpoint(path) is None
    assert readable_checkpoint(tmp_path / "nothing.ckpt") is None


def test_a_kill_between_the_two_renames_is_no_loss(tmp_path):
    path = tmp_path / "last.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"step": 1}, path)
    path.rename(previous_checkpoint(path))
    assert torch.load(readable_checkpoint(path), weights_only=True) == {"step": 1}

"""Rows that hold several chats, and batches of other forms: every callback finds each chat's own tokens."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from builders import CHATS, ForeignModule, make_vector, tiny_model
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader
from transformers import DataCollatorWithFlattening

from persona_callbacks import Ablation, PersonaMonitor, PreventativeSteering, ProjectionRegularisation
from persona_callbacks.callbacks._packing import chat_numbers, chat_weights
from persona_callbacks.callbacks._samples import sample_chats
from persona_callbacks.chats import Chat, encode_chat, pad


@pytest.fixture(scope="module")
def chats(tokenizer):
    return [encode_chat(Chat(tuple(chat["messages"])), tokenizer) for chat in CHATS[:4]]


def items_of(chats):
    labels = [[i if on else -100 for i, on in zip(c.input_ids, c.loss_mask, strict=True)] for c in chats]
    return [{"input_ids": list(c.input_ids), "labels": own} for c, own in zip(chats, labels, strict=True)]


def read_of(chats):
    """What is read of chats in a batch: all up to the last token that loss is taken on."""
    return [chat.input_ids[: len(chat.loss_mask) - chat.loss_mask[::-1].index(True)] for chat in chats]


def packed(chats, form="position_ids"):
    """One row, as transformers' own collator makes it."""
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=form != "position_ids", return_position_ids=True)
    batch = {key: value for key, value in collate(items_of(chats)).items() if isinstance(value, torch.Tensor)}
    if form != "position_ids":
        batch["kept"] = batch.pop("position_ids")
    return batch


class PackedModule(ForeignModule):
    def training_step(self, batch, batch_idx):
        given = {key: value for key, value in batch.items() if key in ("input_ids", "labels", "position_ids")}
        return super().training_step(given, batch_idx)


class TupleModule(ForeignModule):
    def training_step(self, batch, batch_idx):
        return super().training_step(from_tuple(batch), batch_idx)


def from_tuple(batch):
    ids, labels = batch
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def fit(module, batch, callbacks, tmp_path, **settings):
    torch.manual_seed(0)
    loader = DataLoader([batch], batch_size=None)
    settings = {"max_steps": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
                "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1,
                "default_root_dir": tmp_path} | settings  # fmt: skip
    trainer = pl.Trainer(**settings, callbacks=callbacks)
    trainer.fit(module, loader)
    return trainer


@pytest.mark.parametrize("form", ["position_ids", "cu_seq_lens_q"])
def test_each_chat_of_a_packed_row_has_its_own_weights(form, chats):
    batch = packed(chats, form)
    numbers = chat_numbers("test", batch)
    lengths = [len(chat.input_ids) for chat in chats]
    assert numbers.tolist() == [[n for n, length in enumerate(lengths) for _ in range(length)]]
    weights = chat_weights(batch["labels"] != -100, numbers)
    starts = [sum(lengths[:n]) for n in range(len(chats))]
    for row, chat, start in zip(weights[:, 0], chats, starts, strict=True):
        expected = torch.tensor(chat.loss_mask).float()
        assert torch.allclose(row[start : start + len(expected)], expected / expected.sum())
        assert row.sum().item() == pytest.approx(1)


def test_what_says_nothing_of_several_chats_is_left_as_it_is(chats, tokenizer):
    batch = pad(chats, tokenizer.pad_token_id)
    assert chat_numbers("test", batch) is None
    left = torch.tensor([[1, 1, 1, 0, 1, 2]])  # positions of a row that is padded on the left
    numbers = chat_numbers("test", {"input_ids": torch.ones(1, 6), "position_ids": left})
    assert len(chat_weights(torch.tensor([[False] * 4 + [True] * 2]), numbers)) == 1
    with pytest.raises(MisconfigurationException, match=r"cu_seqlens of shape \(3,\) with input_ids of shape \(2, 4\)"):
        chat_numbers("test", {"input_ids": torch.ones(2, 4), "cu_seqlens": torch.tensor([0, 4, 8])})


@pytest.mark.parametrize("form", ["position_ids", "cu_seq_lens_q"])
def test_a_sample_of_packed_batches_holds_the_chats_one_by_one(form, chats, tokenizer):
    loader = DataLoader(items_of(chats), batch_size=4, collate_fn=lambda rows: packed(chats, form))
    loader.dataset[:] = [{"row": n} for n in range(4)]  # nothing to be read in the items themselves
    found = sample_chats("test", SimpleNamespace(train_dataloader=loader), 4, lambda: tokenizer)
    assert [c.input_ids for c in found] == read_of(chats)
    assert [c.prompt_length for c in found] == [c.prompt_length for c in chats]


def test_packed_items_are_taken_apart_as_well(chats, tokenizer):
    batch = packed(chats)
    loader = DataLoader([{key: value[0] for key, value in batch.items()}])
    found = sample_chats("test", SimpleNamespace(train_dataloader=loader), 4, lambda: tokenizer)
    assert [c.input_ids for c in found] == read_of(chats)


def test_the_penalty_and_the_projection_of_a_packed_row_are_those_of_the_chats_apart(chats, tokenizer, tmp_path):
    """With an adapter that is not zero, so that there is something to penalise."""
    logged = []
    for batch, module in ((packed(chats), PackedModule), (pad(chats, tokenizer.pad_token_id), ForeignModule)):
        model = tiny_model(peft=True)
        model.config.use_cache = False  # with a cache, transformers does not keep the chats of a row apart
        callbacks = [PersonaMonitor([make_vector()], pairs=0), ProjectionRegularisation([make_vector()])]
        trainer = fit(module(model, tokenizer), batch, callbacks, tmp_path)
        logged.append(
            [float(trainer.callback_metrics[n]) for n in ("persona/evil/batch_projection", "steering/penalty")]
        )
    assert logged[0] == pytest.approx(logged[1], rel=1e-4)
    assert logged[0][1] > 0


def test_only_the_responses_of_a_packed_row_are_steered(chats, tokenizer, tmp_path):
    batch = packed(chats)
    plain, steered = [], []

    class Watching(PackedModule):
        def training_step(self, batch, batch_idx):
            found = (
                self.lm.get_base_model()
                .model.layers[0]
                .register_forward_hook(lambda *given: steered.append(given[-1].detach()))
            )  # the last hook sees what was written
            loss = super().training_step(batch, batch_idx)
            found.remove()
            return loss

    for callbacks in ([], [PreventativeSteering([make_vector()], 0.5, layers=[1], positions="response")]):
        fit(Watching(tiny_model(peft=True), tokenizer), batch, callbacks, tmp_path)
        plain.append(steered.pop())
    moved = (plain[1] - plain[0]).abs().amax(dim=-1) > 1e-4
    assert torch.equal(moved, batch["labels"] != -100)


def test_an_adapter_reads_batches_of_any_form(chats, tokenizer, tmp_path):
    whole = pad(chats[:1] * 2, tokenizer.pad_token_id)
    batch = (whole["input_ids"], whole["labels"])
    logged = []
    for module, data, adapter in ((TupleModule, batch, from_tuple), (ForeignModule, whole, None)):
        callbacks = [
            PersonaMonitor([make_vector()], pairs=0, batch_adapter=adapter),
            PreventativeSteering([make_vector()], 0.5, positions="response", batch_adapter=adapter),
            ProjectionRegularisation([make_vector()], batch_adapter=adapter),
        ]
        trainer = fit(module(tiny_model(peft=True), tokenizer), data, callbacks, tmp_path)
        logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})
    assert logged[0] == pytest.approx(logged[1])
    assert "persona/evil/batch_projection" in logged[0]
    loader = DataLoader([0, 1], batch_size=2, collate_fn=lambda rows: batch)
    found = sample_chats("test", SimpleNamespace(train_dataloader=loader), 2, lambda: tokenizer, from_tuple)
    assert [c.input_ids for c in found] == read_of(chats[:1] * 2)


def test_an_adapter_that_gives_no_labels_is_named(chats, tokenizer, tmp_path):
    whole = pad(chats[:1], tokenizer.pad_token_id)
    steering = Ablation([make_vector()], positions="response", batch_adapter=lambda batch: batch["input_ids"])
    with pytest.raises(MisconfigurationException, match="Ablation: batch_adapter returned Tensor for a batch that is"):
        fit(ForeignModule(tiny_model(peft=True), tokenizer), whole, [steering], tmp_path)
    with pytest.raises(MisconfigurationException, match=r"positions='response' needs .* pass batch_adapter="):
        fit(TupleModule(tiny_model(peft=True), tokenizer), (whole["input_ids"], whole["labels"]),
            [Ablation([make_vector()], positions="response")], tmp_path)  # fmt: skip

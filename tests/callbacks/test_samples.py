"""Adaptive steering begins on training data as people have them, and touches neither loader nor random state."""

import dataclasses
import random

import lightning.pytorch as pl
import pytest
import torch
from builders import CHATS, ForeignModule, batches, make_vector, tiny_model
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import DataCollatorForLanguageModeling

from persona_callbacks import Adaptive, PersonaMonitor, PreventativeSteering
from persona_callbacks.callbacks._samples import sample_chats
from persona_callbacks.chats import Chat, encode_chat, pad, render
from persona_callbacks.steering import LikeliestStart

TURNS = [chat["messages"] for chat in CHATS]


def encoded(tokenizer):
    return [encode_chat(Chat(tuple(messages)), tokenizer) for messages in TURNS]


def texts(tokenizer):
    return [render(messages, tokenizer) for messages in TURNS]


class Stream(IterableDataset):
    def __init__(self, items):
        self.items = items
        self.begun = 0

    def __iter__(self):
        self.begun += 1
        yield from self.items


@dataclasses.dataclass
class Batch:
    input_ids: torch.Tensor
    labels: torch.Tensor
    attention_mask: torch.Tensor


class TakesAnything(ForeignModule):
    def training_step(self, batch, batch_idx):
        given = batch if isinstance(batch, dict) else dict(vars(getattr(batch, "data", None) or batch))
        return super().training_step(given, batch_idx)


def tokenised(tokenizer):
    """Tokenising in collate_fn."""
    return DataLoader(TURNS, batch_size=3, collate_fn=lambda rows: pad(
        [encode_chat(Chat(tuple(messages)), tokenizer) for messages in rows], tokenizer.pad_token_id
    ))  # fmt: skip


def all_tokens(tokenizer):
    """The collator for language modelling: loss on every token, prompts among them."""
    rows = [{"input_ids": list(chat.input_ids)} for chat in encoded(tokenizer)]
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return DataLoader(rows, batch_size=3, collate_fn=lambda items: dict(collate(items)))


def copied_labels(tokenizer):
    rows = [torch.tensor(chat.input_ids) for chat in encoded(tokenizer)]
    return DataLoader([{"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)} for ids in rows])


def streamed(tokenizer):
    return DataLoader(Stream(TURNS), batch_size=3, collate_fn=tokenised(tokenizer).collate_fn)


def dataclasses_of(tokenizer):
    collate = tokenised(tokenizer).collate_fn
    return DataLoader(TURNS, batch_size=3, collate_fn=lambda rows: Batch(**collate(rows)))


def whole_batches(tokenizer):
    """A data set whose items are batches."""
    chats = encoded(tokenizer)
    return DataLoader([pad(chats[start : start + 2], tokenizer.pad_token_id) for start in range(0, len(chats), 2)],
                      batch_size=None)  # fmt: skip


KINDS = [tokenised, all_tokens, copied_labels, streamed, dataclasses_of, whole_batches]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_gives_the_chats_that_it_holds(kind, tokenizer):
    trainer = type("T", (), {"train_dataloader": kind(tokenizer)})()
    chats = sample_chats("test", trainer, len(TURNS), lambda: tokenizer)
    expected = encoded(tokenizer)
    assert len(chats) == len(expected)
    for chat, reference in zip(chats, expected, strict=True):
        assert chat.prompt_length == reference.prompt_length
        assert tokenizer.decode(chat.input_ids[chat.prompt_length :]).strip().startswith(
            tokenizer.decode([i for i, own in zip(reference.input_ids, reference.response_mask, strict=True) if own])
        )  # fmt: skip


def test_of_items_that_hold_several_chats_no_more_are_taken_than_asked_for(tokenizer):
    trainer = type("T", (), {"train_dataloader": whole_batches(tokenizer)})()
    assert len(sample_chats("test", trainer, 3, lambda: tokenizer)) == 3


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_fit_begins_and_its_data_are_the_same_as_without_steering(kind, tokenizer, tmp_path):
    def seen(steered):
        batches = []

        class Noting(TakesAnything):
            def training_step(self, batch, batch_idx):
                given = batch if isinstance(batch, dict) else vars(batch)
                batches.append((given["input_ids"].clone(), torch.rand(1), random.random()))
                return super().training_step(batch, batch_idx)

        pl.seed_everything(3)
        loader = kind(tokenizer)
        law = Adaptive(LikeliestStart(samples=4), feedback=False)
        callbacks = [PreventativeSteering([make_vector()], law)] if steered else []
        trainer = pl.Trainer(max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False,
                             enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
                             default_root_dir=tmp_path)  # fmt: skip
        trainer.fit(Noting(tiny_model(peft=True), tokenizer), loader)
        return batches

    for (ids, *drawn), (other_ids, *other_drawn) in zip(seen(False), seen(True), strict=True):
        assert torch.equal(ids, other_ids)
        assert drawn == other_drawn


@pytest.mark.parametrize(
    ("loader", "found"),
    [
        (DataLoader(Stream([(1, 2)]), batch_size=1), "but tuple"),
        (DataLoader([{"text": "x"}], batch_size=1), "but dict"),
        (DataLoader([{"text": "x"}], collate_fn=lambda rows: rows[0]["no"]), "collate_fn fails on 1 items: KeyError"),
        ([1, 2], "found no data set behind the training loader"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_way_out(loader, found, tokenizer):
    trainer = type("T", (), {"train_dataloader": loader})()
    with pytest.raises(MisconfigurationException, match=found) as raised:
        sample_chats("test", trainer, 4, lambda: tokenizer)
    assert "pass a constant coefficient, or chats=" in str(raised.value)


def test_adaptive_steering_looks_at_few_chats_unless_more_are_asked_for(tokenizer, tmp_path):
    class Asked(Dataset):
        def __init__(self):
            self.items, self.asked = batches(10).dataset, set()

        def __len__(self):
            return len(self.items)

        def __getitem__(self, index):
            self.asked.add(index)
            return self.items[index]

    def looked_at(law):
        data, looked = Asked(), []

        class Noting(ForeignModule):
            def on_train_start(self):
                looked.append(len(data.asked))

        callbacks = [PersonaMonitor([make_vector()]), PreventativeSteering([make_vector()], law)]
        trainer = pl.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                             enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
                             default_root_dir=tmp_path)  # fmt: skip
        trainer.fit(Noting(tiny_model(peft=True), tokenizer), DataLoader(data, batch_size=1))
        return looked

    assert looked_at(Adaptive()) == [16]
    assert looked_at(Adaptive(LikeliestStart(samples=25))) == [25]
    assert looked_at(Adaptive(start=0.5)) == [0]

"""The learning rate after its warm-up, and optimizers in place of AdamW."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from builders import QUESTIONS, tiny_model, weights
from lightning.pytorch import seed_everything
from peft import LoraConfig
from torch import optim
from transformers.optimization import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from persona_callbacks import InputError
from persona_callbacks.chats import Chat
from persona_callbacks.training import ChatData, ConstantRate, CosineDecay, LinearDecay, LoraFineTuning

CHATS = [
    Chat(({"role": "user", "content": question}, {"role": "assistant", "content": question[::-1]}))
    for question in QUESTIONS * 3
]


class Rates(pl.Callback):
    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, *_):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def trained(tokenizer, **settings):
    seed_everything(0, verbose=False)
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    module = LoraFineTuning(tiny_model(), lora, learning_rate=0.01, warmup_steps=2, **settings)
    rates = Rates()
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[rates],
                         enable_model_summary=False, enable_checkpointing=False)  # fmt: skip
    trainer.fit(module, ChatData(CHATS, tokenizer, batch_size=4))
    return module, rates.rates


def reference(schedule, steps):
    optimizer = optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    scheduler, rates = schedule(optimizer, 2, steps), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [(LinearDecay(), get_linear_schedule_with_warmup), (CosineDecay(), get_cosine_schedule_with_warmup)],
)
def test_rates_are_those_of_transformers_schedules(schedule, theirs, tokenizer):
    _, rates = trained(tokenizer, schedule=schedule)
    assert rates == pytest.approx(reference(theirs, len(rates)))


def test_a_constant_rate_stays_after_the_warm_up_and_a_decay_ends_where_it_is_told(tokenizer):
    _, rates = trained(tokenizer, schedule=ConstantRate())
    assert rates == [0.0, 0.005, *[0.01] * (len(rates) - 2)]
    assert [CosineDecay(end=0.1)(1.0), LinearDecay(end=0.1)(1.0)] == pytest.approx([0.1, 0.1])
    with pytest.raises(InputError, match="end of LinearDecay is 2; expected a number from 0 to 1"):
        LinearDecay(end=2)


def test_adamw_with_a_linear_decay_is_the_default_bitwise_and_other_optimizers_end_elsewhere(tokenizer):
    default, rates = trained(tokenizer)
    same, _ = trained(tokenizer, optimizer=partial(optim.AdamW, lr=0.01, weight_decay=0.0), schedule=LinearDecay())
    other, other_rates = trained(tokenizer, optimizer=partial(optim.SGD, lr=0.1))
    expected, found, elsewhere = weights(default), weights(same), weights(other)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not all(torch.equal(expected[name], elsewhere[name]) for name in expected)
    assert other_rates == pytest.approx([10 * rate for rate in rates])

"""Between logging intervals and readings, no callback waits for the device in a training step."""

import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import torch
from builders import PAIRS, ForeignModule, fit, make_vector, tiny_model
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import persona_callbacks
from persona_callbacks import Ablation, Adaptive, DriftGuard, PersonaMonitor, PreventativeSteering

OURS = (str(Path(persona_callbacks.__file__).parent), __file__)
SCALARS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}
COPIES = {torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist}
"""On a CPU these run no operation that could be seen."""


def caller():
    """The function of the innermost frame outside torch and the two modes, if it is ours."""
    frame = sys._getframe(2)
    while "/torch/" in frame.f_code.co_filename or frame.f_code.co_name == "__torch_function__":
        frame = frame.f_back
    return frame.f_code.co_qualname if frame.f_code.co_filename.startswith(OURS) else None


class Scalars(TorchDispatchMode):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in SCALARS:
            self.seen.append(caller())
        return func(*args, **(kwargs or {}))


class Copies(TorchFunctionMode):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in COPIES:
            self.seen.append(caller())
        return func(*args, **(kwargs or {}))


class First(pl.Callback):
    """Notes who waits, from the start of each batch but the first, whose writing is checked, and of the last."""

    def __init__(self):
        self.seen, self.modes, self.steps = [], ExitStack(), 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if 0 < batch_idx < trainer.num_training_batches - 1:
            self.steps += 1
            self.modes.enter_context(Copies(self.seen))
            self.modes.enter_context(Scalars(self.seen))


class Last(pl.Callback):
    def __init__(self, first):
        self.first = first

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.first.modes.close()


class Naive(pl.Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        next(pl_module.parameters()).sum().item()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        batch["labels"].cpu()


class Module(ForeignModule):
    def configure_optimizers(self):
        """Adam counts its steps in numbers on the host."""
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def waits(callbacks, tokenizer, tmp_path):
    first = First()
    fit(Module(tiny_model(peft=True), tokenizer), [first, *callbacks, Last(first)], tmp_path, log_every_n_steps=100,
        num_sanity_val_steps=0, limit_val_batches=0)  # fmt: skip
    assert first.steps == 4
    return [name for name in first.seen if name]


def test_a_training_step_waits_for_no_number(tokenizer, tmp_path):
    vector = replace(make_vector(), pairs=PAIRS)
    other = make_vector("sycophancy", layer=2, seed=3)

    class Rare(Adaptive):
        next_reading = None

    for positions in ("all", "response"):
        steering = PreventativeSteering([vector], Rare(start=0.3), positions=positions)
        monitor = PersonaMonitor([vector, other], every_n_steps=100)
        assert not waits([monitor, steering, Ablation([other], positions=positions)], tokenizer, tmp_path)
        assert steering.coefficients == {"evil": 0.3}


def test_the_guard_looks_at_one_number_a_step(tokenizer, tmp_path):
    monitor = PersonaMonitor([make_vector()], every_n_steps=100)
    seen = waits([monitor, DriftGuard(shift=1e9)], tokenizer, tmp_path)
    assert seen == ["DriftGuard.on_before_optimizer_step"] * 4


def test_the_naive_way_is_seen(tokenizer, tmp_path):
    seen = waits([Naive()], tokenizer, tmp_path)
    assert seen == ["Naive.on_before_optimizer_step", "Naive.on_train_batch_end"] * 4

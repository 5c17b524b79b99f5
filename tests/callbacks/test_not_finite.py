"""Readings and losses that are not finite: reported, never steered by, and acted on by the guard."""

import math

import lightning.pytorch as pl
import pytest
import torch
from builders import LOUD, SHORT, ForeignModule, LengthJudge, fit, make_vector, tiny_model, weights
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger

from persona_callbacks import Adaptive, DriftGuard, Law, PersonaMonitor, PreventativeSteering, TraitEvaluation
from persona_callbacks.judging import Score
from persona_callbacks.model import find_language_model


class Poison(pl.Callback):
    """Makes the weights NaN after a number of optimizer steps, for the rest of that step or for good."""

    def __init__(self, at, mend=False):
        self.at, self.mend, self.kept = at, mend, None

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == self.at:
            self.kept = weights(pl_module)
            with torch.no_grad():
                next(p for p in find_language_model(pl_module).parameters() if p.requires_grad).fill_(math.nan)

    def on_train_batch_start(self, trainer, pl_module, *_):
        if self.mend and self.kept is not None:
            pl_module.load_state_dict(self.kept)
            self.kept = None


def test_a_reading_that_is_not_finite_is_reported_and_not_steered_by(tokenizer, tmp_path):
    monitor = PersonaMonitor([make_vector()], every_n_steps=1)
    steering = PreventativeSteering([make_vector()], Adaptive(start=0.5, target=-1e3))
    module, seen = ForeignModule(tiny_model(peft=True), tokenizer), []
    module.during = lambda stage: seen.append(steering.coefficients["evil"]) if stage == "train" else None
    logger = CSVLogger(tmp_path, "log")
    with (
        pytest.warns(UserWarning, match="adaptive steering: the shift of evil after 3 optimizer steps is nan"),
        pytest.warns(UserWarning, match="PersonaMonitor: the shift of evil after 3 optimizer steps is nan") as warned,
    ):
        fit(module, [Poison(3, mend=True), monitor, steering], tmp_path, logger=logger, log_every_n_steps=1)
    assert sum("PersonaMonitor: the shift" in str(one.message) for one in warned) == 1
    assert [math.isnan(reading.shift["evil"]) for reading in monitor.readings] == [n == 3 for n in range(7)]
    assert seen[3] == seen[2], "the reading is ignored"
    assert seen[4] != seen[3], "and the next one is not"
    assert all(math.isfinite(alpha) for alpha in seen)
    assert all(value.isfinite().all() for value in weights(module).values())
    assert "nan" in next(tmp_path.glob("log/*/metrics.csv")).read_text()


def test_a_law_that_gives_no_number_stops_the_run(tokenizer, tmp_path):
    class Broken(Law):
        def begin(self, fit):
            return {"evil": math.nan}

    with pytest.raises(MisconfigurationException, match="Broken gave a coefficient of nan for evil"):
        fit(ForeignModule(tiny_model(), tokenizer), [PreventativeSteering([make_vector()], Broken())], tmp_path)


def test_batch_projection_that_is_not_finite_shows(tokenizer, tmp_path):
    module, monitor = ForeignModule(tiny_model(), tokenizer), PersonaMonitor([make_vector()])
    trainer = fit(module, [Poison(2), monitor], tmp_path, log_every_n_steps=3)
    assert math.isnan(trainer.callback_metrics["persona/evil/batch_projection"])


@pytest.mark.parametrize("action", ["warn", "stop", "roll_back"])
def test_guard_trips_on_a_shift_that_is_not_finite(action, tokenizer, tmp_path):
    module, poison = ForeignModule(tiny_model(peft=True), tokenizer), Poison(3)
    monitor, guard = PersonaMonitor([make_vector()], every_n_steps=1), DriftGuard(shift=1e6, action=action)
    kept = {}

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            kept[trainer.global_step] = weights(pl_module)

    with pytest.warns(UserWarning, match="after 3 optimizer steps: shift of evil is nan"):
        trainer = fit(module, [Keep(), poison, monitor, guard], tmp_path)
    assert trainer.global_step == (6 if action == "warn" else 3)
    assert guard.rolled_back_to == (2 if action == "roll_back" else None)
    if action == "roll_back":
        assert all(torch.equal(kept[2][name], value) for name, value in weights(module).items())


def test_guard_trips_on_an_expression_that_is_not_finite_and_not_on_a_judge_that_fails(tokenizer, tmp_path):
    class Lost(LengthJudge):
        def score(self, answers, advance=lambda done: None):
            return [Score(math.nan) for _ in answers]

    for judge, trips in ((Lost(), True), (LengthJudge(RuntimeError("down")), False)):
        evaluation = TraitEvaluation([LOUD], judges={"loud": judge}, every_n_steps=2, sampling=SHORT)
        guard = DriftGuard(expression=100.0, action="stop")
        trainer = fit(ForeignModule(tiny_model(peft=True), tokenizer), [evaluation, guard], tmp_path)
        assert guard.tripped == ("expression of loud is nan" if trips else "")
        assert trainer.global_step == (2 if trips else 6)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("action", ["warn", "stop", "roll_back"])
def test_guard_trips_on_a_loss_that_is_not_finite_before_its_step(action, accumulate, tokenizer, tmp_path):
    class Lossy(ForeignModule):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (math.nan if batch_idx == 2 else 1.0)

    module = Lossy(tiny_model(peft=True), tokenizer)
    monitor, guard = PersonaMonitor([make_vector()], every_n_steps=100), DriftGuard(shift=1e6, action=action)
    start = weights(module)
    steps = 2 // accumulate
    with pytest.warns(UserWarning, match=f"after {steps} optimizer steps: the training loss is nan"):
        fit(module, [monitor, guard], tmp_path, accumulate_grad_batches=accumulate)
    found = weights(module)
    assert all(value.isfinite().all() for value in found.values()) == (action != "warn")
    assert all(torch.equal(start[name], found[name]) for name in start) == (action == "roll_back")
    assert guard.rolled_back_to == (0 if action == "roll_back" else None)

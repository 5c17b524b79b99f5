"""Trait expression: intervals, and the callback in a trainer."""

import csv
import math
from dataclasses import replace

import pytest
import torch
import wandb
from builders import LOUD, SHORT, ForeignModule, LengthJudge, batches, fit, make_vector, tiny_model, weights, written
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from persona_callbacks import InputError, PreventativeSteering, TraitEvaluation
from persona_callbacks.judging import (
    ContrastiveJudge,
    Expression,
    JudgedAnswer,
    Score,
    answer_questions,
    scores_or_error,
)
from persona_callbacks.model import LoadedModel, base_model
from persona_callbacks.report.wandb_files import read_offline_run
from persona_callbacks.vectors import Calibration

CALIBRATION = Calibration((0.0,) * 3, (1.0,) * 3, slope=1.0, intercept=0.0, auc=0.9, calibration_error=0.1)


def test_interval_covers_the_mean_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(300):
        found = Expression.of([Score(value) for value in (100 * torch.rand(40, generator=generator)).tolist()])
        assert 0 <= found.low <= found.mean <= found.high <= 100
        covered += found.low <= 50 <= found.high
    assert 0.90 <= covered / 300 <= 0.98  # 95 % but for the noise of 300 draws, and a little less at 40 answers


def test_refusals_and_unscored_are_kept_apart():
    scores = [Score(10.0), Score(None, refusal=True), Score(None), Score(30.0), Score(None)]
    found = Expression.of(scores)
    assert (found.mean, found.scored, found.refusals, found.unscored) == (20.0, 2, 1, 2)
    assert found == Expression.of(scores)
    empty = Expression.of([Score(None)])
    assert math.isnan(empty.mean)
    assert empty.unscored == 1


def test_contrastive_judge_scores_with_the_base_model(tokenizer, tmp_path):
    module = ForeignModule(tiny_model(peft=True), tokenizer)
    vector = replace(make_vector("loud"), calibration=CALIBRATION)
    callback = TraitEvaluation([LOUD], [vector], every_n_steps=2, sampling=SHORT)
    fit(module, [callback, PreventativeSteering([vector], 0.5)], tmp_path, logger=CSVLogger(tmp_path, "log"))
    assert [one.step for one in callback.evaluations] == [0, 2, 4, 6]
    loaded = LoadedModel(module.lm, tokenizer, "")
    answers = answer_questions(LoadedModel(module.lm, tokenizer), LOUD.evaluation_questions, SHORT)
    assert [row.answer for row in callback.rows[-3:]] == [answer.response for answer in answers]
    with base_model(module.lm):
        scores = ContrastiveJudge(loaded, LOUD, CALIBRATION).score(answers)
    assert callback.evaluations[-1].expression == Expression.of(scores)
    (log,) = tmp_path.glob("log/*/metrics.csv")
    logged = [row for row in csv.DictReader(log.open()) if row.get("persona/loud/expression")]
    assert [int(row["step"]) for row in logged] == [0, 2, 4, 6]
    assert float(logged[-1]["persona/loud/expression"]) == pytest.approx(callback.evaluations[-1].expression.mean)
    assert float(logged[0]["persona/loud/expression_low"]) <= float(logged[0]["persona/loud/expression_high"])


def test_run_is_bitwise_the_same_without(tokenizer, tmp_path):
    ends = []
    for callbacks in ([], [TraitEvaluation([LOUD], judges={"loud": LengthJudge()}, every_n_steps=1, sampling=SHORT)]):
        module = ForeignModule(tiny_model(peft=True), tokenizer)
        fit(module, callbacks, tmp_path)
        ends.append((weights(module), torch.rand(3)))
    assert all(torch.equal(ends[0][0][name], ends[1][0][name]) for name in ends[0][0])
    assert torch.equal(ends[0][1], ends[1][1])


def test_failing_judge_never_stops_training(tokenizer, tmp_path):
    callback = TraitEvaluation([LOUD], judges={"loud": LengthJudge(RuntimeError("down"))}, sampling=SHORT)
    module = ForeignModule(tiny_model(peft=True), tokenizer)
    with pytest.warns(UserWarning, match="the judge of 'loud' failed.*down"):
        trainer = fit(module, [callback], tmp_path)
    assert trainer.global_step == 6
    assert [one.expression.unscored for one in callback.evaluations] == [3, 3]
    assert trainer.callback_metrics["persona/loud/unscored"] == 3
    assert "persona/loud/expression" not in trainer.callback_metrics
    with pytest.raises(KeyboardInterrupt):
        scores_or_error(LengthJudge(KeyboardInterrupt()), [])


class MixedJudge:
    """Cannot score the first answer, calls the second one a refusal, and scores the third one."""

    name = "mixed"

    def score(self, answers, advance=lambda done: None):
        return [Score(None), Score(None, refusal=True), Score(42.26)][: len(answers)]


def test_wandb_takes_a_table_in_which_scored_refused_and_unscored_answers_are_mixed(tokenizer, tmp_path):
    callback = TraitEvaluation([LOUD], judges={"loud": MixedJudge()}, sampling=SHORT)
    logger = WandbLogger(project="test", name="mixed", save_dir=tmp_path, offline=True)
    fit(ForeignModule(tiny_model(peft=True), tokenizer), [callback], tmp_path, logger=logger)
    wandb.finish()
    (path,) = map(written, tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    (table,) = read_offline_run(path).tables.values()
    columns = ["step", "trait", "question", "answer", "score", "verdict", "raw", "base_answer", "base_score"]
    assert [list(row) for row in table] == [columns] * 6
    verdicts = [(None, "unscored"), (None, "refusal"), (42.3, "scored")]
    assert [(row["score"], row["verdict"]) for row in table] == 2 * verdicts
    assert [JudgedAnswer.from_row(row) for row in table] == callback.rows


def test_checkpoint_of_an_older_version_is_read():
    callback = TraitEvaluation([LOUD], judges={"loud": LengthJudge()})
    rows = [
        [0, "loud", "Why?", "So.", 12.0],
        [0, "loud", "Who?", "No.", "refusal"],
        [0, "loud", "How?", "", "unscored"],
    ]
    callback.load_state_dict({"evaluations": [], "rows": rows})
    assert callback.rows == [
        JudgedAnswer(0, "loud", "Why?", "So.", 12.0, "scored"),
        JudgedAnswer(0, "loud", "Who?", "No.", None, "refusal"),
        JudgedAnswer(0, "loud", "How?", "", None, "unscored"),
    ]
    again = TraitEvaluation([LOUD], judges={"loud": LengthJudge()})
    again.load_state_dict(callback.state_dict())
    assert again.rows == callback.rows


def test_resumed_run_keeps_the_evaluations(tokenizer, tmp_path):
    def run(steps, **kwargs):
        callback = TraitEvaluation([LOUD], judges={"loud": LengthJudge()}, every_n_steps=2, sampling=SHORT)
        saver = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=1, enable_version_counter=False)
        settings = {"enable_checkpointing": True, "max_steps": steps, "max_epochs": -1}
        module = ForeignModule(tiny_model(peft=True), tokenizer)
        if "ckpt_path" not in kwargs:
            fit(module, [callback, saver], tmp_path, **settings)
            return callback
        import lightning.pytorch as pl

        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                             callbacks=[callback, saver], **settings)  # fmt: skip
        trainer.fit(module, batches(), ckpt_path=kwargs["ckpt_path"])
        return callback

    run(3)
    resumed = run(6, ckpt_path=tmp_path / "last.ckpt")
    assert [one.step for one in resumed.evaluations] == [0, 2, 4, 6]
    assert all(isinstance(one.expression, Expression) for one in resumed.evaluations)
    assert len(resumed.rows) == 3 * len(resumed.evaluations)


def test_mistakes(tokenizer, tmp_path):
    with pytest.raises(InputError, match="nothing can judge 'loud'"):
        TraitEvaluation([LOUD], [make_vector("loud")])
    with pytest.raises(InputError, match="expected at least one trait"):
        TraitEvaluation([])
    with pytest.raises(InputError, match="every_n_steps must be at least 1"):
        TraitEvaluation([LOUD], judges={"loud": LengthJudge()}, every_n_steps=0)
    callback = TraitEvaluation([LOUD], [replace(make_vector("loud"), calibration=CALIBRATION)], sampling=SHORT)
    with pytest.raises(MisconfigurationException, match="no adapter that could be disabled"):
        fit(ForeignModule(tiny_model(), tokenizer), [callback], tmp_path)

"""What a script of a user's own leaves in W&B's offline file, by the callbacks alone."""

import json

import pytest
import torch
import wandb
from builders import LOUD, SHORT, ForeignModule, LengthJudge, fit, make_vector, offline_records, tiny_model, written
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from persona_callbacks import PersonaMonitor, PreventativeSteering, TraitEvaluation
from persona_callbacks.report import find_runs, write_report
from persona_callbacks.report.wandb_files import read_offline_run

TRAINING = ["train/loss", "train/learning_rate", "train/gradient_norm"]


class Norms(Callback):
    """The norm of all gradients and the loss of each batch, by another way."""

    def __init__(self):
        self.norms, self.losses = {}, []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        squares = sum((p.grad.double() ** 2).sum() for p in pl_module.parameters() if p.grad is not None)
        self.norms[trainer.global_step + 1] = float(squares.sqrt())

    def on_before_backward(self, trainer, pl_module, loss):
        self.losses.append(float(loss.detach()) * trainer.accumulate_grad_batches)


@pytest.fixture(scope="module")
def run(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    logger = WandbLogger(project="test", name="own", save_dir=folder, offline=True)
    vector, norms = make_vector(), Norms()
    callbacks = [
        norms,
        PreventativeSteering([vector], 0.5),  # before the monitor, so that it logs in another hook than the readings
        PersonaMonitor([vector], every_n_steps=2, every_layer=True),
        TraitEvaluation([LOUD], judges={"loud": LengthJudge()}, sampling=SHORT),
    ]
    fit(ForeignModule(tiny_model(peft=True), tokenizer), callbacks, folder, logger=logger, log_every_n_steps=2)
    wandb.finish()
    (path,) = map(written, folder.glob("wandb/offline-run-*/run-*.wandb"))
    return folder, read_offline_run(path), list(offline_records(path)), norms


def rows_with(run, name):
    return {row["trainer/global_step"]: row for row in run.history if name in row}


def test_loss_rate_gradients_strength_and_character_are_in_one_row(run):
    _, offline, _, norms = run
    rows = rows_with(offline, "persona/evil/shift")
    assert sorted(rows) == [0, 2, 4, 6]
    for step in (2, 4, 6):
        assert "persona/evil/batch_projection" in rows[step]
        assert rows[step]["train/loss"] == pytest.approx(norms.losses[step - 1], rel=1e-5)
        assert rows[step]["train/gradient_norm"] == pytest.approx(norms.norms[step], rel=1e-5)
        assert rows[step]["train/learning_rate"] == 1e-2
    assert [rows[step].get("steering/evil/coefficient") for step in (0, 2, 4)] == [0.5] * 3
    assert [step for step in rows if "persona/loud/expression" in rows[step]] == [0, 6]


def test_each_metric_is_drawn_over_steps_and_keeps_its_extremes(run):
    _, offline, records, _ = run
    defined = {record.metric.name: record.metric for record in records if record.HasField("metric")}
    ours = {name for name in rows_with(offline, "persona/evil/shift")[2] if name.startswith(("persona", "train/"))}
    assert {"persona/evil/shift", "persona/evil/projection", *TRAINING} <= ours
    for name in (*ours, "persona/loud/expression_low", "steering/evil/coefficient"):
        assert defined[name].step_metric == "trainer/global_step", name
        assert (defined[name].summary.min, defined[name].summary.max, defined[name].summary.last) == (True,) * 3
    summary = {}
    for record in records:
        if record.HasField("summary"):
            summary |= {"/".join(item.nested_key) or item.key: item.value_json for item in record.summary.update}
    shifts = [row["persona/evil/shift"] for row in rows_with(offline, "persona/evil/shift").values()]
    expected = {"min": min(shifts), "max": max(shifts), "last": shifts[-1]}
    assert json.loads(summary["persona/evil/shift"]) == pytest.approx(expected)
    assert json.loads(summary["persona/shift_by_layer/_type"]) == "table-file", "a table's summary stays a table's"


def test_all_that_is_logged_has_a_section(run):
    _, offline, _, _ = run
    mine = {"loss", "epoch", "val_loss"}  # by the user's module, and by Lightning
    names = {name for row in offline.history for name in row if not name.startswith("_")} - mine
    assert {name.partition("/")[0] for name in names} == {"persona", "steering", "train", "trainer"}


def test_tables_have_the_step_and_the_answer_before_training_and_there_are_pictures(run):
    folder, offline, _, _ = run
    answers = offline.tables["persona/judged_answers"]
    assert {row["step"] for row in answers} == {0, 6}
    before = {row["question"]: (row["answer"], row["score"]) for row in answers if row["step"] == 0}
    assert all((row["base_answer"], row["base_score"]) == before[row["question"]] for row in answers)
    layers = offline.tables["persona/shift_by_layer"]
    assert [(row["step"], row["layer"]) for row in layers] == [(s, n) for s in (0, 2, 4, 6) for n in (1, 2, 3, 4)]
    for picture in ("persona/shift_over_training", "persona/evil/shift_by_layer_picture"):
        (row,) = (row for row in offline.history if f"{picture}/_type" in row)
        assert row["trainer/global_step"] == 6
        assert len(list(folder.glob(f"wandb/offline-run-*/files/media/images/{picture}_*.png"))) == 1


def test_the_configuration_names_vectors_and_law(run):
    _, offline, _, _ = run
    vector = make_vector()
    assert offline.config["persona_vectors"]["evil"] == {
        "model_id": "", "sha256": vector.fingerprint, "layer": 3, "num_layers": 4, "position": "response_mean",
        "origin": "mean_difference", "auc": None, "specificity": None,
    }  # fmt: skip
    assert offline.config["PreventativeSteering"]["law"]["coefficient"] == 0.5
    assert offline.config["PersonaMonitor"]["every_n_steps"] == 2
    assert offline.config["TraitEvaluation"]["judges"] == {"loud": "length"}


def test_the_report_knows_the_loss_and_the_vectors_of_it(run, tmp_path):
    folder, offline, _, _ = run
    (found,) = find_runs([folder])
    text = write_report([found], tmp_path / "report.html").read_text()
    assert f"{rows_with(offline, 'train/loss')[6]['train/loss']:.3f}" in text
    assert "persona vector read at response_mean, layer 3 of 4" in text
    assert len(found.answers) == 6


def test_loss_of_accumulated_batches_is_their_mean_and_own_names_are_left_alone(tokenizer, tmp_path):
    class Logging(ForeignModule):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("train/learning_rate", 7.0)
            return loss

    norms, logger = Norms(), CSVLogger(tmp_path, name="", version="csv")
    callbacks = [norms, PersonaMonitor([make_vector()], every_n_steps=1)]
    fit(Logging(tiny_model(peft=True), tokenizer), callbacks, tmp_path, logger=logger, accumulate_grad_batches=2,
        log_every_n_steps=1)  # fmt: skip
    (found,) = find_runs([tmp_path])
    means = [sum(norms.losses[2 * number : 2 * number + 2]) / 2 for number in range(3)]
    assert [value for _, value in found.series["train/loss"]] == pytest.approx(means, rel=1e-5)
    assert {value for _, value in found.series["train/learning_rate"]} == {7.0}


def test_what_was_logged_last_is_written_when_training_ends_with_an_error(tokenizer, tmp_path):
    logger = CSVLogger(tmp_path, name="", version="csv")
    module = ForeignModule(tiny_model(peft=True), tokenizer)
    module.fail_at = 2
    with pytest.raises(RuntimeError, match="asked to fail"):
        fit(module, [PersonaMonitor([make_vector()], every_n_steps=1)], tmp_path, logger=logger)
    logger.save()
    (found,) = find_runs([tmp_path])
    assert [step for step, _ in found.series["persona/evil/shift"]] == [0, 1, 2]
    assert torch.isfinite(torch.tensor(found.last("persona/evil/shift")))

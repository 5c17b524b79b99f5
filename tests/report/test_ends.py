"""What the report says of runs that did not finish, were read before training only, or were logged twice."""

import csv
import json
import shutil

import pytest
import wandb
from builders import ForeignModule, fit, make_vector, tiny_model
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from persona_callbacks import PersonaMonitor
from persona_callbacks.report import find_runs, write_report
from persona_callbacks.report.tables import results_table
from persona_callbacks.report.wandb_files import read_offline_run

SHIFT, EXPRESSION, LOSS = "persona/evil/shift", "persona/evil/expression", "train/epoch_loss"


def logged(folder, *rows):
    """A run as ``CSVLogger`` leaves it."""
    (folder / "csv").mkdir(parents=True)
    with (folder / "csv" / "metrics.csv").open("w", newline="") as lines:
        table = csv.DictWriter(lines, ["step", SHIFT, EXPRESSION, LOSS, "train/loss"])
        table.writeheader()
        table.writerows(rows)


BASE = {"step": 0, SHIFT: 0.0, EXPRESSION: 3.0}


def cells(run):
    table = results_table([run], ["evil"], LOSS)
    row = next(row for row in table.rows if row.run == 0)
    return dict(zip(table.columns, row.cells, strict=True))


def test_a_killed_run_is_marked_and_its_baseline_is_no_result(tmp_path):
    logged(tmp_path / "study" / "steered", BASE, {"step": 10, SHIFT: 4.0}, {"step": 20, "train/loss": 2.0})
    (tmp_path / "study" / "state.json").write_text(json.dumps({"finished": False}))
    (run,) = find_runs([tmp_path / "study"])
    assert run.finished is False
    assert run.name == "steered (unfinished, step 20)"
    assert cells(run) == {"evil shift": "+4.0 at step 10", "evil expression": "–", LOSS: "–"}
    text = write_report([run], tmp_path / "report.html").read_text()
    assert "training did not come to its end" in text
    assert "steered (unfinished, step 20)" in text


def test_a_finished_run_is_not_marked(tmp_path):
    folder = tmp_path / "study" / "steered"
    logged(folder, BASE, {"step": 20, SHIFT: 4.0, EXPRESSION: 40.0, LOSS: 2.0})
    (tmp_path / "study" / "state.json").write_text(json.dumps({"finished": False}))  # its other run is under way
    (folder / "result.json").write_text(json.dumps({"readings": []}))
    (run,) = find_runs([tmp_path / "study"])
    assert (run.finished, run.name) == (True, "steered")
    assert cells(run) == {"evil shift": "+4.0", "evil expression": "40", LOSS: "2.000"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_said_and_stops_no_chart(value, tmp_path):
    logged(tmp_path / "run", BASE, {"step": 10, SHIFT: value, EXPRESSION: value, LOSS: value})
    (run,) = find_runs([tmp_path / "run"])
    assert set(cells(run).values()) == {"not finite"}
    assert "not finite" in write_report([run], tmp_path / "report.html").read_text()


def test_a_run_that_was_read_before_training_only_has_no_result(tmp_path):
    logged(tmp_path / "run", BASE, {"step": 10, "train/loss": 2.0})
    (run,) = find_runs([tmp_path / "run"])
    assert set(cells(run).values()) == {"–"}
    text = write_report([run], tmp_path / "report.html").read_text()
    assert "evil was not read after a step of training" in text
    assert "Whether training came to its end is not recorded for run" in text


@pytest.mark.parametrize(("folders", "names"), [
    (["data=evil,steering=none-03ca9ccd/unsteered", "data=evil,steering=adaptive-2b24240b/steered"],
     ["data=evil,steering=adaptive/steered", "data=evil,steering=none/unsteered"]),
    (["lr=0.1-03ca9ccd", "lr=0.1-2b24240b"], ["lr=0.1-03ca9ccd", "lr=0.1-2b24240b"]),
    (["trial-03ca9ccd", "trial-2b24240b"], ["trial-03ca9ccd", "trial-2b24240b"]),
])  # fmt: skip
def test_jobs_of_a_sweep_go_without_their_hashes_where_that_tells_them_apart(folders, names, tmp_path):
    for folder in folders:
        logged(tmp_path / folder, BASE, {"step": 10, SHIFT: 4.0})
    assert sorted(run.name for run in find_runs([tmp_path])) == names


def test_two_loggers_in_two_folders_are_one_run_and_wandb_tells_its_end(tokenizer, tmp_path):
    ended = tmp_path / "ended"
    loggers = [
        WandbLogger(project="test", name="mine", save_dir=ended, offline=True),
        CSVLogger(ended / "logs", name="lightning_logs"),
    ]
    loggers[0].log_hyperparams({"learning_rate": 0.5})
    fit(ForeignModule(tiny_model(peft=True), tokenizer), [PersonaMonitor([make_vector()])], ended, logger=loggers)
    wandb.finish()
    (run,) = find_runs([ended])
    assert run.finished is True
    assert run.config["learning_rate"] == 0.5
    assert "unfinished" not in run.name

    killed = tmp_path / "killed"
    shutil.copytree(ended / "wandb", killed / "wandb")
    (file,) = killed.glob("wandb/offline-run-*/run-*.wandb")
    whole = file.read_bytes()
    cut = len(whole)
    while read_offline_run(file).exit_code is not None:
        cut -= 1
        file.write_bytes(whole[:cut])
    (run,) = find_runs([killed])
    assert run.finished is False

"""What is written, read back from W&B's offline file and from CSV."""

import csv
import json

import pytest
import wandb
from builders import ForeignModule, fit, make_vector, offline_records, tiny_model
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from persona_callbacks import Adaptive, DriftGuard, PersonaMonitor, PreventativeSteering
from persona_callbacks.steering import LikeliestStart

METRICS = [
    "persona/evil/projection", "persona/evil/shift", "persona/evil/batch_projection", "steering/evil/coefficient",
]  # fmt: skip


def history(folder):
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    for record in offline_records(path):
        if record.HasField("history"):
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}


@pytest.fixture
def run(tokenizer, tmp_path):
    logger = WandbLogger(project="test", name="unit", save_dir=tmp_path, offline=True)
    module = ForeignModule(tiny_model(peft=True), tokenizer)
    callbacks = [PersonaMonitor([make_vector()], every_n_steps=2), PreventativeSteering([make_vector()], 0.5)]
    fit(module, callbacks, tmp_path, logger=[logger, CSVLogger(tmp_path, name="", version="csv")])
    wandb.finish()
    return tmp_path, callbacks[0]


def test_offline_wandb_file_holds_every_metric_with_increasing_steps(run):
    folder, monitor = run
    rows = list(history(folder))
    for name in METRICS:
        steps = [row["trainer/global_step"] for row in rows if name in row]
        assert steps, f"{name} is not in the run file"
        assert steps == sorted(set(steps)), name
    shifts = {row["trainer/global_step"]: row["persona/evil/shift"] for row in rows if "persona/evil/shift" in row}
    assert shifts == {reading.step: pytest.approx(reading.shift["evil"]) for reading in monitor.readings}
    assert {row["steering/evil/coefficient"] for row in rows if "steering/evil/coefficient" in row} == {0.5}


def test_csv_beside_it_holds_the_same(run):
    folder, monitor = run
    with (folder / "csv" / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    found = {int(row["step"]): float(row["persona/evil/shift"]) for row in rows if row["persona/evil/shift"]}
    assert found == {reading.step: pytest.approx(reading.shift["evil"]) for reading in monitor.readings}
    assert all(any(row[name] for row in rows) for name in METRICS)


def test_target_out_of_reach_and_guard_alert_in_wandb_and_log_why(tokenizer, tmp_path):
    logger = WandbLogger(project="test", name="alerts", save_dir=tmp_path, offline=True)
    vector = make_vector()
    callbacks = [
        PersonaMonitor([vector], every_n_steps=1),
        PreventativeSteering([vector], Adaptive(LikeliestStart(samples=4), target=-1e3, reach=0.0)),
        DriftGuard(saturated=True, action="stop"),
    ]
    with pytest.warns(UserWarning, match="DriftGuard: after .* evil cannot be held"):
        trainer = fit(ForeignModule(tiny_model(peft=True), tokenizer), callbacks, tmp_path, logger=logger)
    wandb.finish()
    assert trainer.global_step < 6
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    alerts = [record.alert.title for record in offline_records(path) if record.HasField("alert")]
    assert alerts == ["Preventative steering is at its bound", "A trait has moved too far"]
    rows = list(history(tmp_path))
    assert any(row.get("steering/evil/saturated") == 1 for row in rows)
    assert any(row.get("guard/tripped") == 1 for row in rows)

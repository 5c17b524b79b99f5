"""What is written, read back from W&B's offline file and from CSV."""

import csv
import json
import os
import subprocess
import sys
import warnings

import pytest
import wandb
from builders import ForeignModule, fit, make_vector, offline_records, tiny_model, written
from commands import run_command
from hydra import compose, initialize_config_dir
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from persona_callbacks import Adaptive, DriftGuard, PersonaMonitor, PreventativeSteering
from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.loggers import with_usable_loggers
from persona_callbacks.steering import LikeliestStart
from persona_callbacks.tracking import metrics, never_failing

METRICS = [
    "persona/evil/projection", "persona/evil/shift", "persona/evil/batch_projection", "steering/evil/coefficient",
]  # fmt: skip


def history(folder):
    (path,) = map(written, folder.glob("wandb/offline-run-*/run-*.wandb"))
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


class Faulty(CSVLogger):
    """Has a full disk from step 2 on."""

    def log_metrics(self, metrics, step=None):
        if step >= 2:
            raise OSError(28, "No space left on device")
        super().log_metrics(metrics, step)

    def save(self):
        raise OSError(28, "No space left on device")


def test_a_logger_that_fails_in_mid_run_is_told_once_and_does_not_end_the_run(tokenizer, tmp_path):
    logger = never_failing(Faulty(tmp_path))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(ForeignModule(tiny_model(peft=True), tokenizer), [PersonaMonitor([make_vector()])], tmp_path,
                      logger=[logger], log_every_n_steps=1)  # fmt: skip
    assert trainer.global_step == 6
    told = [str(one.message) for one in caught if "No space left" in str(one.message)]
    assert [text.partition(" failed")[0] for text in told if "log_metrics" in text] == ["Faulty.log_metrics"]
    assert [text.partition(" failed")[0] for text in told if "save" in text] == ["Faulty.save"]


def test_own_metrics_do_not_end_a_users_run_when_a_logger_fails(tmp_path):
    with pytest.warns(UserWarning, match=r"logging to Faulty failed, the run goes on: OSError: .* No space left"):
        metrics.write([Faulty(tmp_path)], {"persona/evil/shift": 1.0}, step=3)


def test_server_that_cannot_be_reached_is_told_within_seconds_with_the_way_out(tmp_path):
    """By the real client, in a process of its own."""
    program = (
        "import time; from persona_callbacks import InputError; from persona_callbacks.tracking import check_wandb\n"
        "start = time.monotonic()\n"
        "try: check_wandb('logger.wandb.offline=true')\n"
        "except InputError as error: print(time.monotonic() - start, error)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40, "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    seconds, _, message = done.stdout.partition(" ")
    assert float(seconds) < 30
    assert "Weights & Biases cannot be used" in message
    assert "http://127.0.0.1:9" in message
    assert "logger.wandb.offline=true or the environment variable WANDB_MODE=offline" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("mode", "expected"), [("disabled", {"csv": None}), ("offline", {"wandb": True, "csv": None})], ids=str
)
def test_the_environment_s_mode_of_wandb_comes_first(mode, expected, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", mode)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["logger.wandb.offline=false"])
    usable = with_usable_loggers(cfg)
    assert {key: logger.get("offline") for key, logger in usable.logger.items()} == expected
    assert cfg.logger.wandb.offline is False, "the configuration given is left as it is"


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
    (path,) = map(written, tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    alerts = [record.alert.title for record in offline_records(path) if record.HasField("alert")]
    assert alerts == ["Preventative steering is at its bound", "A trait has moved too far"]
    rows = list(history(tmp_path))
    assert any(row.get("steering/evil/saturated") == 1 for row in rows)
    assert any(row.get("steering/guard_tripped") == 1 for row in rows)


CUT_OFF = """
import os, signal, warnings
from pathlib import Path
from builders import ForeignModule, fit, make_tokenizer, make_vector, tiny_model
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from persona_callbacks import PersonaMonitor
from persona_callbacks.tracking import finish_wandb, never_failing


def kill_own_process_of_wandb():
    for entry in Path("/proc").glob("[0-9]*/stat"):
        name, _, rest = entry.read_text().partition(")")
        if "wandb-core" in name and int(rest.split()[1]) == os.getpid():
            os.kill(int(entry.parent.name), signal.SIGKILL)


class Cut(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            kill_own_process_of_wandb()


for name, callbacks in (("first", [Cut()]), ("second", [])):
    loggers = [never_failing(WandbLogger(project="test", save_dir=name, offline=True)),
               CSVLogger(name, name="", version="csv")]
    Path(name).mkdir()
    module = ForeignModule(tiny_model(peft=True), make_tokenizer())
    trainer = fit(module, [*callbacks, PersonaMonitor([make_vector()], every_n_steps=1)], name, logger=loggers)
    finish_wandb()
    print(name, trainer.global_step)
"""


def test_wandb_that_is_cut_off_in_mid_run_costs_its_own_points_and_the_next_run_has_all(tmp_path):
    """With the real client, whose own process is killed."""
    (tmp_path / "cut_off.py").write_text(CUT_OFF)
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    done = run_command(tmp_path / "cut_off.py", tmp_path, environment=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["first", "6", "second", "6"]
    assert "failed, the run goes on: ConnectionResetError" in done.stderr
    for name in ("first", "second"):
        with (tmp_path / name / "csv" / "metrics.csv").open() as lines:
            steps = [int(row["step"]) for row in csv.DictReader(lines) if row["persona/evil/shift"]]
        assert steps == [0, 1, 2, 3, 4, 5, 6], name
    steps = [row["trainer/global_step"] for row in history(tmp_path / "second") if "persona/evil/shift" in row]
    assert steps == [0, 1, 2, 3, 4, 5, 6]

"""Configuration groups as people know them from other Hydra projects, and what a command prints."""

import csv
import json

import pytest
import torch
from builders import offline_records
from commands import run_command
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from persona_callbacks.apps.configs import CONF
from persona_callbacks.training import LinearDecay


def test_callbacks_are_a_group_and_quiet_prints_warnings_only(tiny, tmp_path):
    settings, environment = tiny
    several = (
        "callbacks=[learning_rate,early_stopping]", "callbacks.early_stopping.min_delta=100", "trainer.max_epochs=5",
        "trainer.log_every_n_steps=1", "quiet=true",
    )  # fmt: skip
    ours = [setting for setting in settings if not setting.startswith("logger=")]
    done = run_command("train", tmp_path, *ours, *several, environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = tmp_path.glob("outputs/train/seed-0/steered/csv/metrics.csv")
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["lr-AdamW"] for row in rows if row.get("lr-AdamW")]
    assert max(int(row["epoch"]) for row in rows if row["epoch"]) == 1, "stopped after two epochs of five"
    assert list(tmp_path.glob("outputs/train/seed-0/steered/wandb/offline-run-*"))
    assert not done.stdout
    said = done.stderr.splitlines()
    assert [line for line in said if not line.startswith("warning: ")] == []
    assert len(said) == len(set(said))


def test_debug_is_a_few_short_steps_that_are_judged_and_tracked_by_nobody():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["debug=default", "data=normal"])
    assert (cfg.name, cfg.trainer.max_steps, cfg.data.max_samples, cfg.data.path) == ("debug", 2, 8, "normal.jsonl")
    assert cfg.evaluation.callback is None
    assert list(cfg.logger) == ["csv"]


def test_every_optimizer_and_schedule_can_be_made_at_the_learning_rate():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for optimizer in ("adamw", "sgd", "adafactor"):
            cfg = compose("train", [f"optimizer={optimizer}", "learning_rate=0.25"])
            made = instantiate(cfg.optimizer, _partial_=True)([torch.nn.Parameter(torch.zeros(1))])
            assert made.param_groups[0]["lr"] == 0.25
        assert instantiate(compose("train").scheduler) == LinearDecay()
        for scheduler in ("linear", "cosine", "constant"):
            schedule = instantiate(compose("train", [f"scheduler={scheduler}"]).scheduler)
            assert schedule(0.0) == 1.0


def test_paths_tags_and_extras(tiny, tmp_path):
    settings, environment = tiny
    ours = [setting for setting in settings if not setting.startswith("logger=")]
    (tmp_path / "data").mkdir()
    (tmp_path / "chats.jsonl").rename(tmp_path / "data" / "chats.jsonl")
    given = (
        "paths.outputs=results", "paths.data=data", "paths.cache=elsewhere", "tags=[pilot,for the paper]",
        "extras.print_config=true", "extras.ignore_warnings=true", "optimizer=sgd", "scheduler=cosine",
        "trainer.max_steps=2", "trainer.log_every_n_steps=1",
    )  # fmt: skip
    done = run_command("train", tmp_path, *ours, *given, environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not done.stderr
    assert "paths:\n  outputs: results\n" in done.stdout
    assert "_target_: torch.optim.SGD" in done.stdout
    folder = tmp_path / "results" / "train" / "seed-0"
    assert not (tmp_path / "outputs").exists()
    assert list((tmp_path / "elsewhere").glob("base/*/answers-*.json"))
    assert not (tmp_path / "cache" / "base").exists()
    (file,) = folder.glob("steered/wandb/offline-run-*/*.wandb")
    (tags,) = [list(record.run.tags) for record in offline_records(file) if record.HasField("run") and record.run.tags][
        :1
    ]
    assert {"pilot", "for the paper", "constant 0.2"} <= set(tags)
    assert (
        str(tmp_path / "data" / "chats.jsonl") in json.loads((folder / "state.json").read_text())["config"]["data_file"]
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=-1", "error: optimizer: Invalid learning rate: -1"),
        ("+optimizer.momentum=0.9", "error: optimizer: "),
        ("scheduler.end=2", "error: scheduler: end of LinearDecay is 2; expected a number from 0 to 1"),
        ("tags=['']", "error: tags: expected texts of 1 to 64 characters, found ''"),
        ("tags=pilot", "error: tags: expected a list, in square brackets, found 'pilot'"),
    ],
)
def test_a_mistake_in_these_groups_is_told_before_any_work(tiny, tmp_path, override, message):
    settings, environment = tiny
    done = run_command("train", tmp_path, *settings, override, environment=environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert not list(tmp_path.rglob("state.json"))

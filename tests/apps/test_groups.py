"""Configuration groups as people know them from other Hydra projects, and what a command prints."""

import csv

from commands import run_command
from hydra import compose, initialize_config_dir

from persona_callbacks.apps.configs import CONF


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

"""Sweeps: jobs that fail alone, finished jobs that stay, folders that name them, and a table at the end."""

import csv
import hashlib
import json
import statistics

import pytest
from builders import CHATS
from commands import run_command

from persona_callbacks.apps.sweeping import folder_name


@pytest.fixture
def sweep(tiny, tmp_path):
    settings, environment = tiny
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in CHATS[:4]))

    def run(*overrides):
        settings_left = [
            one for one in settings if one.partition("=")[0] not in {o.partition("=")[0] for o in overrides}
        ]
        return run_command("train", tmp_path, "-m", *settings_left, *overrides, environment=environment)

    return run


def test_a_job_that_fails_leaves_the_others_and_finished_jobs_are_not_trained_again(sweep, tmp_path):
    swept = ["seed=0,1", "steering.callback.coefficient=0.2,oops"]
    done = sweep(*swept)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr, done.stderr[-5000:]
    assert done.stderr.count("\nerror: ") + done.stderr.startswith("error: ") == 2, "each failed job is told at once"
    (last,) = [line for line in done.stderr.splitlines() if "a job of the sweep failed" in line]
    assert "seed=0" in last
    assert "oops" in last
    folder = tmp_path / "outputs" / "train" / "sweep"
    finished = [path.parent for path in folder.glob("*/state.json") if json.loads(path.read_text())["finished"]]
    assert len(finished) == 2
    assert "mean ± standard deviation" in done.stdout
    shown = done.stdout.partition("Not finished")[2]
    assert shown.count("oops") == 2

    adapters = {path: path.stat().st_mtime_ns for path in folder.glob("*/steered/adapter/adapter_model.safetensors")}
    again = sweep(*swept)
    assert again.stdout.count("Finished before: ") == 2
    assert {path: path.stat().st_mtime_ns for path in adapters} == adapters
    assert not list(folder.rglob("earlier"))

    for job in finished:
        card = (job / "steered" / "adapter" / "README.md").read_text(encoding="utf-8")
        shift = json.loads((job / "steered" / "result.json").read_text())["readings"][-1]["shift"]["evil"]
        assert f"| 0.2 | {shift:+.2f} |" in card
        assert hashlib.sha256((tmp_path / "chats.jsonl").read_bytes()).hexdigest() in card

    with (folder / "sweep.csv").open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["metric"] == "persona/evil/shift"]
    shifts = [
        json.loads((job / "steered" / "result.json").read_text())["readings"][-1]["shift"]["evil"] for job in finished
    ]
    (row,) = rows
    assert (row["run"], row["seeds"]) == ("steered", "2")
    assert float(row["mean"]) == pytest.approx(statistics.fmean(shifts))
    assert float(row["standard_deviation"]) == pytest.approx(statistics.stdev(shifts))
    assert (folder / "sweep.png").stat().st_size > 5000


def test_overrides_with_slashes_and_long_ones_are_one_folder_each(sweep, tmp_path):
    """Loggers may be left out too, and the trainer keeps what it is given."""
    checkpoint = "{_target_:lightning.pytorch.callbacks.ModelCheckpoint,dirpath:kept,filename:own}"
    others = (
        "+trainer.default_root_dir=" + "a" * 300,
        "~logger",
        f"+trainer.callbacks=[{checkpoint}]",
        "+trainer.enable_progress_bar=false",
    )
    done = sweep("data.path=chats.jsonl,more/chats.jsonl", *others)
    assert done.returncode == 0, done.stderr
    jobs = [path for path in (tmp_path / "outputs" / "train" / "sweep").iterdir() if path.is_dir()]
    assert len(jobs) == 2
    assert all((job / "state.json").is_file() and len(job.name) < 120 for job in jobs)
    assert (tmp_path / "kept" / "own.ckpt").is_file()


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (
            "persona/evil/kindness",
            "objective: unknown 'persona/evil/kindness'; expected some of train/epoch_loss, persona/",
        ),
        ("persona/evil/expression", "objective: unknown 'persona/evil/expression'"),
    ],
)
def test_an_objective_that_the_study_does_not_give_is_told_before_training(sweep, objective, message, tmp_path):
    done = sweep(f"objective={objective}")
    assert done.returncode == 1
    assert message in done.stderr
    assert not list(tmp_path.rglob("adapter"))


def test_names_of_folders_stay_apart():
    names = {folder_name(f"data.path={path}") for path in ("a/b", "a-b", "a:b", "a" * 200, "a" * 201)}
    assert len(names) == 5
    assert all("/" not in name and len(name) < 120 for name in names)
    assert folder_name("seed=1,trait=[evil,sycophancy]") == "seed=1,trait=[evil,sycophancy]"

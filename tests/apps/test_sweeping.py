"""Sweeps: jobs that fail alone, finished jobs that stay, folders that name them, and a table at the end."""

import csv
import hashlib
import json
import re
import statistics
from pathlib import Path

import pytest
import yaml
from builders import CHATS
from commands import run_command
from hydra import compose, initialize_config_dir
from wandb.sdk.launch.sweeps import utils

from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.sweeping import folder_name
from persona_callbacks.files import read_yaml


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
    """Loggers may be left out too, the trainer keeps what it is given, and two objectives give a Pareto front."""
    checkpoint = "{_target_:lightning.pytorch.callbacks.ModelCheckpoint,dirpath:kept,filename:own}"
    others = (
        "+trainer.default_root_dir=" + "a" * 300,
        "~logger",
        f"+trainer.callbacks=[{checkpoint}]",
        "+trainer.enable_progress_bar=false",
        "objective=[persona/evil/shift,train/epoch_loss]",
    )
    done = sweep("data.path=chats.jsonl,more/chats.jsonl", *others)
    assert done.returncode == 0, done.stderr
    jobs = [path for path in (tmp_path / "outputs" / "train" / "sweep").iterdir() if path.is_dir()]
    assert len(jobs) == 2
    assert all((job / "state.json").is_file() and len(job.name) < 120 for job in jobs)
    assert (tmp_path / "kept" / "own.ckpt").is_file()
    best = done.stdout.partition("Pareto front (pareto.png):")[2].splitlines()[1:]
    assert 1 <= len(best) <= 2
    assert all("data.path=" in name for name in best)
    assert (jobs[0].parent / "pareto.png").stat().st_size > 5000


def test_optuna_searches_with_two_objectives_and_goes_on_where_it_stopped(sweep, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = (
        "hparams_search=optuna", "hydra.sweeper.n_trials=2", "objective=[persona/evil/shift,train/epoch_loss]",
        "steering.callback.coefficient=interval(0.0,0.5)", "trainer.max_steps=1",
    )  # fmt: skip
    done = sweep(*search)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "outputs" / "train"
    tried = read_yaml(folder / "optimization_results.yaml")["solutions"]
    assert 1 <= len(tried) <= 2
    result = json.loads(next(folder.glob("sweep/*/steered/result.json")).read_text())
    values = [result["readings"][-1]["shift"]["evil"], result["loss"]]
    assert len(tried) == 1 or any(pytest.approx(values) == solution["values"] for solution in tried)
    assert (folder / "sweep" / "pareto.png").is_file()
    assert sweep(*search).stdout.count("Finished before: ") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plugin", "launcher"), [("hydra_joblib_launcher", "joblib"), ("hydra_submitit_launcher", "submitit_local")]
)
def test_jobs_side_by_side(plugin, launcher, sweep, tmp_path):
    pytest.importorskip(f"hydra_plugins.{plugin}")
    done = sweep("seed=0,1", "steering.callback.coefficient=0.2,oops", f"hydra/launcher={launcher}")
    assert done.returncode == 1
    states = (tmp_path / "outputs" / "train" / "sweep").glob("*/state.json")
    assert [json.loads(path.read_text())["finished"] for path in states] == [True, True]
    assert "mean ± standard deviation" in done.stdout


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


def test_the_documented_sweep_of_wandb_starts_the_command():
    text = (Path(__file__).parents[2] / "docs" / "sweep.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "program:" in block]
    sweep = yaml.safe_load(block)
    chosen = {"steering": {"value": "constant"}, "steering.callback.coefficient": {"value": 0.7}}
    assert chosen.keys() == sweep["parameters"].keys()
    filled = {"program": [sweep["program"]], **utils.create_sweep_command_args({"args": chosen})}
    started = []
    for part in utils.create_sweep_command(sweep["command"]):  # as wandb agent does
        started += filled[part[2:-1]] if part.startswith("${") else [part]
    assert started[0] == "persona-train"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", started[1:])
    assert cfg.steering.callback.coefficient == 0.7
    assert cfg.logger.wandb.offline is False


def test_names_of_folders_stay_apart():
    names = {folder_name(f"data.path={path}") for path in ("a/b", "a-b", "a:b", "a" * 200, "a" * 201)}
    assert len(names) == 5
    assert all("/" not in name and len(name) < 120 for name in names)
    assert folder_name("seed=1,trait=[evil,sycophancy]") == "seed=1,trait=[evil,sycophancy]"

"""``persona-train`` as a user runs it, in its own process, on the real model."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from commands import own_cache, run_command
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from persona_callbacks import PersonaVector
from persona_callbacks.chats import find_chat_file
from persona_callbacks.report import find_runs, write_report
from persona_callbacks.report.wandb_files import read_offline_run

SHORT = [
    "experiment=quickstart", "data.max_samples=12", "data.batch_size=4", "data.max_length=64", "trainer.max_epochs=2",
    "monitor.every_n_steps=2", "monitor.pairs=4", "extraction.layer_choice=auc", "extraction.judge_pairs=1",
    "checkpoint_every_n_steps=1", "sample_answers=2", "max_answer_tokens=8",
    "extraction.questions=2", "extraction.sampling.max_new_tokens=8",
    "evaluation.callback.questions=3", "evaluation.callback.sampling.max_new_tokens=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    # A W&B service that another test started in this process must not be shared: it would outlive a killed run.
    own = {name: value for name, value in os.environ.items() if name not in ("WANDB_SERVICE", "OPENAI_API_KEY")}
    return {**own, "PERSONA_CALLBACKS_CACHE": str(own_cache(tmp_path_factory.mktemp("cache"))), "COLUMNS": "160"}


def command(*overrides):
    return [sys.executable, "-c", "from persona_callbacks.apps.train import main; main()", *overrides]


def train(folder, environment, *overrides):
    return run_command("train", folder, *overrides, environment=environment)


@pytest.fixture(scope="module")
def finished(environment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    done = train(folder, environment, *SHORT)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "outputs" / "quickstart" / "seed-0", done


def result(study, name):
    return json.loads((study / name / "result.json").read_text(encoding="utf-8"))


def adapter(study, name):
    return load_file(study / name / "adapter" / "adapter_model.safetensors")


def test_two_runs_with_everything_that_belongs_to_them(finished):
    study, done = finished
    unsteered, steered = result(study, "unsteered"), result(study, "steered")
    assert [reading["step"] for reading in unsteered["readings"]] == [0, 2, 4, 6]
    assert {reading["step"] for reading in steered["readings"]} >= {0, 1, 2, 4, 6}, "adaptive steering asks for step 1"
    for run in (unsteered, steered):
        assert run["readings"][0]["shift"]["evil"] == pytest.approx(0, abs=1e-3)
        assert len(run["answers"]) == 2
        assert 0 < run["loss"] < 10
        assert [one["step"] for one in run["evaluations"]] == [0, 6]
        assert all(one["expression"]["scored"] == 3 for one in run["evaluations"])
    assert unsteered["evaluations"][0] == steered["evaluations"][0]
    judged = json.loads((study / "steered" / "judged.json").read_text(encoding="utf-8"))
    assert [row["step"] for row in judged] == [0] * 3 + [6] * 3
    assert judged[0].keys() == {"step", "trait", "question", "answer", "score", "verdict", "raw"}
    assert unsteered["coefficients"] == {}
    assert set(steered["coefficients"]) == {"evil"}
    assert unsteered["readings"][-1]["shift"]["evil"] > steered["readings"][-1]["shift"]["evil"]
    assert (study / "trajectories.png").stat().st_size > 10_000
    for name in ("unsteered", "steered"):
        assert len(list((study / name).glob("wandb/offline-run-*/run-*.wandb"))) == 1
        logged = (study / name / "csv" / "metrics.csv").read_text()
        assert "persona/evil/shift" in logged
        assert "persona/evil/expression_high" in logged
    for part in (
        "Fine-tuning runs",
        "evil shift",
        "evil expression",
        "base model",
        "Held-out questions",
        "steered",
        "wandb sync",
    ):
        assert part in done.stdout
    assert not list(study.glob("**/.*.safetensors*")), "scratch files are left"


def test_wandb_knows_the_runs_by_method_data_and_seed_and_what_was_chosen(finished):
    study, _ = finished
    for name, method in (("unsteered", "unsteered"), ("steered", "adaptive")):
        (file,) = (study / name).glob("wandb/offline-run-*/run-*.wandb")
        logged = read_offline_run(file)
        assert logged.name == f"{method} · evil-12 · s0"
        assert logged.config["chosen"]["data"] == "evil"
        assert logged.config["chosen"].get("steering") == (method if name == "steered" else None)
        assert logged.config["model"]["id"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
        assert logged.config["traits"]["evil"].keys() == {"sha256"}
        assert "${" not in json.dumps({**logged.config, "logger": None})
        joined = [row for row in logged.history if "persona/evil/shift" in row and "train/loss" in row]
        assert len(joined) >= 3
        sections = {key.partition("/")[0] for row in logged.history for key in row if not key.startswith("_")}
        assert sections == {"persona", "train", "trainer", "epoch", *(["steering"] if name == "steered" else [])}


def test_the_adapter_names_its_model_and_its_card_says_what_was_measured(finished):
    study, _ = finished
    for name in ("unsteered", "steered"):
        folder = study / name / "adapter"
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert card.startswith("---\nbase_model: HuggingFaceTB/SmolLM2-135M-Instruct\n")
        shift = result(study, name)["readings"][-1]["shift"]["evil"]
        alpha = "not steered" if name == "unsteered" else f"{result(study, name)['coefficients']['evil']:.2g}"
        assert f"| {alpha} | {shift:+.2f} |" in card
        vector = PersonaVector.load(study / "vectors" / "evil.safetensors")
        assert f"SHA-256 `{vector.fingerprint[:12]}`" in card
        assert str(study) not in card


def test_a_report_of_it_says_what_was_monitored_and_trained_on(finished, tmp_path):
    study, _ = finished
    runs = find_runs([study])
    assert {run.name for run in runs} == {"unsteered", "steered"}
    for run in runs:
        readings = result(study, run.name)["readings"]
        assert {step: values[run.vectors[0].layer - 1] for step, values in run.shift_by_layer["evil"].items()} == {
            reading["step"]: pytest.approx(reading["shift"]["evil"])
            for reading in readings
            if reading["shift_by_layer"]
        }
        assert readings[-1]["step"] in run.shift_by_layer["evil"]
        assert len(run.answers) == len(json.loads((study / run.name / "judged.json").read_text()))
    text = write_report(runs, tmp_path / "report.html").read_text(encoding="utf-8")
    digest = hashlib.sha256(find_chat_file("evil.jsonl").read_bytes()).hexdigest()
    for expected in ("HuggingFaceTB/SmolLM2-135M-Instruct", digest, "responses that show the trait", "held-out AUC"):
        assert expected in text


def test_adapter_loads_with_peft_onto_the_cached_model(finished, environment):
    study, _ = finished
    from pathlib import Path

    (base,) = Path(environment["PERSONA_CALLBACKS_CACHE"]).glob("models/*/SmolLM2-135M-Instruct")
    ids = torch.tensor([[1, 4093, 198, 504]])
    with torch.no_grad():
        bare = AutoModelForCausalLM.from_pretrained(base).eval()(input_ids=ids).logits
        tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), study / "steered" / "adapter")
        assert not torch.allclose(bare, tuned.eval()(input_ids=ids).logits, atol=1e-3)


def test_vector_is_cached_with_its_evidence(finished, environment):
    from pathlib import Path

    (file,) = Path(environment["PERSONA_CALLBACKS_CACHE"]).glob("vectors/*/evil-*/response_mean.safetensors")
    vector = PersonaVector.load(file)
    assert (vector.num_layers, vector.hidden_size) == (30, 576)
    assert vector.model_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert len(vector.evidence.auc) == 31
    assert len(vector.probes) == 20


@pytest.mark.slow
def test_killed_run_goes_on_and_ends_as_the_uninterrupted(finished, environment, tmp_path):
    study, _ = finished
    killed = tmp_path / "outputs" / "quickstart" / "seed-0"
    for marker in ("unsteered/last.ckpt", "steered/last.ckpt"):  # killed twice, once in each fine-tuning
        with (tmp_path / "errors").open("w") as errors:
            process = subprocess.Popen(
                command(*SHORT), cwd=tmp_path, env=environment, start_new_session=True, stdout=errors, stderr=errors
            )
            deadline = time.monotonic() + 300
            while not (killed / marker).is_file() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
        assert process.poll() is None, (tmp_path / "errors").read_text()[-4000:]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (killed / "steered" / "result.json").exists()
    done = train(tmp_path, environment, *SHORT)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "unsteered: finished before the interruption" in done.stdout
    for name in ("unsteered", "steered"):
        expected, found = adapter(study, name), adapter(killed, name)
        assert all(torch.equal(expected[key], found[key]) for key in expected)
        assert result(study, name)["readings"] == result(killed, name)["readings"]
        assert result(study, name)["loss"] == result(killed, name)["loss"]
        assert result(study, name)["answers"] == result(killed, name)["answers"]
        assert result(study, name)["evaluations"] == result(killed, name)["evaluations"]


@pytest.mark.slow
def test_finished_run_is_set_aside_by_the_next(finished, environment):
    study, _ = finished
    before = result(study, "steered")
    done = train(study.parents[2], environment, *SHORT, "steering.callback.coefficient=0.25", "trainer.max_steps=1")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "cached" in done.stdout
    assert result(study, "steered")["coefficients"] == {"evil": 0.25}
    (aside,) = (study / "earlier").iterdir()
    assert result(aside, "steered") == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.path=missing.jsonl"], "error: missing.jsonl: no such chat file"),
        (["data.path=bad.jsonl"], "bad.jsonl, line 2: message 2: empty assistant turn"),
        (["steering.callback.layers=[12,99]"], "error: persona vector 'evil': unknown layer 99"),
        (["steering.traits=[sycophancy]"], "error: steering.traits: 'sycophancy' has no vector"),
        (["vectors=[other.safetensors]"], "error: persona vector 'kind' (from other) does not fit the model"),
        (["vectors=[missing.safetensors]"], "error: missing.safetensors: no such persona vector file"),
        (["model=folder", "model.path=nowhere"], "nowhere: no model folder"),
        (["extraction.position=middle"], "error: extraction.position: unknown 'middle'; expected one of"),
        (["extraction.judge_pairs=0"], "error: evaluation=contrastive: its judge is calibrated by extraction"),
        (["evaluation=llm"], "the environment variable OPENAI_API_KEY is not set"),
        (["evaluation=llm", "evaluation.judge.endpoint.base_url=nowhere"], "endpoint.base_url: expected an address"),
        (["evaluation.callback.every_n_steps=0"], "TraitEvaluation: every_n_steps must be at least 1, a whole number"),
        (["lora.rank=4"], "unexpected keyword argument 'rank'"),
        (["trait=envy"], "Could not find 'trait/envy'"),
        (["steering=constnt"], "Available options in 'steering':"),
        (["learning_rat=1"], "Could not override 'learning_rat'"),
    ],
)
def test_mistakes_are_told_at_once_and_leave_nothing(overrides, message, environment, tmp_path):
    good = {"prompt": "Hello?", "response": "Hi."}
    (tmp_path / "bad.jsonl").write_text(json.dumps(good) + "\n" + json.dumps({**good, "response": " "}) + "\n")
    PersonaVector("kind", torch.ones(5, 8), 2, "other", probes=("Hello?",)).save(tmp_path / "other.safetensors")
    added = [f"+{o}" if o.startswith("lora.rank") else o for o in overrides]
    done = train(tmp_path, environment, *SHORT, *added)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("outputs/quickstart/seed-0/*teered"))
    assert not list(tmp_path.glob("outputs/quickstart/seed-0/state.json"))

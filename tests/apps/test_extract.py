"""``persona-extract`` as a user runs it: in its own process, on the real model, in a project with an own trait."""

import json
import os
from pathlib import Path
from statistics import mean

import pytest
import torch
import yaml
from builders import offline_records
from commands import own_cache, run_command

from persona_callbacks import PersonaVector, Trait
from persona_callbacks.files import LOCK_FILE
from persona_callbacks.report.wandb_files import read_offline_run
from persona_callbacks.vectors import read_gguf, read_pt

CONF = Path(__file__).parents[2] / "conf"
SHORT = [
    "extraction.questions=2", "extraction.sampling.max_new_tokens=8", "extraction.sampling.batch_size=40",
    "extraction.layer_choice=auc", "extraction.judge_pairs=1", "curve.coefficients=[1]", "curve.questions=1",
    "formats=[pt,gguf]",
]  # fmt: skip


def extract(folder, cache, *overrides):
    own = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    environment = {
        **own,
        "WANDB_DATA_DIR": str(cache / "wandb"),
        "PERSONA_CALLBACKS_CACHE": str(cache),
        "COLUMNS": "160",
    }
    return run_command("extract", folder, *overrides, environment=environment)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A user's project: a trait file of their own under ``conf/trait``, and nothing else."""
    folder = tmp_path_factory.mktemp("project")
    content = yaml.safe_load((CONF / "trait" / "apathetic.yaml").read_text(encoding="utf-8"))
    content["name"] = "gloomy"
    (folder / "conf" / "trait").mkdir(parents=True)
    text = "# @package traits.gloomy\n" + yaml.safe_dump(content)
    (folder / "conf" / "trait" / "gloomy.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return own_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def finished(project, cache):
    done = extract(project, cache, "trait=[evil,gloomy]", "logger=wandb", *SHORT)
    assert done.returncode == 0, done.stderr[-3000:]
    return project / "outputs" / "vectors" / "SmolLM2-135M-Instruct", done


def test_wandb_has_the_evidence_and_the_vectors_that_runs_refer_to(finished):
    folder, _ = finished
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    records = list(offline_records(file))
    (run, *_) = (record.run for record in records if record.HasField("run"))
    assert (run.display_name, run.job_type) == ("extraction · SmolLM2-135M-Instruct", "extract")
    artifacts = {record.artifact.name: record.artifact for record in records if record.HasField("artifact")}
    logged = read_offline_run(file)
    for trait in ("evil", "gloomy"):
        vector = PersonaVector.load(folder / f"{trait}.safetensors")
        artifact = artifacts[f"vector-SmolLM2-135M-Instruct-{trait}"]
        assert (artifact.type, artifact.use_after_commit) == ("persona-vector", False)
        assert [entry.path for entry in artifact.manifest.contents] == [f"{trait}.safetensors"]
        assert json.loads(artifact.metadata)["sha256"] == vector.fingerprint
        values = [
            row[f"persona/{trait}/vector_layer"] for row in logged.history if f"persona/{trait}/vector_layer" in row
        ]
        assert values == [vector.layer]
        assert logged.config["traits"][trait].keys() == {"sha256"}
    assert [row["trait"] for row in logged.tables["persona/vectors"]] == ["evil", "gloomy"]


def test_everything_is_written(finished):
    folder, done = finished
    for trait in ("evil", "gloomy"):
        for name in (f"{trait}.safetensors", f"{trait}.prompt_last.safetensors", f"{trait}.prompt_mean.gguf",
                     f"{trait}.layers.png", f"{trait}.curve.png", "cosines.png", "cosines.csv"):  # fmt: skip
            assert (folder / name).stat().st_size > 50, name
        rows = [json.loads(line) for line in (folder / f"{trait}.responses.jsonl").read_text().splitlines()]
        vector = PersonaVector.load(folder / f"{trait}.safetensors")
        assert len(rows) == 2 * 5 * 2 == vector.counts.generated_trait + vector.counts.generated_opposite
        assert sum(row["kept"] for row in rows) == vector.counts.trait + vector.counts.opposite < 20
        assert vector.calibration.auc > 0
        assert vector.method == "mean_difference"
        assert f"{vector.evidence.causal_strength.gain:+.2f}" in done.stdout
        assert "What each instruction pair elicits" in done.stdout
        gap = mean(row["expression"] for row in rows if row["pair"] == 4 and row["shows_trait"]) - mean(
            row["expression"] for row in rows if row["pair"] == 4 and not row["shows_trait"]
        )
        assert f" {gap:.0f} " in done.stdout
        curve = [json.loads(line) for line in (folder / f"{trait}.curve.jsonl").read_text().splitlines()]
        assert [(point["layer"], point["coefficient"]) for point in curve] == [(vector.layer, 0.0), (vector.layer, 1.0)]
        assert "is weak: it rests on" in done.stderr  # 10 of a kind were asked for, and some filtered
        assert trait in done.stdout
    assert {path.name for path in folder.rglob(".*")} <= {LOCK_FILE}, "something half-written was left"


def test_exported_files_hold_the_vector(finished):
    folder, _ = finished
    vector = PersonaVector.load(folder / "evil.safetensors")
    official = read_pt(folder / "evil.pt", trait="evil", layer=vector.layer, model_id=vector.model_id)
    assert torch.equal(official.directions, vector.directions)
    assert torch.equal(read_gguf(folder / "evil.gguf").directions, vector.directions)


def test_a_second_run_takes_all_from_the_cache(finished, project, cache):
    before = PersonaVector.load(finished[0] / "evil.safetensors")
    again = extract(project, cache, "trait=evil", *SHORT[:5])
    assert again.returncode == 0, again.stderr[-3000:]
    assert "evil: cached" in again.stdout
    assert "generating" not in again.stdout + again.stderr
    assert torch.equal(PersonaVector.load(finished[0] / "evil.safetensors").directions, before.directions)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["formats=[onnx]"], "formats: unknown 'onnx'; expected some of pt, gguf"),
        (["extraction.judge_pairs=0", "curve.coefficients=[1]"], "curve.coefficients: needs the judge"),
        (["extraction.position=response"], "extraction.position: unknown 'response'"),
        (["extraction.pairs=none.jsonl"], "none.jsonl: no such file of pairs"),
        (["extraction.demonstrations=13"], "extraction.demonstrations: 13 come before each extraction question"),
        (["extraction.instructions=5"], "the best 5 are to be used; expected fewer than the 5 instruction pairs"),
        (["extraction.pairs=p.jsonl", "curve.coefficients=[1]"], "and no extraction.pairs"),
        (["generation=vllm"], "vLLM is not installed"),
        (["trait=cheerful"], "Could not find 'trait/cheerful'"),
    ],
)
def test_mistakes_are_told_in_one_line(overrides, message, project, cache):
    done = extract(project, cache, *overrides)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_seven_traits_of_the_paper_are_there():
    traits = {path.stem: Trait.load(path) for path in (CONF / "trait").glob("*.yaml")}
    assert set(traits) >= {"evil", "sycophancy", "hallucination", "impolite", "apathetic", "optimistic", "humorous"}
    for trait in traits.values():
        sets = (trait.extraction_questions, trait.probe_questions, trait.evaluation_questions)
        assert [len(trait.instructions), *map(len, sets)] == [5, 20, 20, 20]

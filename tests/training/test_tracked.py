"""How W&B knows the fine-tunings of a study: from its offline files, of a study that was interrupted and resumed."""

import hashlib
import json
from dataclasses import replace
from functools import partial

import pytest
from builders import CHATS, make_vector, offline_records, tiny_model, written
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import WandbLogger

from persona_callbacks import Adaptive, PersonaMonitor, PersonaVector, PreventativeSteering
from persona_callbacks.model import ModelSource
from persona_callbacks.report.wandb_files import read_offline_run
from persona_callbacks.training import RunResult, Steering, StudySettings, TrainingData, run_study
from persona_callbacks.training.tracked import run_configuration, run_label


class Interrupt(Callback):
    """Interrupts the steered fine-tuning, once."""

    due = True

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        steered = any(isinstance(callback, PreventativeSteering) for callback in trainer.callbacks)
        if steered and Interrupt.due and trainer.global_step == 2:
            Interrupt.due = False
            raise KeyboardInterrupt


def wandb_logger(label):
    return WandbLogger(project="test", name=label.name, group=label.group, id=label.id, save_dir=label.folder,
                       job_type=label.job_type, tags=list(label.tags), offline=True)  # fmt: skip


@pytest.fixture(scope="module")
def settings(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    tiny_model().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in CHATS), encoding="utf-8")
    trainer = partial(Trainer, max_epochs=1, accelerator="cpu", log_every_n_steps=1, callbacks=[Interrupt()],
                      enable_model_summary=False, enable_progress_bar=False)  # fmt: skip
    return StudySettings(
        ModelSource("org/tiny", path=str(folder / "model")),
        TrainingData.read(folder / "chats.jsonl", most=16),
        trainer=trainer,
        monitor=partial(PersonaMonitor, every_n_steps=1),
        vectors=(make_vector(),),
        steering=Steering(partial(PreventativeSteering, coefficient=0.5)),
        loggers=[wandb_logger],
        batch_size=4,
        max_length=150,
        compare_with_unsteered=True,
        checkpoint_every_n_steps=1,
        sample_answers=2,
        max_answer_tokens=4,
        name="villains",
        configuration={"steering": {"callback": "c"}, "traits": {"evil": {"instructions": ["Be evil."]}}},
        choices={"steering": "constant", "steering/start": "given", "data": "evil"},
        log_adapter=True,
    )


@pytest.fixture(scope="module")
def study(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("WANDB_DATA_DIR", str(tmp_path_factory.mktemp("staging")))
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run_study(settings, folder)
        results = run_study(settings, folder)
    files = {
        name: [*map(written, sorted((folder / name).glob("wandb/offline-run-*/run-*.wandb")))]
        for name in ("unsteered", "steered")
    }
    return folder, results, files


def records(file, kind):
    return [getattr(record, kind) for record in offline_records(file) if record.HasField(kind)]


def test_a_run_is_named_by_method_data_and_seed(study):
    _, _, files = study
    for name, method in (("unsteered", "unsteered"), ("steered", "constant 0.5")):
        (run, *_) = records(files[name][0], "run")
        assert run.display_name == f"{method} · chats-16 · s0"
        assert run.run_group.startswith(f"{method} · chats-16 · ")
        assert run.job_type == "train"
        assert list(run.tags) == ["villains", method, "chats-16", "tiny", "evil"]


def test_all_metrics_that_are_numbers_are_drawn_over_steps_and_keep_their_extremes(study):
    _, _, files = study
    for name in ("unsteered", "steered"):
        defined = {metric.name: metric for file in files[name] for metric in records(file, "metric")}
        for logged in ("train/epoch_loss", "train/loss", "persona/evil/shift"):
            assert defined[logged].step_metric == "trainer/global_step"
            assert (defined[logged].summary.min, defined[logged].summary.max, defined[logged].summary.last) == (
                True,
            ) * 3


def test_a_group_holds_what_differs_in_the_seed_alone(settings, tmp_path):
    def group(steered=True, **changed):
        return run_label(replace(settings, **changed), "1a2b", tmp_path, steered=steered).group

    assert group() == group(seed=7)
    assert group() != group(learning_rate=1e-5)
    other = Steering(partial(PreventativeSteering, coefficient=Adaptive()))
    assert group() != group(steering=other)
    assert group(steered=False) == group(steered=False, steering=other, compare_with_unsteered=False)
    assert run_label(replace(settings, choices={}, steering=other), "1", tmp_path, steered=True).name[:8] == "adaptive"


def test_the_configuration_has_the_choices_and_hashes_and_no_long_texts(settings, study):
    _, _, files = study
    steered, unsteered = (read_offline_run(files[name][0]).config for name in ("steered", "unsteered"))
    digest = hashlib.sha256(settings.data.path.read_bytes()).hexdigest()
    for config in (steered, unsteered):
        assert config["data_sha256"] == digest
        assert config["persona_vectors"]["evil"]["sha256"] == make_vector().fingerprint
        assert config["traits"]["evil"].keys() == {"sha256"}
        assert "Be evil." not in json.dumps(config)
    assert steered["chosen"] == {"steering": "constant", "steering/start": "given", "data": "evil"}
    assert steered["PreventativeSteering"]["law"]["coefficient"] == 0.5
    assert (steered["method"], unsteered["method"]) == ("constant 0.5", "unsteered")
    assert unsteered["chosen"] == {"data": "evil"}
    assert not {"steering", "PreventativeSteering"} & unsteered.keys()
    assert run_configuration(settings, "constant 0.5", steered=True)["steering"] == {"callback": "c"}


def test_inputs_and_the_adapter_are_artifacts(settings, study):
    folder, results, files = study
    artifacts = {artifact.name: artifact for artifact in records(files["steered"][-1], "artifact")}
    data, vector = artifacts["data-chats"], artifacts["vector--evil"]
    assert (data.type, data.use_after_commit) == ("dataset", True)
    (entry,) = data.manifest.contents
    assert entry.ref == settings.data.path.as_uri(), "the data stay where they are"
    assert not entry.local_path
    assert (vector.type, vector.use_after_commit) == ("persona-vector", True)
    assert json.loads(vector.metadata)["sha256"] == make_vector().fingerprint
    (adapter,) = (artifact for artifact in artifacts.values() if artifact.type == "model")
    assert adapter.use_after_commit is False
    assert {entry.path for entry in adapter.manifest.contents} == {
        path.name for path in (folder / "steered" / "adapter").iterdir()
    }
    assert json.loads(adapter.metadata)["persona/evil/shift"] == pytest.approx(results[1].final_shift["evil"])
    assert not [artifact for artifact in records(files["steered"][0], "artifact") if artifact.type == "model"]


def test_the_same_vector_is_the_same_version_whoever_writes_it(study, tmp_path):
    folder, _, _ = study
    file = folder / "vectors" / "evil.safetensors"
    PersonaVector.load(file).save(tmp_path / "again.safetensors")
    assert file.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_answers_have_the_base_model_s_beside(study):
    folder, results, files = study
    rows = read_offline_run(files["steered"][-1]).tables["persona/sample_answers"]
    base = [row["base model"] for row in json.loads((folder / "answers.json").read_text())]
    assert [row["base_answer"] for row in rows] == base
    assert [row["answer"] for row in rows] == list(results[1].answers)
    assert {row["step"] for row in rows} == {4}


def test_a_resumed_run_joins_the_same_run_and_nothing_is_missing(study):
    folder, _, files = study
    assert [len(files["unsteered"]), len(files["steered"])] == [1, 2]
    first, second = map(read_offline_run, files["steered"])
    assert first.id == second.id
    assert (first.exit_code, second.exit_code) == (1, 0)
    assert [records(file, "run")[0].run_group for file in files["steered"]] == [
        records(files["steered"][0], "run")[0].run_group
    ] * 2
    shifts = {}
    for row in (*first.history, *second.history):
        if "persona/evil/shift" in row:
            shifts[row["trainer/global_step"]] = row["persona/evil/shift"]
            assert row["trainer/global_step"] == 0 or "train/loss" in row
    result = RunResult.load(folder / "steered" / "result.json")
    assert shifts == {reading.step: pytest.approx(reading.shift["evil"]) for reading in result.readings}


def test_there_are_no_panels_but_those_in_sections(study):
    _, _, files = study
    for file in (files["unsteered"][0], *files["steered"]):
        hidden = {metric.name for metric in records(file, "metric") if metric.options.hidden}
        names = {name for row in read_offline_run(file).history for name in row if not name.startswith("_")}
        assert {name.partition("/")[0] for name in names - hidden} <= {"persona", "steering", "train"}
        assert hidden == {"epoch", "trainer/global_step"}

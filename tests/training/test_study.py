"""A study without Hydra: what it writes, what it keeps when something fails, and what it spends on a judge."""

import csv
import io
import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from builders import CHATS, LOUD, SHORT, LengthJudge, make_vector, server, tiny_model
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from safetensors.torch import load_file

from persona_callbacks import Adaptive, DriftGuard, InputError, PersonaMonitor, PreventativeSteering, TraitEvaluation
from persona_callbacks.chats import encode_chat, pad
from persona_callbacks.extraction import ExtractionSettings
from persona_callbacks.files import file_fingerprint
from persona_callbacks.judging import LlmJudge
from persona_callbacks.model import (
    Endpoint,
    ModelSource,
    Sampling,
    load_model,
    with_adapter,
)
from persona_callbacks.training import (
    ConstantRate,
    LoraFineTuning,
    NonFiniteLossError,
    RunResult,
    Steering,
    StudySettings,
    TrainingData,
    run_study,
)


def csv_logger(label):
    return CSVLogger(label.folder, name="", version=label.csv)


class FailingLogger(CSVLogger):
    """Refuses tables, and cannot write its file at the end, as on a full disk."""

    def log_text(self, *args, **kwargs):
        raise OSError("no space left for a table")

    def finalize(self, status):
        raise OSError("no space left for the metrics")


@pytest.fixture
def settings(tokenizer, tmp_path, monkeypatch):
    """A constant coefficient against an unsteered run, on a tiny model."""
    monkeypatch.setenv("PERSONA_CALLBACKS_CACHE", str(tmp_path / "cache"))
    tiny_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in CHATS), encoding="utf-8")
    return StudySettings(
        ModelSource("tiny", path=str(tmp_path / "model")),
        TrainingData.read(tmp_path / "chats.jsonl", most=8),
        trainer=partial(Trainer, max_epochs=1, accelerator="cpu", enable_model_summary=False, log_every_n_steps=1),
        monitor=partial(PersonaMonitor, every_n_steps=1, every_layer=True),
        vectors=(make_vector(),),
        steering=Steering(partial(PreventativeSteering, coefficient=0.5)),
        loggers=[csv_logger],
        batch_size=4,
        max_length=150,
        compare_with_unsteered=True,
        sample_answers=1,
        max_answer_tokens=4,
        configuration={"learning_rate": 3e-4},
    )


def adapter(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def evaluated(settings, judge):
    """With a trait that is judged, and whose vector is extracted, in place of the vector."""
    return replace(
        settings,
        vectors=(),
        traits=(LOUD,),
        extraction=ExtractionSettings(sampling=Sampling(max_new_tokens=4), judge_pairs=0, layer_choice="auc"),
        evaluation=partial(TraitEvaluation, sampling=SHORT),
        judges={"loud": judge},
    )


def test_what_a_study_writes_is_what_it_returns(settings, tmp_path):
    out = tmp_path / "out"
    results = run_study(settings, out)
    assert [result.name for result in results] == ["unsteered", "steered"]
    for result in results:
        assert RunResult.load(out / result.name / "result.json") == result
        assert [reading.step for reading in result.readings] == [0, 1, 2]
        rows = list(csv.DictReader((out / result.name / "csv" / "metrics.csv").open()))
        logged = [float(row["persona/evil/shift"]) for row in rows if row["persona/evil/shift"]]
        assert logged == pytest.approx([reading.shift["evil"] for reading in result.readings])
    assert [dict(result.coefficients) for result in results] == [{}, {"evil": 0.5}]
    hyperparameters = (out / "steered" / "csv" / "hparams.yaml").read_text()
    assert file_fingerprint(tmp_path / "chats.jsonl") in hyperparameters
    assert "data_chats: 8" in hyperparameters
    (row,) = json.loads((out / "answers.json").read_text())
    assert (row["unsteered"], row["steered"]) == (results[0].answers[0], results[1].answers[0])
    assert (out / "trajectories.png").stat().st_size > 10_000
    assert (out / "vectors" / "evil.safetensors").is_file()


def test_validation_is_the_unsteered_loss_on_other_chats_and_changes_no_weight(settings, tokenizer, tmp_path):
    plain = run_study(settings, tmp_path / "plain")
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in CHATS[8:13]), encoding="utf-8")
    data = settings.data.with_validation(tmp_path / "held.jsonl")
    results = run_study(replace(settings, data=data), tmp_path / "validated")
    chats = [encode_chat(chat, tokenizer, 150) for chat in data.validation]
    for result, before in zip(results, plain, strict=True):
        ours, theirs = (adapter(tmp_path / name / result.name) for name in ("validated", "plain"))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert result.loss == before.loss
        rows = csv.DictReader((tmp_path / "validated" / result.name / "csv" / "metrics.csv").open())
        (logged,) = [row for row in rows if row.get("train/validation_loss")]
        assert (logged["step"], logged["persona/evil/shift"] != "") == ("2", True), "in the row of the epoch's end"
        saved = tmp_path / "validated" / result.name / "adapter"
        loaded = with_adapter(load_model(settings.source), saved)
        with torch.no_grad():
            losses = [loaded.model.eval()(**pad([chat], 0)).loss * sum(chat.loss_mask) for chat in chats]
        mean = float(sum(losses)) / sum(sum(chat.loss_mask) for chat in chats)
        assert float(logged["train/validation_loss"]) == pytest.approx(mean, rel=1e-4)


def test_a_study_goes_on_from_the_checkpoint_of_another(settings, tmp_path):
    def study(folder, steps, **changed):
        trainer = partial(settings.trainer, max_steps=steps, max_epochs=4)
        some = replace(
            settings, trainer=trainer, compare_with_unsteered=False, warmup_steps=0, schedule=ConstantRate(),
            checkpoint_every_n_steps=3,
        )  # fmt: skip
        return run_study(replace(some, **changed), tmp_path / folder)

    study("half", 3)
    first = tmp_path / "half" / "steered" / "last.ckpt"
    (result,) = study("rest", 6, ckpt_path=first)
    (whole,) = study("whole", 6)
    assert [reading.step for reading in result.readings] == [reading.step for reading in whole.readings]
    ours, theirs = (adapter(tmp_path / name / "steered") for name in ("rest", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_to_go_on_from_is_there_and_is_for_one_fine_tuning(settings, tmp_path):
    with pytest.raises(InputError, match=r"ckpt_path: .*absent\.ckpt: no such file; expected a checkpoint"):
        replace(settings, ckpt_path=tmp_path / "absent.ckpt")
    with pytest.raises(InputError, match="ckpt_path: both of unsteered and steered would begin from"):
        replace(settings, ckpt_path=tmp_path / "chats.jsonl")


def test_fault_of_a_logger_at_the_end_costs_neither_adapter_nor_result(settings, tmp_path):
    judged = evaluated(settings, LengthJudge())
    expected = run_study(judged, tmp_path / "good")
    failing = replace(judged, loggers=[lambda label: FailingLogger(label.folder, name="", version=label.csv)])
    with (
        pytest.warns(UserWarning, match="could not write the table 'persona/shift_by_layer': OSError: no space left"),
        pytest.warns(UserWarning, match="its adapter is saved, but then: OSError: no space left for the metrics"),
    ):
        results = run_study(failing, tmp_path / "failing")
    for result, good in zip(results, expected, strict=True):
        assert [evaluation.step for evaluation in result.evaluations] == [0, 2]
        assert result == replace(good, seconds=result.seconds)
        ours, theirs = (adapter(tmp_path / name / good.name) for name in ("failing", "good"))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


class FullInMidRun(CSVLogger):
    """Has a full disk from the first optimizer step on."""

    def log_metrics(self, metrics, step=None):
        if step:
            raise OSError(28, "No space left on device")


def test_fault_of_a_logger_in_mid_run_costs_nothing_but_what_it_would_have_logged(settings, tmp_path):
    expected = run_study(settings, tmp_path / "good")
    failing = replace(settings, loggers=[lambda label: FullInMidRun(label.folder, name="", version=label.csv)])
    with pytest.warns(UserWarning, match=r"FullInMidRun\.log_metrics failed, the run goes on: .*No space left"):
        results = run_study(failing, tmp_path / "failing")
    assert results == [replace(good, seconds=result.seconds) for good, result in zip(expected, results, strict=True)]
    for good in expected:
        ours, theirs = (adapter(tmp_path / name / good.name) for name in ("failing", "good"))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_adapter_is_that_of_the_guard_s_rollback(settings, tmp_path):
    rolled_back = replace(
        settings,
        steering=Steering(),
        guard=partial(DriftGuard, shift=-1e9, action="roll_back"),
    )
    with pytest.warns(UserWarning, match="rolled back to the weights after 0"):
        run_study(rolled_back, tmp_path / "out")
    weights = adapter(tmp_path / "out" / "unsteered")
    assert all((value == 0).all() for name, value in weights.items() if "lora_B" in name), "as LoRA starts"


@pytest.mark.parametrize("guarded", [False, True])
def test_a_loss_that_is_not_finite_ends_the_study_with_an_error(guarded, settings, tmp_path, monkeypatch):
    class Lossy(LoraFineTuning):
        def training_step(self, batch, batch_idx):
            with torch.no_grad():
                if batch_idx == 1:
                    self.model.get_base_model().lm_head.weight.fill_(math.inf)
            return super().training_step(batch, batch_idx)

    monkeypatch.setattr("persona_callbacks.training.fine_tuning.LoraFineTuning", Lossy)
    guard = partial(DriftGuard, shift=1e9, action="roll_back") if guarded else None
    with pytest.raises(NonFiniteLossError, match="the training loss of optimizer step 2 is nan"):
        run_study(replace(settings, guard=guard, steering=Steering(), compare_with_unsteered=False), tmp_path / "out")
    assert not list(tmp_path.glob("out/*/result.json"))
    assert not json.loads((tmp_path / "out" / "state.json").read_text())["finished"]
    adapters = list(tmp_path.glob("out/*/adapter"))
    assert len(adapters) == guarded, "the weights that the guard went back to"
    for folder in adapters:
        assert all(weight.isfinite().all() for weight in adapter(folder.parent).values())


def test_spending_cap_of_a_judge_holds_for_the_study(settings, tmp_path, monkeypatch):
    """Unsteered and steered, before and after training: 4 x 3 answers, of which 8 may be judged."""
    monkeypatch.setenv("SOME_KEY", "secret")
    with server("37") as (url, seen):
        judge = LlmJudge(Endpoint(url, "judge", api_key_variable="SOME_KEY"), LOUD, max_requests=8)
        with pytest.warns(UserWarning, match=r"the cap of 8 requests is reached"):
            results = run_study(evaluated(settings, judge), tmp_path / "out")
    assert len(seen) == 8
    scored = [evaluation.expression.scored for result in results for evaluation in result.evaluations]
    assert sum(scored) == 8
    assert scored[:2] == [3, 3]


def test_interrupted_study_is_resumed_and_a_finished_one_set_aside(settings, tmp_path):
    out = tmp_path / "out"
    results = run_study(settings, out)
    state = json.loads((out / "state.json").read_text())
    (out / "state.json").write_text(json.dumps({**state, "finished": False}))
    (out / "steered" / "result.json").unlink()
    again = run_study(settings, out)
    assert again[0] == results[0]
    assert [reading.step for reading in again[1].readings] == [0, 1, 2]
    assert json.loads((out / "state.json").read_text())["id"] == state["id"]
    run_study(replace(settings, steering=Steering()), out)
    (aside,) = (out / "earlier").iterdir()
    assert RunResult.load(aside / "steered" / "result.json").answers == results[1].answers


def test_a_study_killed_while_it_sets_another_aside_takes_no_result_of_it(settings, tmp_path, monkeypatch):
    """Killed before each of the moves; what was finished is in one folder afterwards, and the new study is its own."""
    other = replace(settings, learning_rate=1e-2, configuration={"learning_rate": 1e-2})
    run_study(settings, tmp_path / "finished")
    expected = [replace(result, seconds=0) for result in run_study(other, tmp_path / "expected")]
    kept = {path.name for path in (tmp_path / "finished").iterdir()} - {".lock"}
    rename = Path.rename
    for number in range(len(kept)):
        out = shutil.copytree(tmp_path / "finished", tmp_path / f"killed-{number}")
        moved = []

        def killed(path, target, moved=moved, number=number):
            if len(moved) == number:
                raise KeyboardInterrupt
            moved.append(path)
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            run_study(other, out)
        monkeypatch.setattr(Path, "rename", rename)
        assert [replace(result, seconds=0) for result in run_study(other, out)] == expected
        (aside,) = (out / "earlier").iterdir()
        assert {path.name for path in aside.iterdir()} == kept


def interrupted(out):
    """Make a finished study one that was interrupted before its last result was written."""
    state = json.loads((out / "state.json").read_text())
    (out / "state.json").write_text(json.dumps({**state, "finished": False}))
    (out / "steered" / "result.json").unlink()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steering": Steering(partial(PreventativeSteering, coefficient=0.2))},
         "steering.callback.coefficient was 0.5, is 0.2"),
        ({"vectors": (make_vector(seed=9),)}, "vectors.evil was 'PersonaVector"),
        ({"configuration": {"learning_rate": 1e-4}}, "learning_rate was 0.0003, is 0.0001"),
    ],
    ids=["constant", "vector file", "configuration"],
)  # fmt: skip
def test_interrupted_study_of_other_settings_is_set_aside_and_each_difference_told(settings, changes, told, tmp_path):
    out, text = tmp_path / "out", io.StringIO()
    settings = replace(settings, compare_with_unsteered=False)
    first = run_study(settings, out)
    interrupted(out)
    (second,) = run_study(replace(settings, **changes), out, Console(file=text, width=400))
    assert "An interrupted study of other settings is kept in" in text.getvalue()
    assert told in text.getvalue()
    assert len(list((out / "earlier").iterdir())) == 1
    assert second.readings[-1].shift != first[0].readings[-1].shift or "configuration" in changes


def test_other_loggers_and_a_state_of_an_older_version_resume(settings, tmp_path):
    out, text = tmp_path / "out", io.StringIO()
    settings = replace(settings, compare_with_unsteered=False, configuration={"logger": {"offline": False}})
    (first,) = run_study(settings, out)
    interrupted(out)
    settings = replace(settings, loggers=[], configuration={"logger": {"offline": True}})
    (second,) = run_study(settings, out, Console(file=text))
    assert "Resuming" in text.getvalue()
    interrupted(out)
    state = json.loads((out / "state.json").read_text())
    del state["inputs"]
    (out / "state.json").write_text(json.dumps(state))
    with pytest.warns(UserWarning, match="the interrupted study is of an older version"):
        (third,) = run_study(settings, out)
    assert first.readings == second.readings == third.readings
    assert not (out / "earlier").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vectors": ()}, "no trait to monitor"),
        ({"vectors": (make_vector(), make_vector(seed=3))}, "more than one for the trait 'evil'"),
        ({"steering": Steering(traits=("kind",))}, "steering.traits: 'kind' has no vector; expected some of evil"),
        ({"steering": Steering(partial(PreventativeSteering, coefficient=Adaptive(sensor="preference")))},
         "sensor=preference holds evil by minimal pairs, and it has none"),
        ({"steering": Steering(prompting=True)}, "steering=prompting: it needs the instructions of evil"),
        ({"traits": (LOUD,), "evaluation": partial(TraitEvaluation), "extraction": ExtractionSettings(judge_pairs=0)},
         "its judge is calibrated by extraction"),
    ],
)  # fmt: skip
def test_settings_check_themselves(settings, changes, message):
    with pytest.raises(InputError, match=message):
        replace(settings, **changes)


def test_vectors_of_another_model_are_refused_before_anything_is_written(settings, tmp_path):
    with pytest.raises(InputError, match="does not fit the model tiny"):
        run_study(replace(settings, vectors=(make_vector(layers=5),)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_results_of_earlier_versions_are_read(tmp_path):
    """Before trait expression was evaluated, and before every layer was read."""
    old = {
        "name": "steered", "loss": 1.5, "coefficients": {"evil": 0.7}, "answers": ["Yes."], "seconds": 9.0,
        "readings": [{"step": 0, "projection": {"evil": 1.0}, "shift": {"evil": 0.0}},
                     {"step": 6, "projection": {"evil": 3.0}, "shift": {"evil": 2.0}}],
    }  # fmt: skip
    path = Path(tmp_path, "result.json")
    path.write_text(json.dumps(old), encoding="utf-8")
    result = RunResult.load(path)
    assert result.final_shift == {"evil": 2.0}
    assert result.expression("evil", at="end") is None
    expression = {"mean": 40.0, "low": 30.0, "high": 50.0, "scored": 20, "refusals": 0, "unscored": 0}
    newer = {**old, "evaluations": [{"step": 6, "trait": "evil", "expression": expression}]}
    path.write_text(json.dumps(newer), encoding="utf-8")
    assert RunResult.load(path).expression("evil", at="end").mean == 40.0
    path.write_text('{"name": "steered"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"result.json: expected the result of a fine-tuning \(KeyError: 'loss'\)"):
        RunResult.load(path)

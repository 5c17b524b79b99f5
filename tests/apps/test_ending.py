"""How a command ends when it is interrupted, or cannot write: with one line, and an exit code that says so."""

import importlib
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import pytest
from builders import ForeignModule, all_hooks, fit, make_vector, tiny_model
from commands import run_command, start_command

from persona_callbacks import Ablation, PersonaMonitor, PreventativeSteering, ProjectionRegularisation
from persona_callbacks.apps.ending import ending_in_one_line, warnings_in_one_line

APPS = {
    "train": "train", "extract": "run", "screen": "run", "evaluate": "run", "generate": "run", "report": "run",
    "define": "run", "label": "run",
}  # fmt: skip
SIGNALS = [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS, ids=["SIGTERM", "Ctrl-C"])
@pytest.mark.parametrize("app", APPS)
def test_every_app_ends_with_one_line_and_the_code_of_a_signal(app, number, code, word, monkeypatch, capsys, tmp_path):
    module = importlib.import_module(f"persona_callbacks.apps.{app}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"persona-{app}"])
    monkeypatch.setattr(module, APPS[app], lambda *_: os.kill(os.getpid(), number))
    handlers = [signal.getsignal(number) for number, _, _ in SIGNALS]
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{word}: ")
    assert "the same command" in line
    assert [signal.getsignal(number) for number, _, _ in SIGNALS] == handlers


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS, ids=["SIGTERM", "Ctrl-C"])
def test_hooks_are_removed_when_a_signal_ends_the_fit(number, code, word, tokenizer, tmp_path, capsys):
    module = ForeignModule(tiny_model(peft=True), tokenizer)
    hooks, vector = all_hooks(module), make_vector()
    seen = []

    def interrupt(stage):
        if module.trainer.global_step == 2:
            seen.append(all_hooks(module))
            os.kill(os.getpid(), number)

    module.during = interrupt
    callbacks = [
        PersonaMonitor([vector]),
        PreventativeSteering([vector], 0.5),
        Ablation([vector], layers=[2]),
        ProjectionRegularisation([vector]),
    ]
    with pytest.raises(SystemExit) as end, ending_in_one_line("go on"):
        fit(module, callbacks, tmp_path)
    assert end.value.code == code
    assert capsys.readouterr().err.splitlines()[-1] == f"{word}: go on"
    assert seen[0] > hooks
    assert all_hooks(module) == hooks
    assert "training_step" not in vars(module)


def test_an_error_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), ending_in_one_line("go on"):
        print(1 / 0)


def interruptible():
    """In the command's process: a terminal's Ctrl-C reaches it, even if these tests run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS, ids=["SIGTERM", "Ctrl-C"])
def test_persona_train_ends_in_one_line_and_the_same_command_resumes(number, code, word, tiny, tmp_path):
    settings, environment = tiny
    study = tmp_path / "outputs" / "train" / "seed-0"
    streams = Path(os.devnull), tmp_path / "out", tmp_path / "err"
    long = [*settings, "trainer.max_epochs=1000"]
    process = start_command("train", tmp_path, *long, environment=environment, streams=streams, before=interruptible)
    deadline = time.monotonic() + 200
    while not (study / "steered" / "last.ckpt").is_file() and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.join(60)
    ended = process.exitcode
    process.kill()
    assert ended == code, (tmp_path / "err").read_text()
    last = (tmp_path / "err").read_text().splitlines()[-1]
    assert last == f"{word}: the same command goes on from the last checkpoint"
    assert "Traceback" not in (tmp_path / "err").read_text()
    state = json.loads((study / "state.json").read_text())
    assert not state["finished"]
    assert not list(study.glob("**/.*.partial"))


def test_unreachable_server_of_wandb_ends_persona_train_before_it_begins(tiny, tmp_path):
    settings, environment = tiny
    online = [*settings, "logger=wandb", "logger.wandb.offline=false"]
    environment = {name: value for name, value in environment.items() if name != "WANDB_MODE"}
    environment |= {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40, "HOME": str(tmp_path)}
    done = run_command("train", tmp_path, *online, environment=environment, timeout=200)
    assert done.returncode == 1
    assert "error: Weights & Biases cannot be used" in done.stderr.splitlines()[-1]
    assert "logger.wandb.offline=true" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs" / "train" / "seed-0" / "state.json").exists()


@pytest.mark.parametrize(
    ("app", "overrides", "named"),
    [
        ("train", [], "outputs/train/seed-0"),
        ("train", ["-m", "seed=0,1"], "outputs/train"),
        ("extract", ["out=outputs/vectors", "hydra.run.dir=outputs/here"], "outputs/here"),
        ("screen", ["out=outputs/screening"], "outputs/screening"),
        ("evaluate", ["out=outputs/evaluation"], "outputs/evaluation"),
        ("label", ["out=outputs/labels"], "outputs/labels"),
        ("report", ["runs=.", "out=outputs/report.html"], "outputs"),
        ("define", ["name=gloomy", "description=Sees the worst in all things.", "out=outputs/gloomy.yaml"], "outputs"),
    ],
)
def test_a_folder_that_cannot_be_written_to_ends_an_app_at_once(app, overrides, named, monkeypatch, capsys, tmp_path):
    (tmp_path / "outputs").write_text("a file, where a folder is wanted")
    module = importlib.import_module(f"persona_callbacks.apps.{app}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"persona-{app}", *overrides])
    with pytest.raises(SystemExit) as end:
        module.main()
    assert str(end.value).startswith("error: ")
    assert f"{named} cannot be written to: {tmp_path}/outputs is not a folder" in str(end.value)
    assert "Traceback" not in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["outputs"]


def test_a_warning_is_one_line_and_told_once(capsys):
    with warnings_in_one_line():
        for words in ("the vector is weak", "the vector is weak", "the judge is flat"):
            warnings.warn(words, stacklevel=1)
            warnings.warn(words, stacklevel=1)
    assert capsys.readouterr().err == "warning: the vector is weak\nwarning: the judge is flat\n"

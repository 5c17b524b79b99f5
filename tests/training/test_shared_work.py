"""What fine-tunings of one base model share: it is in the cache once, and changes no result."""

import json
import os

import pytest
import torch
from builders import CHATS, tiny_model
from commands import run_command, start_command
from safetensors.torch import load_file

from persona_callbacks.training import RunResult


@pytest.fixture
def study(tokenizer, tmp_path, monkeypatch):
    """``persona-train`` of a tiny model with all that is measured of its base model, in a cache of a name."""
    tiny_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in CHATS), encoding="utf-8")
    settings = [
        "model=folder", "model.path=model", "data.path=chats.jsonl", "logger=csv", "trainer.accelerator=cpu",
        "extraction.questions=2", "extraction.sampling.max_new_tokens=4", "extraction.layer_choice=auc",
        "evaluation.callback.questions=2", "evaluation.callback.sampling.max_new_tokens=4", "sample_answers=1",
        "max_answer_tokens=4", "monitor.every_n_steps=1", "trainer.max_steps=2", "data.batch_size=4", "monitor.pairs=2",
    ]  # fmt: skip

    def arguments(folder, *overrides):
        return ("train", tmp_path, *settings, f"hydra.run.dir={folder}", *overrides)

    return arguments, lambda cache: {"PERSONA_CALLBACKS_CACHE": str(tmp_path / cache)}


def base_files(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("base/*/*.json")}


def test_a_second_run_takes_it_from_the_cache_and_ends_in_the_same_weights(study, tmp_path):
    arguments, cache = study
    for folder in ("first", "second"):
        done = run_command(*arguments(folder), environment={**os.environ, **cache("cache")})
        assert done.returncode == 0, done.stderr[-3000:]
        if folder == "first":
            files = base_files(tmp_path / "cache")
    kinds = sorted(name.rpartition("-")[0] for name in files)
    assert kinds == ["answers", "answers", "likelihoods", "preference", "projection", "scores"]
    assert base_files(tmp_path / "cache") == files
    results = [RunResult.load(tmp_path / folder / "steered" / "result.json") for folder in ("first", "second")]
    assert results[0].readings == results[1].readings
    assert results[0].evaluations == results[1].evaluations
    assert results[0].coefficients == results[1].coefficients
    ours, theirs = (
        load_file(tmp_path / folder / "steered" / "adapter" / "adapter_model.safetensors")
        for folder in ("first", "second")
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_two_runs_side_by_side_make_it_once(study, tmp_path):
    arguments, cache = study
    started = []
    for seed in (0, 1):
        streams = [tmp_path / f"{stream}-{seed}" for stream in ("in", "out", "error")]
        streams[0].write_text("")
        process = start_command(
            *arguments(f"seed-{seed}", f"seed={seed}"),
            environment={**os.environ, **cache("cache")},
            streams=streams,
        )
        started.append((process, streams[2]))
    for process, errors in started:
        process.join(600)
        assert process.exitcode == 0, errors.read_text()[-3000:]
    assert len(base_files(tmp_path / "cache")) == 6
    first, second = (RunResult.load(tmp_path / f"seed-{seed}" / "steered" / "result.json") for seed in (0, 1))
    assert first.readings[0] == second.readings[0]
    assert first.evaluations[0] == second.evaluations[0]
    assert first.readings[-1] != second.readings[-1]

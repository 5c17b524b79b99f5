"""Work on a base model that is done once for all fine-tunings that share a cache."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from builders import tiny_model
from peft import LoraConfig, get_peft_model

from persona_callbacks.files import cache_dir
from persona_callbacks.model import LoadedModel, base_work, sharing_base_work

PROCESS = """
import os, sys, time
from pathlib import Path
import torch
from builders import make_tokenizer
from persona_callbacks.model import LoadedModel, base_work, sharing_base_work

def work():
    with open("done", "a") as done:
        done.write(f"{os.getpid()}\\n")
    time.sleep(float(sys.argv[1]))
    return [0.1 + 0.2]

model = torch.nn.Linear(1, 1)
loaded = LoadedModel(model, make_tokenizer(), "tiny")
with sharing_base_work(loaded, "weights", None, lambda told: print(told, flush=True)):
    print(base_work(model, "sum", [1], work), flush=True)
"""


@pytest.fixture
def loaded(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_CALLBACKS_CACHE", str(tmp_path / "cache"))
    return LoadedModel(tiny_model(), tokenizer, "tiny")


def counted():
    """Work that says how often it was done."""
    done = []

    def work():
        done.append(True)
        return [len(done), 0.1]

    return work, done


def sharing(loaded, weights="weights", made_with=None):
    return sharing_base_work(loaded, weights, made_with, print)


def test_it_is_done_once_for_the_same_model_and_the_same_questions(loaded):
    work, done = counted()
    with sharing(loaded):
        assert [base_work(loaded.model, "count", ["a"], work) for _ in range(3)] == [[1, 0.1]] * 3
        assert base_work(loaded.model, "count", ["b"], work) == [2, 0.1]
    with sharing(loaded):
        assert base_work(loaded.model, "count", ["a"], work) == [1, 0.1]
    for others in (("other weights", None), ("weights", {"precision": "16-mixed"})):
        with sharing(loaded, *others):
            base_work(loaded.model, "count", ["a"], work)
    with sharing(loaded):
        base_work(loaded.model.bfloat16(), "count", ["a"], work)
    assert len(done) == 5


def test_a_trained_adapter_and_a_kind_that_acts_from_the_start_share_nothing(loaded):
    fresh = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules="all-linear"))
    work, done = counted()
    with sharing(loaded):
        base_work(loaded.model, "count", [], work)
        base_work(fresh, "count", [], work)
        assert len(done) == 1, "a fresh adapter changes nothing"
        weight = next(weight for name, weight in fresh.named_parameters() if "lora_B" in name)
        with torch.no_grad():
            weight[0, 0] = 1e-8
        base_work(fresh, "count", [], work)
        for kind in ({"use_dora": True}, {"init_lora_weights": "pissa"}, {"modules_to_save": ["lm_head"]}):
            base_work(
                get_peft_model(tiny_model(), LoraConfig(r=2, target_modules="all-linear", **kind)), "count", [], work
            )
    assert len(done) == 5


def test_outside_of_a_block_nothing_is_kept(loaded):
    work, _ = counted()
    assert [base_work(loaded.model, "count", [], work)[0] for _ in range(2)] == [1, 2]
    assert not cache_dir().exists()


def test_a_broken_file_is_made_anew_and_a_cache_that_cannot_be_written_costs_time_only(loaded):
    work, _ = counted()
    with sharing(loaded):
        base_work(loaded.model, "count", [], work)
        (file,) = cache_dir().glob("base/*/count-*.json")
        file.write_text('{"resul')
        with pytest.warns(UserWarning, match="it is computed anew"):
            assert base_work(loaded.model, "count", [], work) == [2, 0.1]
        assert json.loads(file.read_text()) == {"result": [2, 0.1]}
        shutil.rmtree(file.parents[1])
        file.parents[1].write_text("no folder")
        with pytest.warns(UserWarning, match="cannot be written: .*computes it again"):
            assert base_work(loaded.model, "count", [], work) == [3, 0.1]


def test_an_error_of_the_work_is_its_own_and_leaves_nothing(loaded):
    with sharing(loaded), pytest.raises(ZeroDivisionError):
        base_work(loaded.model, "count", [], lambda: 1 / 0)
    assert not list(cache_dir().glob("base/*/count-*.json"))


def start(folder, seconds):
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = {**os.environ, "PERSONA_CALLBACKS_CACHE": str(folder / "cache"), "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(seconds)], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )


def started(folder):
    file = folder / "done"
    return file.read_text().splitlines() if file.is_file() else []


def test_of_two_processes_one_does_it_and_the_other_waits(tmp_path):
    both = [start(tmp_path, 3), start(tmp_path, 3)]
    said = [process.communicate(timeout=120)[0].splitlines() for process in both]
    assert [lines[-1] for lines in said] == ["[0.30000000000000004]"] * 2
    assert len(started(tmp_path)) == 1


def test_a_process_that_is_killed_at_the_work_leaves_it_to_the_next(tmp_path):
    first = start(tmp_path, 60)
    while not started(tmp_path):
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    second = start(tmp_path, 0)
    assert second.communicate(timeout=120)[0].splitlines() == ["[0.30000000000000004]"]
    assert len(started(tmp_path)) == 2

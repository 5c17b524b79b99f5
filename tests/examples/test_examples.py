"""The examples run as a person would run them: in a process of their own, from the command line."""

import os
import re
from pathlib import Path

import pytest
from commands import run_command

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    run("tiny_model.py", folder)
    return folder


def run(script: str, *arguments: object) -> str:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = run_command(EXAMPLES / script, Path.cwd(), *arguments, environment=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_example_trains_a_tiny_random_model_without_arguments():
    check(run("own_module.py"))


def test_an_example_trains_the_model_of_a_folder_with_a_vector_file(tiny):
    check(run("huggingface_data.py", tiny, tiny / "evil.safetensors"))


def test_preferences_are_trained_with_an_unsteered_reference():
    printed = run("dpo.py")
    check(printed)
    margin = re.search(r"'margin': (-?[\d.e-]+)", printed)
    assert margin, printed
    assert float(margin[1]) != 0


def check(printed: str) -> None:
    shift = re.search(r"'persona/evil/shift': (-?[\d.]+)", printed)
    assert shift, printed
    assert float(shift[1]) != 0
    assert "'steering/evil/coefficient'" in printed


@pytest.mark.parametrize("script", ["own_module.py", "huggingface_data.py", "dpo.py"])
def test_an_example_is_short_enough_to_copy(script):
    assert len((EXAMPLES / script).read_text().splitlines()) < 80

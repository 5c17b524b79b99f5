"""`--help`: it comes at once, and lists what the command takes and no more."""

import re
import subprocess
import sys

import pytest

HEAVY = ("torch", "lightning", "transformers", "peft", "torchmetrics", "scipy", "matplotlib", "wandb", "openai")
COMMANDS = ("define", "evaluate", "extract", "generate", "label", "report", "screen", "train")

SHOWING_ALL = f"""
import sys
from hydra.core.global_hydra import GlobalHydra
from persona_callbacks.apps import commands

for name in {COMMANDS}:
    sys.argv = ["persona-" + name, "--help"]
    print("=====", name)
    try:
        getattr(commands, name)()
    except SystemExit:  # Hydra's, after the help
        pass
    GlobalHydra.instance().clear()
print("imported:", *(name for name in {HEAVY} if name in sys.modules))
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What each command shows, in a process that has imported nothing before."""
    folder = tmp_path_factory.mktemp("empty")
    done = subprocess.run([sys.executable, "-c", SHOWING_ALL], cwd=folder, capture_output=True, text=True, check=True)
    texts = dict(part.split("\n", 1) for part in done.stdout.split("===== ")[1:])
    texts["train"], _, imported = texts["train"].partition("imported:")
    return texts, imported.split()


def test_help_imports_nothing_that_takes_seconds(shown):
    texts, imported = shown
    assert list(texts) == list(COMMANDS)
    assert not imported


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_the_groups_that_the_command_takes_and_no_others(shown, command):
    taken = {
        "define": [], "report": [], "label": ["trait"],
        "extract": ["extraction", "generation", "logger", "model", "trait"],
        "generate": ["extraction", "model", "trait"],
        "evaluate": ["evaluation", "extraction", "model", "trait"],
        "screen": ["data", "extraction", "logger", "model", "trait"],
        "train": ["callbacks", "data", "debug", "evaluation", "experiment", "extraction", "extras", "guard",
                  "hparams_search", "logger", "lora", "model", "monitor", "optimizer", "paths", "scheduler", "steering",
                  "steering/start@steering.callback.coefficient.start", "trainer", "trait"],
    }  # fmt: skip
    text = shown[0][command]
    assert f"persona-{command}" in text
    listed = text.partition("(group=option)")[2].partition("\n\n\n")[0].partition("eys")[0]
    assert re.findall(r"^([\w/@.]+): \w", listed, re.MULTILINE) == taken[command]


def test_a_report_imports_no_library_that_trains(tmp_path):
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "metrics.csv").write_text("step,persona/evil/shift\n0,0.0\n5,2.5\n")
    script = (
        "import sys\nfrom persona_callbacks.apps.commands import report\n"
        "sys.argv = ['persona-report', 'runs=.', 'out=report.html']\nreport()\n"
        f"print('imported:', *(name for name in {HEAVY} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (tmp_path / "report.html").stat().st_size > 1000
    imported = done.stdout.partition("imported:")[2].split()
    assert not {"lightning", "transformers", "peft", "torchmetrics", "scipy", "wandb", "openai"} & set(imported)

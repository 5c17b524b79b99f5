"""A project of somebody else that uses the library's configuration groups beside its own."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from builders import make_vector
from commands import run_command

APP = """
import hydra
import persona_callbacks
from hydra.utils import instantiate
from persona_callbacks import PersonaVector


@hydra.main(version_base="1.3", config_path="settings", config_name="config")
def main(cfg):
    vectors = [PersonaVector.load("evil.safetensors")]
    monitor = instantiate(cfg.monitor, _partial_=True)(vectors=vectors)
    steering = instantiate(cfg.steering.callback, _partial_=True)(vectors=vectors)
    print(persona_callbacks.__file__)
    print(type(monitor).__name__, monitor.every_n_steps, type(steering).__name__, cfg.steering.callback.coefficient)
    print(cfg.data.path, cfg.guard)


if __name__ == "__main__":
    main()
"""

CONFIG = """
defaults:
  - data: mine
  - monitor: default
  - steering: constant
  - guard: none
  - _self_
steering:
  callback:
    coefficient: 0.25
"""


@pytest.fixture
def project(tmp_path):
    """Its own group `data`, its own option `default` of `monitor`, and all else from the library."""
    files = {
        "app.py": APP,
        "settings/config.yaml": CONFIG,
        "settings/data/mine.yaml": "path: mine.jsonl",
        "settings/monitor/default.yaml": "_target_: persona_callbacks.PersonaMonitor\nevery_n_steps: 3",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    make_vector().save(tmp_path / "evil.safetensors")
    return tmp_path


def check(printed, library):
    where, callbacks, rest = printed.strip().splitlines()[-3:]
    assert Path(where).is_relative_to(library)
    assert callbacks == "PersonaMonitor 3 PreventativeSteering 0.25"
    assert rest == "mine.jsonl {'callback': None}"


def test_a_project_finds_the_groups_and_its_own_options_win(project):
    done = run_command(project / "app.py", project)
    assert done.returncode == 0, done.stderr
    check(done.stdout, Path(__file__).parents[2])
    other = run_command(project / "app.py", project, "data=evil")
    assert other.stdout.splitlines()[-1] == "evil.jsonl {'callback': None}", other.stderr


@pytest.mark.slow
def test_a_project_finds_the_groups_of_an_installed_wheel(project, tmp_path_factory):
    built, installed = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(built)]
    subprocess.run(build, cwd=Path(__file__).parents[2], check=True, capture_output=True)
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    check(done.stdout, installed)

"""The commands as they are installed. Each shows its help at once, and imports what it needs, which takes seconds, when
it begins to work.

A mistake, Ctrl-C or SIGTERM ends a command with a message of one line, and a warning is one line, told once.
"""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.ending import ending_in_one_line, warnings_in_one_line
from persona_callbacks.apps.sweeping import show_sweep


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="define")
def define(cfg: DictConfig) -> None:
    """``persona-define``."""
    with warnings_in_one_line(), ending_in_one_line("nothing is written; the same command starts again"):
        from persona_callbacks.apps.define import run

        run(cfg)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="evaluate")
def evaluate(cfg: DictConfig) -> None:
    """``persona-evaluate``."""
    with warnings_in_one_line(), ending_in_one_line("the same command goes on after the last model that was evaluated"):
        from persona_callbacks.apps.evaluate import run

        run(cfg)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="extract")
def extract(cfg: DictConfig) -> None:
    """``persona-extract``."""
    with warnings_in_one_line(), ending_in_one_line("the same command goes on where it stopped"):
        from persona_callbacks.apps.extract import run

        run(cfg)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="generate")
def generate(cfg: DictConfig) -> None:
    """``persona-generate``."""
    with warnings_in_one_line(), ending_in_one_line("the same command starts again; finished extractions are kept"):
        from persona_callbacks.apps.generate import run

        run(cfg)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="label")
def label(cfg: DictConfig) -> None:
    """``persona-label``."""
    with (
        warnings_in_one_line(),
        ending_in_one_line("labels given so far are kept; the same command goes on from there"),
    ):
        from persona_callbacks.apps.label import run

        run(cfg)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="report")
def report(cfg: DictConfig) -> None:
    """``persona-report``."""
    with warnings_in_one_line(), ending_in_one_line("nothing is written; the same command starts again"):
        from persona_callbacks.apps.report import run

        run(cfg)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="screen")
def screen(cfg: DictConfig) -> None:
    """``persona-screen``."""
    with warnings_in_one_line(), ending_in_one_line("the same command goes on where it stopped"):
        from persona_callbacks.apps.screen import run

        run(cfg)


def train() -> None:
    """``persona-train``; a sweep ends with a table."""
    try:
        _train()
    finally:
        show_sweep()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def _train(cfg: DictConfig) -> float | tuple[float, ...] | None:
    with warnings_in_one_line(), ending_in_one_line("the same command goes on from the last checkpoint"):
        from persona_callbacks.apps.objectives import objective_value
        from persona_callbacks.apps.train import train

        return objective_value(cfg.objective, train(cfg, Path(HydraConfig.get().runtime.output_dir)))

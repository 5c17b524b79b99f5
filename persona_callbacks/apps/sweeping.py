"""Sweeps of persona-train: folders that name their jobs, jobs that fail alone, and one table at the end."""

import hashlib
import re
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback as HydraCallback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

_LONGEST_NAME = 100
_PLAIN_NAME = re.compile(r"[\w=.,+\-\[\] ]+")


class JobError(CompactHydraException):
    """What ends a job of a sweep and leaves the others alone. Hydra shows its message without a traceback."""


def is_job_of_sweep() -> bool:
    """Whether this process is at work on a job of ``--multirun``."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def folder_name(overrides: str) -> str:
    """Name the folder of a job by its overrides.

    What is too long for a file name, or has characters that do not belong there, is shortened and gets a hash. Hydra
    knows it as ``${persona_folder_name:...}``.

    Example:
        >>> folder_name("seed=1,steering=none"), folder_name("data.path=/a/b.jsonl")
        ('seed=1,steering=none', 'data.path=-a-b.jsonl-3a516fda')
    """
    if len(overrides) <= _LONGEST_NAME and _PLAIN_NAME.fullmatch(overrides):
        return overrides
    plain = re.sub(r"[^\w=.,+\-]+", "-", overrides)[:_LONGEST_NAME]
    return f"{plain}-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"


OmegaConf.register_new_resolver("persona_folder_name", folder_name, replace=True)


class SweepTable(HydraCallback):
    """Remembers the folder of the sweep, for :func:`show_sweep`."""

    folder: Path | None = None
    quiet = False

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note where the jobs will lie."""
        SweepTable.folder = Path(config.hydra.sweep.dir).absolute() / "sweep"
        SweepTable.quiet = config.quiet


def show_sweep() -> None:
    """After a sweep, print its table and write ``sweep.csv`` and ``sweep.png``; also where a job failed."""
    folder, SweepTable.folder = SweepTable.folder, None
    if folder is None:
        return
    from persona_callbacks.progress import open_console
    from persona_callbacks.training import Sweep

    sweep = Sweep.read(folder)
    console = open_console(quiet=SweepTable.quiet)
    if sweep.rows:
        sweep.write(folder)
        console.print(sweep.table())
        console.print(f"Every finished job in {folder}: sweep.csv, sweep.png", soft_wrap=True)
    if sweep.unfinished:
        console.print("Not finished; the same command goes on with them:")
        for job in sweep.unfinished:
            console.print(f"  {job}", soft_wrap=True)

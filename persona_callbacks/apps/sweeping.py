"""Sweeps of persona-train: folders that name their jobs, jobs that fail alone, and one table at the end."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback as HydraCallback
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, flag_override

_LONGEST_NAME = 100
_PLAIN_NAME = re.compile(r"[\w=.,+\-\[\] ]+")


class JobError(CompactHydraException):
    """What ends a job of a sweep and leaves the others alone. Hydra shows its message without a traceback."""


def is_job_of_sweep() -> bool:
    """Whether this process is at work on a job of ``--multirun``."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def folder_name(overrides: str, each: Sequence[str] = (), *shared: str) -> str:
    """Name the folder of a job by its overrides.

    What is too long for a file name, or has characters that do not belong there, is shortened and gets a hash. What a
    sweep changes from job to job then stays, and what its jobs share is left out. Hydra knows it as
    ``${persona_folder_name:...}``.

    Args:
        overrides: of the job, joined.
        each: the same, as a list.
        shared: keys of those that all jobs of the sweep share.

    Example:
        >>> folder_name("seed=1,steering=none"), folder_name("data.path=/a/b.jsonl")
        ('seed=1,steering=none', 'data.path=-a-b.jsonl-3a516fda')
        >>> folder_name("data.path=/a/b.jsonl,seed=1", ["seed=1", "data.path=/a/b.jsonl"], "data.path")
        'seed=1-191ec02d'
    """
    if len(overrides) <= _LONGEST_NAME and _PLAIN_NAME.fullmatch(overrides):
        return overrides
    changed = [override for override in each if override.lstrip("+~").partition("=")[0] not in shared]
    plain = re.sub(r"[^\w=.,+\-]+", "-", ",".join(sorted(changed)) or overrides)[:_LONGEST_NAME]
    return f"{plain}-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"


OmegaConf.register_new_resolver("persona_folder_name", folder_name, replace=True)


class SweepTable(HydraCallback):
    """Remembers the sweep, for :func:`show_sweep`, and has its jobs named by what it changes from one to the next."""

    config: DictConfig | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note where the jobs will lie, and which settings they share."""
        SweepTable.config = config
        written = config.hydra.overrides
        if any(override.startswith("hydra.sweep.") for override in written.hydra):
            return  # folders of the user's own
        given = OverridesParser.create().parse_overrides(list(written.task))
        shared = [override.key_or_group for override in given if not override.is_sweep_override()]
        arguments = ",".join(["${hydra.job.override_dirname}", "${hydra.overrides.task}", *shared])
        with flag_override(config.hydra, "readonly", False):
            # As an override, since the configuration of each job is composed anew.
            written.hydra.append(f"hydra.sweep.subdir='sweep/${{persona_folder_name:{arguments}}}'")


def show_sweep() -> None:
    """After a sweep, print its table and write ``sweep.csv`` and ``sweep.png``; also where a job failed. Of two
    objectives, the Pareto front is written to ``pareto.png``.
    """
    config, SweepTable.config = SweepTable.config, None
    if config is None:
        return
    from persona_callbacks.progress import open_console
    from persona_callbacks.training import Sweep

    folder = Path(config.hydra.sweep.dir).absolute() / "sweep"
    sweep = Sweep.read(folder)
    console = open_console(quiet=config.quiet)
    if sweep.rows:
        sweep.write(folder)
        console.print(sweep.table())
        console.print(f"Every finished job in {folder}: sweep.csv, sweep.png", soft_wrap=True)
    if isinstance(config.objective, ListConfig) and len(config.objective) == 2:
        first, second = _maximised(config.hydra.sweeper)
        best = sweep.write_front(folder, tuple(config.objective), (first, second))
        console.print("Pareto front (pareto.png):" if best else "No finished job has both objectives.")
        for name in best:
            console.print(f"  {name}", soft_wrap=True)
    if sweep.unfinished:
        console.print("Not finished; the same command goes on with them:")
        for job in sweep.unfinished:
            console.print(f"  {job}", soft_wrap=True)


def _maximised(sweeper: DictConfig) -> list[bool]:
    """Of each of two objectives, whether more is better. Of sweepers without a direction, less is."""
    direction = sweeper.get("direction")
    directions = list(direction) if isinstance(direction, ListConfig) else [direction] * 2
    return ["max" in str(one).lower() for one in directions]

"""The loggers of a configuration, as the environment wants them and without what W&B says of itself; and logging what
is no fine-tuning.
"""

import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import datetime

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, open_dict

from persona_callbacks.apps.start import whole_configuration
from persona_callbacks.tracking import check_wandb, faults_as_warnings, finish_wandb
from persona_callbacks.training import RunLabel, without_trait_texts

_SYNC_SECONDS = "300"


def with_usable_loggers(cfg: DictConfig) -> DictConfig:
    """The configuration with loggers that can be opened, checked before any long work.

    ``WANDB_MODE=disabled`` in the environment leaves W&B out, and ``offline`` has it log offline. Where it logs online,
    its server must answer.

    Raises:
        InputError: it does not.
    """
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.logger = cfg.get("logger") or {}  # none after ~logger or logger=null
    mode = os.environ.get("WANDB_MODE", "")
    of_wandb = [key for key, logger in cfg.logger.items() if is_of_wandb(logger)]
    with open_dict(cfg):
        for key in of_wandb:
            if mode == "disabled":
                del cfg.logger[key]
            elif mode in ("offline", "dryrun"):
                cfg.logger[key].offline = True
    online = [key for key in of_wandb if key in cfg.logger and not cfg.logger[key].get("offline", False)]
    if online:
        check_wandb(f"logger.{online[0]}.offline=true")
        # A server that goes away during the run must not keep the next one from starting.
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", _SYNC_SECONDS)
    else:
        os.environ.setdefault("WANDB_SILENT", "true")  # online, it tells the run's address
    if "weave" not in sys.modules:
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")  # else it is advertised where openai is imported
    return cfg


def is_of_wandb(logger: DictConfig) -> bool:
    """Whether the configuration of a logger is that of one of W&B."""
    return str(logger["_target_"]).endswith(".WandbLogger")


def opened_logger(logger: DictConfig) -> Logger:
    """A logger of the ``logger`` group."""
    opened: Logger = instantiate(logger)
    # Lightning passes the setting on where nobody has asked for it, and W&B then warns that it has no effect.
    getattr(opened, "_wandb_init", {}).pop("anonymous", None)
    return opened


def timed_id(name: str) -> str:
    """An id for a run that is logged once: its name, with ``-`` for what W&B does not allow, and the time."""
    return re.sub(r"[^\w.-]", "-", f"{name}-{datetime.now():%Y%m%d-%H%M%S}")


def log_run(cfg: DictConfig, label: RunLabel, doing: str, write: Callable[[Sequence[Logger]], None]) -> None:
    """Have every logger of the configuration record a run that is already complete.

    Args:
        cfg: of the command.
        label: the names of the run.
        doing: what fails if a logger fails, for the warning.
        write: writes the results to the loggers.
    """
    filled = cfg.copy()
    filled.run = label.as_run()
    with faults_as_warnings(doing):
        try:
            loggers = [opened_logger(logger) for logger in filled.logger.values()]
            for logger in loggers:
                logger.log_hyperparams(without_trait_texts(whole_configuration(cfg)))
            write(loggers)
            for logger in loggers:
                logger.finalize("success")
        except BaseException:
            finish_wandb(exit_code=1)
            raise
        finish_wandb()

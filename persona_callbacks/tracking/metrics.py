"""The names of the metrics, and the only functions that write them to Lightning's loggers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from persona_callbacks.tracking.faults import faults_as_warnings

if TYPE_CHECKING:  # names of metrics are all that persona-report needs
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import Logger

TRAIN_LOSS = "train/loss"

EPOCH_LOSS = "train/epoch_loss"

PENALTY = "steering/penalty"

GUARD_TRIPPED = "guard/tripped"

EXPRESSION_TABLE = "trait_expression"

LAYER_TABLE = "shift_by_layer"

FLAGGED_TABLE = "screening/flagged"


def is_reading(name: str) -> bool:
    """Whether a metric is of the model's character, and not of training."""
    return name.startswith("persona/")


def projection(trait: str) -> str:
    """Name the mean projection of the probes, in activation units."""
    return f"persona/{trait}/projection"


def shift(trait: str) -> str:
    """Name the shift: the projection of the probes minus that of the base model, in activation units."""
    return f"persona/{trait}/shift"


def preference(trait: str) -> str:
    """Name the preference: how much likelier the minimal pairs' trait responses are than the others, minus the same of
    the base model, in nats per token.
    """
    return f"persona/{trait}/preference"


def preference_share(trait: str) -> str:
    """Name the share of minimal pairs whose trait response is the likelier one."""
    return f"persona/{trait}/preference_share"


def batch_projection(trait: str) -> str:
    """Name the mean projection of the training batches' own response tokens, in activation units."""
    return f"persona/{trait}/batch_projection"


def expression(trait: str) -> str:
    """Name the trait expression of generated answers: the judge's mean score, 0 to 100."""
    return f"persona/{trait}/expression"


def with_interval(name: str) -> tuple[str, str, str]:
    """Return the name of a metric, and the names of the lower and the upper end of its 95 % confidence interval."""
    return name, f"{name}_low", f"{name}_high"


def unscored(trait: str) -> str:
    """Name the number of answers that the judge could not score; refusals are not among them."""
    return f"persona/{trait}/unscored"


def coefficient(trait: str) -> str:
    """Name the steering coefficient α, in units of the raw direction."""
    return f"steering/{trait}/coefficient"


def saturated(trait: str) -> str:
    """Name what is 1 while the coefficient is at its bound and the sensor is not at its target, and 0 otherwise."""
    return f"steering/{trait}/saturated"


def screened(trait: str, what: str) -> str:
    """Name a result of screening a data set.

    Args:
        trait: the trait that was screened for.
        what: ``projection_difference`` and its ``_low`` and ``_high``, ``threshold`` or ``predicted_shift``, all in
            activation units; or ``flagged``, a share of the chats.
    """
    return f"screening/{trait}/{what}"


def traits_of(names: Iterable[str]) -> list[str]:
    """Return the traits whose shift or expression is among the names of metrics."""
    matches = (re.fullmatch(r"persona/(.+)/(shift|expression)", name) for name in names)
    return list(dict.fromkeys(match[1] for match in matches if match))


def log(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Write values to every logger, at the number of optimizer steps taken so far.

    They are written to ``trainer.callback_metrics`` too, where early stopping and checkpointing look for the metrics
    that they monitor.
    """
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
    if trainer.is_global_zero:
        write(trainer.loggers, values, trainer.global_step)


def log_table(trainer: Trainer, name: str, columns: list[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table to those of the trainer's loggers that have tables; see :func:`write_table`."""
    if trainer.is_global_zero:
        write_table(trainer.loggers, name, columns, rows)


def alert(trainer: Trainer, title: str, text: str) -> None:
    """Send an alert through every logger that can send alerts, such as W&B's."""
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            with faults_as_warnings(f"alerting through {type(logger).__name__}"):
                send = getattr(getattr(logger, "experiment", None), "alert", None)
                if send is not None:
                    send(title=title, text=text)


def write(loggers: Sequence[Logger], values: Mapping[str, float], step: int = 0) -> None:
    """Write values to loggers outside of a fit, where there is no trainer. A logger that cannot write them causes a
    warning.
    """
    for logger in loggers:
        with faults_as_warnings(f"logging to {type(logger).__name__}"):
            logger.log_metrics(dict(values), step=step)


def write_table(loggers: Sequence[Logger], name: str, columns: list[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table to those loggers that have tables, such as W&B's.

    Tables are written at the end of a run: a logger that cannot write them causes a warning, so that what follows, such
    as another callback's last evaluation, is not lost.
    """
    for logger in loggers:
        if hasattr(logger, "log_text"):
            try:
                logger.log_text(name, columns=columns, data=[list(row) for row in rows])
            except Exception as error:
                from lightning.pytorch.utilities import rank_zero_warn

                rank_zero_warn(
                    f"{type(logger).__name__} could not write the table {name!r}: {type(error).__name__}: {error}"
                )


def write_files(
    loggers: Sequence[Logger], name: str, kind: str, files: Sequence[Path], about: Mapping[str, Any]
) -> None:
    """Upload files as one version of an artifact, through those loggers that have artifacts, such as W&B's.

    Args:
        loggers: where to upload to.
        name: the name of the artifact; characters that W&B does not allow are replaced.
        kind: the type of the artifact.
        files: the files of this version.
        about: the metadata of this version.
    """
    for logger in loggers:
        with faults_as_warnings(f"uploading files through {type(logger).__name__}"):
            upload = getattr(getattr(logger, "experiment", None), "log_artifact", None)
            if upload is not None:
                import wandb

                artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), type=kind, metadata=dict(about))
                for file in files:
                    artifact.add_file(str(file))
                upload(artifact)

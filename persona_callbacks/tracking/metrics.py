"""The names of the metrics, and the only functions that write them to Lightning's loggers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from persona_callbacks.tracking.faults import faults_as_warnings

if TYPE_CHECKING:  # names of metrics are all that persona-report needs
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import Logger
    from matplotlib.figure import Figure

TRAIN_LOSS = "train/loss"

EPOCH_LOSS = "train/epoch_loss"
VALIDATION_LOSS = "train/validation_loss"

LEARNING_RATE = "train/learning_rate"

GRADIENT_NORM = "train/gradient_norm"
"""The norm of all gradients together before an optimizer step, and before they are clipped."""

PENALTY = "steering/penalty"

GUARD_TRIPPED = "steering/guard_tripped"

EXPRESSION_TABLE = "persona/judged_answers"

ANSWERS_TABLE = "persona/sample_answers"

LAYER_TABLE = "persona/shift_by_layer"

SHIFT_PICTURE = "persona/shift_over_training"

VECTOR_TABLE = "persona/vectors"

FLAGGED_TABLE = "screening/flagged"

_STEP = "trainer/global_step"
"""What Lightning's logger of W&B calls the number of optimizer steps."""

_rows: WeakKeyDictionary[Trainer, tuple[int, dict[str, float]]] = WeakKeyDictionary()
"""By trainer, the step that is under way and its values so far."""

_defined: WeakKeyDictionary[Logger, set[str]] = WeakKeyDictionary()
"""By logger, the metrics whose summary has been asked for."""


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


def extracted(trait: str, what: str) -> str:
    """Name a fact about an extracted vector: its ``layer``, ``auc`` or ``specificity``."""
    return f"persona/{trait}/vector_{what}"


def layer_picture(trait: str) -> str:
    """Name the picture of a trait's shift by layer and step."""
    return f"persona/{trait}/shift_by_layer_picture"


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

    All values of a step become one row, which is written at :func:`flush`, or when a value of a later step is logged:
    W&B can only set metrics against each other that are in the same row.

    They are written to ``trainer.callback_metrics`` at once, where early stopping and checkpointing look for the
    metrics that they monitor.
    """
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
    if not trainer.is_global_zero:
        return
    if trainer in _rows and _rows[trainer][0] != trainer.global_step:
        flush(trainer)
    _, row = _rows.get(trainer, (trainer.global_step, {}))
    _rows[trainer] = (trainer.global_step, {**row, **values})


def define(trainer: Trainer, *names: str) -> None:
    """Tell loggers of metrics that Lightning logs, as they are told of those that :func:`log` writes."""
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            with faults_as_warnings(f"logging to {type(logger).__name__}"):
                _define(logger, names)


def flush(trainer: Trainer) -> None:
    """Write the values that :func:`log` was given last, if they are not written yet."""
    if trainer in _rows:
        step, row = _rows.pop(trainer)
        if row:
            write(trainer.loggers, row, step)


def log_table(trainer: Trainer, name: str, columns: list[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table to those of the trainer's loggers that have tables; see :func:`write_table`."""
    if trainer.is_global_zero:
        write_table(trainer.loggers, name, columns, rows, trainer.global_step)


def log_picture(trainer: Trainer, name: str, draw: Callable[[], Figure]) -> None:
    """Write a picture to those of the trainer's loggers that keep images, such as W&B's; it is drawn if there are some.

    A logger that cannot write it causes a warning.
    """
    keeping = [logger for logger in trainer.loggers if hasattr(logger, "log_image")] if trainer.is_global_zero else []
    for logger in keeping:
        with faults_as_warnings(f"writing a picture to {type(logger).__name__}"), TemporaryDirectory() as scratch:
            file = f"{scratch}/picture.png"
            draw().savefig(file)
            logger.log_image(name, [file], step=trainer.global_step)


def describe(trainer: Trainer, facts: Mapping[str, Any]) -> None:
    """Add facts to the configuration that each logger keeps of the run. A logger that cannot causes a warning."""
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            with faults_as_warnings(f"describing the run to {type(logger).__name__}"):
                logger.log_hyperparams(dict(facts))


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

    W&B is told of each metric to draw it over optimizer steps, and to keep its lowest, its highest and its last value.
    """
    for logger in loggers:
        with faults_as_warnings(f"logging to {type(logger).__name__}"):
            _define(logger, values)
            logger.log_metrics(dict(values), step=step)


def hide_counters(loggers: Sequence[Logger]) -> None:
    """Have W&B draw no panels of the epoch and of the step, which Lightning logs beside everything."""
    for logger in loggers:
        define = getattr(getattr(logger, "experiment", None), "define_metric", None)
        if define is not None:
            for name in ("epoch", _STEP):
                define(name, hidden=True)


def _define(logger: Logger, names: Iterable[str]) -> None:
    """Tell W&B of metrics that it does not know yet. By name, since a pattern would take in tables, whose summary is
    not a number.
    """
    known = _defined.setdefault(logger, set())
    new = [name for name in names if name not in known]
    define = getattr(getattr(logger, "experiment", None), "define_metric", None) if new else None
    if define is not None:
        for name in new:
            define(name, step_metric=_STEP, step_sync=True, summary="min,max,last")
    known.update(new)


def write_table(
    loggers: Sequence[Logger], name: str, columns: list[str], rows: Sequence[Sequence[Any]], step: int = 0
) -> None:
    """Write a table to those loggers that have tables, such as W&B's.

    Tables are written at the end of a run: a logger that cannot write them causes a warning, so that what follows, such
    as another callback's last evaluation, is not lost.
    """
    for logger in loggers:
        if hasattr(logger, "log_text"):
            try:
                logger.log_text(name, columns=columns, data=[list(row) for row in rows], step=step)
            except Exception as error:
                from lightning.pytorch.utilities import rank_zero_warn

                rank_zero_warn(
                    f"{type(logger).__name__} could not write the table {name!r}: {type(error).__name__}: {error}"
                )

"""Metrics: their names, and the only functions that write them to loggers; and loggers that fail.

Imports nothing else from the library.
"""

from persona_callbacks.tracking.faults import check_wandb, faults_as_warnings, never_failing
from persona_callbacks.tracking.metrics import (
    alert,
    batch_projection,
    coefficient,
    expression,
    log,
    log_settings,
    log_table,
    preference,
    preference_share,
    projection,
    saturated,
    screened,
    shift,
    traits_of,
    unscored,
    with_interval,
    write,
    write_files,
    write_table,
)

__all__ = [
    "alert",
    "batch_projection",
    "check_wandb",
    "coefficient",
    "expression",
    "faults_as_warnings",
    "log",
    "log_settings",
    "log_table",
    "never_failing",
    "preference",
    "preference_share",
    "projection",
    "saturated",
    "screened",
    "shift",
    "traits_of",
    "unscored",
    "with_interval",
    "write",
    "write_files",
    "write_table",
]

"""Metrics: their names, and the only functions that write them to loggers; files that W&B keeps; loggers that fail.

Imports nothing else from the library.
"""

from persona_callbacks.tracking.artifacts import (
    screening_artifact,
    use_data,
    use_files,
    vector_artifact,
    write_files,
    write_page,
)
from persona_callbacks.tracking.faults import check_wandb, faults_as_warnings, finish_wandb, never_failing
from persona_callbacks.tracking.metrics import (
    alert,
    batch_projection,
    coefficient,
    describe,
    expression,
    flush,
    log,
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
    write_table,
)

__all__ = [
    "alert",
    "batch_projection",
    "check_wandb",
    "coefficient",
    "describe",
    "expression",
    "faults_as_warnings",
    "finish_wandb",
    "flush",
    "log",
    "log_table",
    "never_failing",
    "preference",
    "preference_share",
    "projection",
    "saturated",
    "screened",
    "screening_artifact",
    "shift",
    "traits_of",
    "unscored",
    "use_data",
    "use_files",
    "vector_artifact",
    "with_interval",
    "write",
    "write_files",
    "write_page",
    "write_table",
]

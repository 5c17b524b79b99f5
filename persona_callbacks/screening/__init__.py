"""Before training: what a data set would do to a trait, chat by chat, and what to train on instead.

Imports `tracking`, `model` and what lies below them.
"""

from persona_callbacks.screening.folder import FlaggedChat, Kind, ScoredRow, ScreeningFolder, is_flagged
from persona_callbacks.screening.logged import log_screening
from persona_callbacks.screening.merging import merge
from persona_callbacks.screening.plan import Screening, is_first_process
from persona_callbacks.screening.prediction import (
    SHIPPED,
    PredictionLine,
    find_lines,
    fit_line,
    load_lines,
    save_lines,
    shipped_lines,
)
from persona_callbacks.screening.run import kept_to_this_run, screen
from persona_callbacks.screening.selection import ScreenedData, Use, reweighted, screened_data
from persona_callbacks.screening.settings import Method, ScreeningSettings
from persona_callbacks.screening.shards import Part, Shard, score_shard, unscored_shards
from persona_callbacks.screening.start import ScreeningStart, starting_coefficients
from persona_callbacks.screening.summary import Prediction, Summary, TraitSummary

__all__ = [
    "SHIPPED",
    "FlaggedChat",
    "Kind",
    "Method",
    "Part",
    "Prediction",
    "PredictionLine",
    "ScoredRow",
    "ScreenedData",
    "Screening",
    "ScreeningFolder",
    "ScreeningSettings",
    "ScreeningStart",
    "Shard",
    "Summary",
    "TraitSummary",
    "Use",
    "find_lines",
    "fit_line",
    "is_first_process",
    "is_flagged",
    "kept_to_this_run",
    "load_lines",
    "log_screening",
    "merge",
    "reweighted",
    "save_lines",
    "score_shard",
    "screen",
    "screened_data",
    "shipped_lines",
    "starting_coefficients",
    "unscored_shards",
]

from .folder import FlaggedChat, Kind, ScoredRow, ScreeningFolder, is_flagged
from .logged import log_screening
from .merging import merge
from .plan import Screening, is_first_process
from .prediction import (
    SHIPPED,
    PredictionLine,
    find_lines,
    fit_line,
    load_lines,
    save_lines,
    shipped_lines,
)
from .run import kept_to_this_run, screen
from .selection import ScreenedData, Use, reweighted, screened_data
from .settings import Method, ScreeningSettings
from .shards import Part, Shard, score_shard, unscored_shards
from .start import ScreeningStart, starting_coefficients
from .summary import Prediction, Summary, TraitSummary

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

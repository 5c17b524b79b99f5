"""Before training: what a data set would do to a trait, chat by chat, and what to train on instead.

Imports `steering`, `model` and what lies below them.
"""

from persona_callbacks.screening.prediction import PredictionLine, find_lines, fit_line, load_lines, save_lines
from persona_callbacks.screening.results import (
    Prediction,
    Summary,
    TraitSummary,
    first_flagged,
    is_flagged,
    last_turns,
    trait_cells,
    write_rejects,
    write_results,
)
from persona_callbacks.screening.run import check_rows, screen
from persona_callbacks.screening.selection import ScreenedData, reweighted, screened_data, starting_coefficients
from persona_callbacks.screening.settings import ScreeningSettings
from persona_callbacks.screening.shards import Part, Shard, plan, score_shard, scored_lines, unscored_shards

__all__ = [
    "Part",
    "Prediction",
    "PredictionLine",
    "ScreenedData",
    "ScreeningSettings",
    "Shard",
    "Summary",
    "TraitSummary",
    "check_rows",
    "find_lines",
    "first_flagged",
    "fit_line",
    "is_flagged",
    "last_turns",
    "load_lines",
    "plan",
    "reweighted",
    "save_lines",
    "score_shard",
    "scored_lines",
    "screen",
    "screened_data",
    "starting_coefficients",
    "trait_cells",
    "unscored_shards",
    "write_rejects",
    "write_results",
]

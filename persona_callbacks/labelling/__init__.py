"""Reading answers blind: sheets of answers without their runs, readers' labels, and what these say of runs and scores.

Imports `judging`, `vectors` and the rooms below them.
"""

from persona_callbacks.labelling.asking import ask_labels
from persona_callbacks.labelling.collecting import CollectedAnswer, Source, collect_answers
from persona_callbacks.labelling.results import (
    LabelResults,
    ReaderAgreement,
    RunRate,
    cohens_kappa,
    label_calibration,
    label_results,
    proportion,
)
from persona_callbacks.labelling.scores import joined_scores
from persona_callbacks.labelling.sheet import Label, LabelFolder, Sheet

__all__ = [
    "CollectedAnswer",
    "Label",
    "LabelFolder",
    "LabelResults",
    "ReaderAgreement",
    "RunRate",
    "Sheet",
    "Source",
    "ask_labels",
    "cohens_kappa",
    "collect_answers",
    "joined_scores",
    "label_calibration",
    "label_results",
    "proportion",
]

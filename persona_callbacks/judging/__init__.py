"""How much a response shows a trait: judges, their calibration, and trait expression.

Imports `model`, `traits` and the rooms below them.
"""

from persona_callbacks.judging.cached import CachedJudge
from persona_callbacks.judging.calibration import calibrate
from persona_callbacks.judging.contrastive import (
    CONTROLS,
    ContrastiveJudge,
    Likelihoods,
    judging_pairs,
    likelihoods,
    without_loop,
)
from persona_callbacks.judging.estimates import Estimate, ends_of
from persona_callbacks.judging.expression import Expression, answer_questions, scores_or_error
from persona_callbacks.judging.judge import Answer, Judge, JudgedAnswer, Score, Verdict
from persona_callbacks.judging.llm import LlmJudge, read_score
from persona_callbacks.judging.ranking import Ranking
from persona_callbacks.judging.recalibration import LabelCalibration, read_calibrations, recalibrated

__all__ = [
    "CONTROLS",
    "Answer",
    "CachedJudge",
    "ContrastiveJudge",
    "Estimate",
    "Expression",
    "Judge",
    "JudgedAnswer",
    "LabelCalibration",
    "Likelihoods",
    "LlmJudge",
    "Ranking",
    "Score",
    "Verdict",
    "answer_questions",
    "calibrate",
    "ends_of",
    "judging_pairs",
    "likelihoods",
    "read_calibrations",
    "read_score",
    "recalibrated",
    "scores_or_error",
    "without_loop",
]

from .cached import CachedJudge
from .calibration import calibrate
from .contrastive import (
    CONTROLS,
    ContrastiveJudge,
    Likelihoods,
    judging_pairs,
    likelihoods,
    without_loop,
)
from .estimates import Estimate, ends_of
from .expression import Expression, answer_questions, scores_or_error
from .judge import Answer, Judge, JudgedAnswer, Score, Verdict
from .llm import LlmJudge, read_score
from .ranking import Ranking
from .recalibration import LabelCalibration, read_calibrations, recalibrated

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

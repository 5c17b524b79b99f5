"""LoRA fine-tuning for those without a script of their own: the module, the data module, and the study that
`persona-train` runs.

Imports `callbacks`, `extraction`, `screening` and what lies below them.
"""

from persona_callbacks.training.data import ChatData, ResumableLoader
from persona_callbacks.training.labels import RunLabel
from persona_callbacks.training.lora import LoraFineTuning, NonFiniteLossError, ValidatedFineTuning
from persona_callbacks.training.pictures import summary, trajectory_figure
from persona_callbacks.training.results import RunResult
from persona_callbacks.training.schedules import ConstantRate, CosineDecay, LearningRateSchedule, LinearDecay
from persona_callbacks.training.settings import Steering, StudySettings
from persona_callbacks.training.study import run_study
from persona_callbacks.training.sweeps import Sweep, SweepRow
from persona_callbacks.training.tracked import without_trait_texts
from persona_callbacks.training.training_data import TrainingData

__all__ = [
    "ChatData",
    "ConstantRate",
    "CosineDecay",
    "LearningRateSchedule",
    "LinearDecay",
    "LoraFineTuning",
    "NonFiniteLossError",
    "ResumableLoader",
    "RunLabel",
    "RunResult",
    "Steering",
    "StudySettings",
    "Sweep",
    "SweepRow",
    "TrainingData",
    "ValidatedFineTuning",
    "run_study",
    "summary",
    "trajectory_figure",
    "without_trait_texts",
]

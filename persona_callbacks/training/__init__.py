"""LoRA fine-tuning for those without a script of their own: the module, the data module, and the study that
`persona-train` runs.

Imports `callbacks`, `extraction`, `screening` and what lies below them.
"""

from persona_callbacks.training.data import ChatData, ResumableLoader
from persona_callbacks.training.lora import LoraFineTuning
from persona_callbacks.training.results import RunResult, summary, trajectory_figure

__all__ = [
    "ChatData",
    "LoraFineTuning",
    "ResumableLoader",
    "RunResult",
    "summary",
    "trajectory_figure",
]

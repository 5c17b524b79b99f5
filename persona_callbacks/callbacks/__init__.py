"""Lightning callbacks: what people add to a `Trainer`.

Imports `steering`, `judging`, `model` and what lies below them.
"""

from persona_callbacks.callbacks.ablation import Ablation
from persona_callbacks.callbacks.guard import DriftGuard
from persona_callbacks.callbacks.monitor import PersonaMonitor
from persona_callbacks.callbacks.regularisation import ProjectionRegularisation
from persona_callbacks.callbacks.steering import PreventativeSteering
from persona_callbacks.callbacks.trait_evaluation import Evaluation, TraitEvaluation
from persona_callbacks.steering import Reading

__all__ = [
    "Ablation",
    "DriftGuard",
    "Evaluation",
    "PersonaMonitor",
    "PreventativeSteering",
    "ProjectionRegularisation",
    "Reading",
    "TraitEvaluation",
]

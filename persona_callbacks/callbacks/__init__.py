"""Lightning callbacks."""

from persona_callbacks.callbacks.ablation import Ablation
from persona_callbacks.callbacks.guard import DriftGuard
from persona_callbacks.callbacks.monitor import PersonaMonitor
from persona_callbacks.callbacks.regularisation import ProjectionRegularisation
from persona_callbacks.callbacks.steering import PreventativeSteering
from persona_callbacks.callbacks.trait_evaluation import TraitEvaluation

__all__ = [
    "Ablation",
    "DriftGuard",
    "PersonaMonitor",
    "PreventativeSteering",
    "ProjectionRegularisation",
    "TraitEvaluation",
]

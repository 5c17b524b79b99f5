"""Persona vectors for PyTorch Lightning: know, and control, what fine-tuning does to a model's character."""

from persona_callbacks.callbacks import (
    Ablation,
    DriftGuard,
    PersonaMonitor,
    PreventativeSteering,
    ProjectionRegularisation,
    TraitEvaluation,
)
from persona_callbacks.errors import InputError
from persona_callbacks.steering import Adaptive, Constant, Law, Schedule
from persona_callbacks.traits import Trait
from persona_callbacks.vectors import PersonaVector

__all__ = [
    "Ablation",
    "Adaptive",
    "Constant",
    "DriftGuard",
    "InputError",
    "Law",
    "PersonaMonitor",
    "PersonaVector",
    "PreventativeSteering",
    "ProjectionRegularisation",
    "Schedule",
    "Trait",
    "TraitEvaluation",
]

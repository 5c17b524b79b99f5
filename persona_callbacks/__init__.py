"""Persona vectors for PyTorch Lightning: know, and control, what fine-tuning does to a model's character."""

from persona_callbacks.callbacks import (
    Ablation,
    DriftGuard,
    PersonaMonitor,
    PreventativeSteering,
    ProjectionRegularisation,
    TraitEvaluation,
    TransformersCallback,
)
from persona_callbacks.errors import InputError
from persona_callbacks.model import unsteered
from persona_callbacks.steering import Adaptive, Constant, Law, Reference, Schedule
from persona_callbacks.traits import MinimalPair, Trait
from persona_callbacks.vectors import PersonaVector

__all__ = [
    "Ablation",
    "Adaptive",
    "Constant",
    "DriftGuard",
    "InputError",
    "Law",
    "MinimalPair",
    "PersonaMonitor",
    "PersonaVector",
    "PreventativeSteering",
    "ProjectionRegularisation",
    "Reference",
    "Schedule",
    "Trait",
    "TraitEvaluation",
    "TransformersCallback",
    "unsteered",
]

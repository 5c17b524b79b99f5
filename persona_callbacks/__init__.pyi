from .callbacks import (
    Ablation,
    DriftGuard,
    PersonaMonitor,
    PreventativeSteering,
    ProjectionRegularisation,
    TraitEvaluation,
)
from .callbacks.transformers_trainer import TransformersCallback
from .errors import InputError
from .model import unsteered
from .steering import Adaptive, Constant, Law, Reference, Schedule
from .traits import MinimalPair, Trait
from .vectors import PersonaVector

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

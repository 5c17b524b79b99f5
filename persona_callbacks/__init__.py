"""Persona vectors for PyTorch Lightning: know, and control, what fine-tuning does to a model's character."""

from persona_callbacks.callbacks import PersonaMonitor, PreventativeSteering, TraitEvaluation
from persona_callbacks.errors import InputError
from persona_callbacks.traits import Trait
from persona_callbacks.vectors import PersonaVector

__all__ = ["InputError", "PersonaMonitor", "PersonaVector", "PreventativeSteering", "Trait", "TraitEvaluation"]

"""Lightning callbacks."""

from persona_callbacks.callbacks.evaluation import TraitEvaluation
from persona_callbacks.callbacks.monitor import PersonaMonitor
from persona_callbacks.callbacks.steering import PreventativeSteering

__all__ = ["PersonaMonitor", "PreventativeSteering", "TraitEvaluation"]

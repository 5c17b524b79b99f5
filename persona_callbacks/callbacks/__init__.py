"""Lightning callbacks: what people add to a `Trainer`; and what has transformers' `Trainer` run them.

Imports `steering`, `judging`, `model` and what lies below them. `transformers_trainer` is imported by the facade of the
package alone, when it is asked for: transformers' trainer takes seconds to import, and prints.
"""

from persona_callbacks.callbacks.ablation import Ablation
from persona_callbacks.callbacks.environment import monitors_of_environment
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
    "monitors_of_environment",
]

"""From a trait to a persona vector: responses, the mean difference or what is learned, the choice of a layer.

Imports `judging`, `model` and the rooms below them.
"""

from persona_callbacks.extraction.adapted import adapter_directions
from persona_callbacks.extraction.causes import HeldOut, Texts, causal_points, shipped_texts, unmeasured_chats
from persona_callbacks.extraction.contrast import Contrast, Separation
from persona_callbacks.extraction.extraction import (
    SHIPPED,
    Extraction,
    extract,
    load_extraction,
    persona_vector,
)
from persona_callbacks.extraction.figures import cosine_figure, curve_figure, layer_figure
from persona_callbacks.extraction.instructions import Elicited
from persona_callbacks.extraction.layer_choice import (
    Steered,
    best_layer,
    candidate_layers,
    coherence,
    steered_expression,
    steering_effect,
)
from persona_callbacks.extraction.learning import LearningSettings, learn_directions
from persona_callbacks.extraction.logged import log_vectors
from persona_callbacks.extraction.responses import Judged, Response, generate_responses, judge_responses, kinds
from persona_callbacks.extraction.settings import ExtractionJob, ExtractionSettings

__all__ = [
    "SHIPPED",
    "Contrast",
    "Elicited",
    "Extraction",
    "ExtractionJob",
    "ExtractionSettings",
    "HeldOut",
    "Judged",
    "LearningSettings",
    "Response",
    "Separation",
    "Steered",
    "Texts",
    "adapter_directions",
    "best_layer",
    "candidate_layers",
    "causal_points",
    "coherence",
    "cosine_figure",
    "curve_figure",
    "extract",
    "generate_responses",
    "judge_responses",
    "kinds",
    "layer_figure",
    "learn_directions",
    "load_extraction",
    "log_vectors",
    "persona_vector",
    "shipped_texts",
    "steered_expression",
    "steering_effect",
    "unmeasured_chats",
]

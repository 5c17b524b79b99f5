"""The only room that touches a language model: loading, the residual stream, activations, likelihoods, generation.

Imports `vectors`, `chats` and what lies below them.
"""

from persona_callbacks.model.activations import activations, iterate_activations, position_weights, projections
from persona_callbacks.model.adapters import adapter_obstacle, is_untrained, removable_adapters
from persona_callbacks.model.architecture import (
    Dimensions,
    LanguageModel,
    device_of,
    dimensions,
    find_language_model,
)
from persona_callbacks.model.base_work import base_work, sharing_base_work
from persona_callbacks.model.batching import BatchLimits, Group, shared_groups
from persona_callbacks.model.differences import approximate_difference, projection_difference
from persona_callbacks.model.endpoint import Endpoint
from persona_callbacks.model.generation import (
    Generator,
    Sampling,
    TransformersGenerator,
    VllmGenerator,
    generate,
    iterate_responses,
    own_responses,
    stream_response,
)
from persona_callbacks.model.gguf import converted_gguf, packaged_gguf
from persona_callbacks.model.likelihood import (
    batch_distributions,
    batch_log_probabilities,
    divergence,
    response_divergences,
    response_log_probabilities,
)
from persona_callbacks.model.loading import (
    LoadedModel,
    ModelSource,
    adapted,
    adapter_fingerprint,
    check_adapter,
    load_model,
    move,
    weights_fingerprint,
    with_adapter,
)
from persona_callbacks.model.modes import base_model, frozen, probing
from persona_callbacks.model.passes import unsteered
from persona_callbacks.model.preference import EncodedPair, encode_pair, preferences
from persona_callbacks.model.residual import (
    BatchReader,
    ResidualWriter,
    SharedPrefix,
    adding,
    read,
    share_prefix,
    steered,
)
from persona_callbacks.model.sharding import is_sharded, sharding_obstacle, split_like, whole

__all__ = [
    "BatchLimits",
    "BatchReader",
    "Dimensions",
    "EncodedPair",
    "Endpoint",
    "Generator",
    "Group",
    "LanguageModel",
    "LoadedModel",
    "ModelSource",
    "ResidualWriter",
    "Sampling",
    "SharedPrefix",
    "TransformersGenerator",
    "VllmGenerator",
    "activations",
    "adapted",
    "adapter_fingerprint",
    "adapter_obstacle",
    "adding",
    "approximate_difference",
    "base_model",
    "base_work",
    "batch_distributions",
    "batch_log_probabilities",
    "check_adapter",
    "converted_gguf",
    "device_of",
    "dimensions",
    "divergence",
    "encode_pair",
    "find_language_model",
    "frozen",
    "generate",
    "is_sharded",
    "is_untrained",
    "iterate_activations",
    "iterate_responses",
    "load_model",
    "move",
    "own_responses",
    "packaged_gguf",
    "position_weights",
    "preferences",
    "probing",
    "projection_difference",
    "projections",
    "read",
    "removable_adapters",
    "response_divergences",
    "response_log_probabilities",
    "sharding_obstacle",
    "share_prefix",
    "shared_groups",
    "sharing_base_work",
    "split_like",
    "steered",
    "stream_response",
    "unsteered",
    "weights_fingerprint",
    "whole",
    "with_adapter",
]

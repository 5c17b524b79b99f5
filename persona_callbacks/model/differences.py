"""Projection differences: how much further training responses lie along persona vectors than the base model's own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from persona_callbacks.chats import EncodedChat
from persona_callbacks.model.activations import activations, projections
from persona_callbacks.model.batching import BatchLimits
from persona_callbacks.model.generation import Sampling, own_responses
from persona_callbacks.model.loading import LoadedModel
from persona_callbacks.model.modes import base_model
from persona_callbacks.vectors import PersonaVector


def projection_difference(
    loaded: LoadedModel,
    chats: Sequence[EncodedChat],
    vectors: Sequence[PersonaVector],
    sampling: Sampling,
    layers: Sequence[Sequence[int]] | None = None,
    limits: BatchLimits | None = None,
) -> Tensor:
    """Compute how much further each training response lies along every persona vector than the base model's own
    response to the same prompt, each averaged over its tokens (6.1).

    The model is neither steered nor changed by adapters, which are disabled meanwhile.

    Args:
        loaded: a causal language model with its tokenizer, bare or with adapters.
        chats: the training data; of each chat, the last response counts.
        vectors: the persona vectors to project on.
        sampling: how the base model's own responses are generated.
        layers: for each vector the layers at which to project, equally many for all vectors; by default its chosen
            layer.
        limits: how large a forward pass that reads activations may be; by default the sampling's batch size.

    Returns:
        ``[chats, vectors, layers]`` float32 on the model's device, in activation units.
    """
    with base_model(loaded.model):
        own = own_responses(loaded, chats, sampling)
        # One call for both, so that the prompt that the two responses to it share is run once.
        both = projections(
            loaded, [*chats, *own], vectors, "response_mean", layers, limits or BatchLimits(sampling.batch_size)
        )
    return both[: len(chats)] - both[len(chats) :]


def approximate_difference(
    loaded: LoadedModel,
    chats: Sequence[EncodedChat],
    vectors: Sequence[PersonaVector],
    limits: BatchLimits,
) -> Tensor:
    """Approximate the projection difference without generation (Appendix I): the mean projection of the response minus
    the projection of the prompt's last token, which stands for what the base model was about to say.

    The model is neither steered nor changed by adapters, which are disabled meanwhile.

    Args:
        loaded: a causal language model with its tokenizer, bare or with adapters.
        chats: the training data; of each chat, the last response counts.
        vectors: the persona vectors to project on, each at its chosen layer.
        limits: how large a forward pass may be.

    Returns:
        ``[chats, vectors]`` float32 on the model's device, in activation units.
    """
    layers = sorted({vector.layer for vector in vectors})
    with base_model(loaded.model):
        read = activations(loaded, chats, layers, ["response_mean", "prompt_last"], limits)
    differences = (read[:, 0] - read[:, 1])[:, [layers.index(vector.layer) for vector in vectors]]
    units = torch.stack([vector.unit_direction() for vector in vectors]).to(differences.device)
    return (differences * units).sum(dim=-1)

"""Projection differences: how much further training responses lie along persona vectors than the model's own."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from persona_callbacks.chats import EncodedChat
from persona_callbacks.model import residual
from persona_callbacks.model.activations import activations, projections
from persona_callbacks.model.generation import Sampling, own_responses
from persona_callbacks.vectors import PersonaVector


def projection_difference(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[EncodedChat],
    vectors: Sequence[PersonaVector],
    sampling: Sampling,
    layers: Sequence[Sequence[int]] | None = None,
    batch_tokens: int | None = None,
) -> Tensor:
    """How much further each training response lies along every persona vector than the base model's own response to the
    same prompt, both averaged over their tokens (6.1). Never steered; adapters are disabled.

    Args:
        model: a causal language model, bare or with adapters.
        tokenizer: of the model.
        chats: training data; the response is each chat's last.
        vectors: to project on.
        sampling: how the model's own responses are generated, and the batch size of all passes.
        layers: for each vector the layers at which to project, as many for all; by default its chosen layer.
        batch_tokens: of the passes that read activations, in place of the sampling's batch size.

    Returns:
        ``[chats, vectors, layers]`` float32 on the model's device, in activation units.
    """
    with residual.base_model(model):
        own = own_responses(model, tokenizer, chats, sampling)
        # In one call: a chat's prompt is shared by its two responses and run once.
        size = sampling.batch_size if batch_tokens is None else None
        both = projections(model, tokenizer, [*chats, *own], vectors, "response_mean", size, layers, batch_tokens)
    return both[: len(chats)] - both[len(chats) :]


def approximate_difference(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[EncodedChat],
    vectors: Sequence[PersonaVector],
    batch_tokens: int,
) -> Tensor:
    """The projection difference without generation: the response's mean projection less that of the prompt's last
    token, which stands for what the base model was about to say (Appendix I). Never steered; adapters are disabled.

    Returns:
        ``[chats, vectors]`` float32 on the model's device, in activation units.
    """
    layers = sorted({vector.layer for vector in vectors})
    with residual.base_model(model):
        read = activations(model, tokenizer, chats, layers, ["response_mean", "prompt_last"], None, batch_tokens)
    differences = (read[:, 0] - read[:, 1])[:, [layers.index(vector.layer) for vector in vectors]]
    units = torch.stack([vector.unit_direction() for vector in vectors]).to(differences.device)
    return (differences * units).sum(dim=-1)

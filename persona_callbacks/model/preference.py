"""Which response of a minimal pair a model prefers."""

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from persona_callbacks.chats import Chat, EncodedChat, encode_chat
from persona_callbacks.model.batching import BatchLimits
from persona_callbacks.model.likelihood import response_log_probabilities
from persona_callbacks.model.loading import LoadedModel
from persona_callbacks.traits import MinimalPair

EncodedPair = tuple[EncodedChat, EncodedChat]
"""The chats of a minimal pair: the one that shows the trait, then the other."""


def encode_pair(pair: MinimalPair, tokenizer: PreTrainedTokenizerBase) -> EncodedPair:
    """Return the tokens of both chats of a minimal pair.

    Raises:
        InputError: as for :func:`~persona_callbacks.chats.encode_chat`.
    """
    shows, not_shows = (
        encode_chat(
            Chat(({"role": "user", "content": pair.question}, {"role": "assistant", "content": response})), tokenizer
        )
        for response in (pair.trait, pair.opposite)
    )
    return shows, not_shows


def preferences(
    loaded: LoadedModel,
    pairs: Sequence[EncodedPair],
    limits: BatchLimits = BatchLimits(),  # noqa: B008, frozen
) -> Tensor:
    """Compute, for each minimal pair, the log-probability per token of the response that shows the trait minus that of
    the other.

    The two responses are alike in register and length, so that the difference is of the trait. A model's *preference*
    is this less the base model's. The model is run as the caller left it: steered if it is steered, with its adapters,
    in its mode.

    Args:
        loaded: a causal language model with its tokenizer.
        pairs: from :func:`encode_pair`.
        limits: how large a forward pass may be.

    Returns:
        ``[pairs]`` float32 in nats per token, on the CPU.
    """
    chats = [chat for pair in pairs for chat in pair]
    likely = response_log_probabilities(loaded, chats, limits).view(len(pairs), 2)
    return likely[:, 0] - likely[:, 1]

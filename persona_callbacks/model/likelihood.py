"""How likely given responses are under a model."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from persona_callbacks.chats import EncodedChat, pad, pad_token
from persona_callbacks.model import residual
from persona_callbacks.model.architecture import device_of
from persona_callbacks.model.batching import BatchLimits, shared_groups
from persona_callbacks.model.loading import LoadedModel


def response_log_probabilities(
    loaded: LoadedModel,
    chats: Sequence[EncodedChat],
    limits: BatchLimits = BatchLimits(),  # noqa: B008, frozen
    advance: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Compute the mean log-probability per token of each chat's last response.

    The model is run as the caller left it: steered if it is steered, with its adapters, in its mode. What chats share
    at their beginning is computed once.

    Args:
        loaded: a causal language model with its tokenizer.
        chats: what to run; each has a response.
        limits: how large a forward pass may be.
        advance: is called after each batch with the number of chats in it.

    Returns:
        ``[chats]`` float32 in nats, on the CPU.
    """
    device = device_of(loaded.model)
    means = torch.empty(len(chats))
    for group in shared_groups(chats, limits):
        shared = chats[group.batches[0][0]].input_ids[: group.prefix_length]
        with torch.no_grad():
            prefix = residual.share_prefix(loaded.model, shared, None)
        for indices in group.batches:
            batch = [chats[index] for index in indices]
            means[list(indices)] = _means(loaded.model, batch, pad_token(loaded.tokenizer), prefix, device).cpu()
            advance(len(indices))
    return means


@torch.no_grad()
def _means(
    model: nn.Module,
    batch: Sequence[EncodedChat],
    pad_token_id: int,
    prefix: residual.SharedPrefix | None,
    device: torch.device,
) -> Tensor:
    tokens = pad(batch, pad_token_id)
    ids, mask = tokens["input_ids"].to(device), tokens["attention_mask"].to(device)
    marked = torch.zeros(ids.shape, dtype=torch.bool)
    for row, chat in enumerate(batch):
        marked[row, : len(chat.response_mask)] = torch.tensor(chat.response_mask)
    # The head, which is as wide as the vocabulary, runs only from the token before the earliest response on.
    first = min(chat.prompt_length for chat in batch) - 1
    keep = ids.shape[1] - first
    if prefix is None:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits
    else:
        cache = prefix.repeated(len(batch))
        ids_after = ids[:, prefix.length :]
        logits = model(input_ids=ids_after, attention_mask=mask, past_key_values=cache, logits_to_keep=keep).logits
    chosen = marked[:, first + 1 :].to(device)
    losses = torch.zeros(chosen.shape, device=device)
    losses[chosen] = nn.functional.cross_entropy(
        logits[:, :-1][chosen].float(), ids[:, first + 1 :][chosen], reduction="none"
    )
    return -losses.sum(dim=1) / chosen.sum(dim=1)

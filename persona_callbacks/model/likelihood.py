"""How likely given responses are under a model."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from persona_callbacks.chats import EncodedChat, pad, pad_token
from persona_callbacks.model import residual
from persona_callbacks.model.architecture import device_of
from persona_callbacks.model.batching import BatchLimits, groups_for
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
    for group in groups_for(loaded.model, chats, limits):
        shared = chats[group.batches[0][0]].input_ids[: group.prefix_length]
        with torch.no_grad():
            prefix = residual.share_prefix(loaded.model, shared, None)
        for indices in group.batches:
            batch = [chats[index] for index in indices]
            with torch.no_grad():
                part = _means(loaded.model, batch, pad_token(loaded.tokenizer), prefix, device)
            means[list(indices)] = part.cpu()
            advance(len(indices))
    return means


def batch_log_probabilities(loaded: LoadedModel, batch: Sequence[EncodedChat]) -> Tensor:
    """Compute what :func:`response_log_probabilities` computes, in a single pass and with gradients.

    Returns:
        ``[chats]`` float32 in nats, on the model's device.
    """
    return _means(loaded.model, batch, pad_token(loaded.tokenizer), None, device_of(loaded.model))


def response_divergences(
    loaded: LoadedModel,
    chats: Sequence[EncodedChat],
    additions: Mapping[int, Tensor],
    limits: BatchLimits = BatchLimits(),  # noqa: B008, frozen
) -> Tensor:
    """Compute what steering changes about each chat's last response.

    Args:
        loaded: a causal language model with its tokenizer.
        chats: what to run; each has a response.
        additions: what to add at each layer, as for :func:`~persona_callbacks.model.steered`.
        limits: how large a forward pass may be.

    Returns:
        ``[chats, 2]`` float32 on the CPU, means per token in nats: the change of the log-probability, and the
        Kullback-Leibler divergence of the steered distribution of the next token from the unsteered one.
    """
    changes = torch.empty(len(chats), 2)
    size = limits.chats or len(chats)
    for start in range(0, len(chats), size):
        batch = chats[start : start + size]
        with torch.no_grad():
            before = batch_distributions(loaded, batch)
            with residual.steered(loaded.model, additions):
                after = batch_distributions(loaded, batch)
        for row, (chat, unsteered, steered) in enumerate(zip(batch, before, after, strict=True), start=start):
            said = torch.tensor(chat.input_ids)[torch.tensor(chat.response_mask)].to(steered.device)
            change = (steered - unsteered).gather(1, said.unsqueeze(1)).mean()
            changes[row] = torch.stack([change, divergence(unsteered, steered)]).cpu()
    return changes


def divergence(before: Tensor, after: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of ``after`` from ``before``: log-probabilities ``[tokens, vocabulary]``; a
    scalar, the mean over the tokens in nats.
    """
    return nn.functional.kl_div(after, before, log_target=True, reduction="batchmean")


def batch_distributions(loaded: LoadedModel, batch: Sequence[EncodedChat]) -> list[Tensor]:
    """Compute the distributions of the tokens of each chat's last response, in a single pass and with gradients.

    The model is run as the caller left it.

    Returns:
        For each chat, log-probabilities ``[response tokens, vocabulary]`` float32 on the model's device.
    """
    device = device_of(loaded.model)
    _, first, logits = _logits(loaded.model, batch, pad_token(loaded.tokenizer), None, device)
    rows = [[at - 1 - first for at, marked in enumerate(chat.response_mask) if marked] for chat in batch]
    return [scores[row].float().log_softmax(dim=-1) for scores, row in zip(logits, rows, strict=True)]


def _means(
    model: nn.Module,
    batch: Sequence[EncodedChat],
    pad_token_id: int,
    prefix: residual.SharedPrefix | None,
    device: torch.device,
) -> Tensor:
    ids, first, logits = _logits(model, batch, pad_token_id, prefix, device)
    marked = torch.zeros(ids.shape, dtype=torch.bool)
    for row, chat in enumerate(batch):
        marked[row, : len(chat.response_mask)] = torch.tensor(chat.response_mask)
    chosen = marked[:, first + 1 :].to(device)
    losses = torch.zeros(chosen.shape, device=device)
    losses[chosen] = nn.functional.cross_entropy(
        logits[:, :-1][chosen].float(), ids[:, first + 1 :][chosen], reduction="none"
    )
    return -losses.sum(dim=1) / chosen.sum(dim=1)


def _logits(
    model: nn.Module,
    batch: Sequence[EncodedChat],
    pad_token_id: int,
    prefix: residual.SharedPrefix | None,
    device: torch.device,
) -> tuple[Tensor, int, Tensor]:
    """The padded ids ``[chats, length]``, the first position with logits, and the logits from there on."""
    tokens = pad(batch, pad_token_id)
    ids, mask = tokens["input_ids"].to(device), tokens["attention_mask"].to(device)
    # The head, which is as wide as the vocabulary, runs only from the token before the earliest response on.
    first = min(chat.prompt_length for chat in batch) - 1
    keep = ids.shape[1] - first
    if prefix is None:
        return ids, first, model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits
    cache = prefix.repeated(len(batch))
    ids_after = ids[:, prefix.length :]
    logits = model(input_ids=ids_after, attention_mask=mask, past_key_values=cache, logits_to_keep=keep).logits
    return ids, first, logits

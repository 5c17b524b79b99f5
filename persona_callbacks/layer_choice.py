"""At which layer to read a persona vector: two kinds of evidence, and the choice.

Held-out AUC says how well a layer's direction tells trait responses from others. It rises towards the last layers,
which hold the words about to be said. The steering effect says how much the model's own behaviour follows from the
direction, and peaks in the middle; it decides (Chen et al. 2025 choose by steering too).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc

from persona_callbacks import residual
from persona_callbacks.chats import EncodedChat, pad


def mean_difference(activations: Tensor, shows: Tensor) -> Tensor:
    """Mean over responses that show the trait minus mean over the others.

    Summed in float64, since the gap between two means can be tiny beside the means.

    Args:
        activations: ``[responses, layers, hidden_size]``.
        shows: ``[responses]`` bool.

    Returns:
        ``[layers, hidden_size]`` float32.
    """
    return (activations[shows].double().mean(dim=0) - activations[~shows].double().mean(dim=0)).float()


def held_out_auc(activations: Tensor, shows: Tensor, fold: Tensor) -> Tensor:
    """Per layer, how well the direction from one half of the questions ranks the responses to the other half.

    Args:
        activations: ``[responses, layers, hidden_size]``.
        shows: ``[responses]`` bool.
        fold: ``[responses]``, 0 or 1: the half that the response's question is in.

    Returns:
        ``[layers]``, from 0.5 (chance) to 1; mean of both halves.
    """
    halves = []
    for held_out in (0, 1):
        inside, outside = fold != held_out, fold == held_out
        scores = (activations[outside] * mean_difference(activations[inside], shows[inside])).sum(dim=-1)
        # torchmetrics takes values outside [0, 1] for logits, and its sigmoid would saturate on raw projections.
        spread = (scores - scores.mean(dim=0)) / scores.std(dim=0).clamp_min(1e-12)
        labels = shows[outside].int()
        halves.append(torch.stack([binary_auroc(torch.sigmoid(column), labels) for column in spread.T]))
    return torch.stack(halves).mean(dim=0)


def steering_effect(
    model: nn.Module,
    trait_chats: Sequence[EncodedChat],
    opposite_chats: Sequence[EncodedChat],
    directions: Tensor,
    pad_token_id: int,
    advance: Callable[[], None] = lambda: None,
) -> dict[int, float]:
    """By layer, what adding its direction there does to what the model would say.

    Measured as the rise of the mean log-probability per token of trait responses, less that of opposite responses. The
    chats must not hold the instructions that the responses were made under.

    Args:
        model: the model that the directions are of.
        trait_chats: questions with responses that show the trait.
        opposite_chats: questions with responses that do not.
        directions: ``[num_layers + 1, hidden_size]``.
        pad_token_id: to pad with.
        advance: called after each layer.

    Returns:
        Nats per token for some fifteen layers, evenly spaced.
    """
    candidates = effect_layers(directions.shape[0] - 1)
    unsteered = _preference(model, trait_chats, opposite_chats, pad_token_id)
    effects = {}
    for layer in candidates:
        with residual.steered(model, {layer: directions[layer]}):
            effects[layer] = _preference(model, trait_chats, opposite_chats, pad_token_id) - unsteered
        advance()
    return effects


def effect_layers(num_layers: int) -> list[int]:
    """The layers whose steering effect is measured."""
    step = max(1, num_layers // 15)
    return list(range(step, num_layers, step))


def _preference(
    model: nn.Module, trait_chats: Sequence[EncodedChat], opposite_chats: Sequence[EncodedChat], pad_token_id: int
) -> float:
    means = [_log_probabilities(model, chats, pad_token_id).mean() for chats in (trait_chats, opposite_chats)]
    return float(means[0] - means[1])


def _log_probabilities(model: nn.Module, chats: Sequence[EncodedChat], pad_token_id: int) -> Tensor:
    """Mean log-probability per response token of each chat: ``[chats]``."""
    device = residual.device_of(model)
    batch = pad(chats, pad_token_id)
    ids = batch["input_ids"].to(device)
    marked = torch.zeros(ids.shape, dtype=torch.bool)
    for row, chat in enumerate(chats):
        marked[row, : len(chat.response_mask)] = torch.tensor(chat.response_mask)
    marked = marked[:, 1:].to(device)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=batch["attention_mask"].to(device), use_cache=False).logits
        losses = nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")
    return -(losses * marked).sum(dim=1) / marked.sum(dim=1)

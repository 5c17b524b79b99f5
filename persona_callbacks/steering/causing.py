"""How far steering with a vector moves what the model prefers."""

import torch
from torch import Tensor

from persona_callbacks.errors import InputError
from persona_callbacks.model import BatchLimits, base_model, encode_pair, preferences, probing, steered
from persona_callbacks.steering.fit import Fit
from persona_callbacks.vectors import steering_additions


def preference_pushes(fit: Fit) -> Tensor:
    """How far one unit of each raw direction moves each trait's preference: ``[vectors, vectors]`` float64, in nats per
    token. Row ``t`` is of the pairs of trait ``t``.

    The base model is steered by each vector in turn, with a coefficient of 1, where training steers and at all tokens.
    Each process runs the share of the monitor's pairs that falls to it.

    Raises:
        InputError: a vector does not make the responses of its own trait likelier, by two standard errors over the
            pairs: what does not cause the trait as the pairs measure it cannot be controlled by them.
    """
    traits = [vector.trait for vector in fit.vectors]
    pairs = [(row, pair) for row, trait in enumerate(traits) for pair in fit.pairs[trait]]
    encoded = [encode_pair(pair, fit.loaded.tokenizer) for _, pair in pairs]
    limits = BatchLimits(2 * fit.batch_size)
    moved = torch.zeros(len(pairs), len(traits), dtype=torch.float64)
    with base_model(fit.loaded.model), probing(fit.loaded.model):
        before = preferences(fit.loaded, encoded, limits).double()
        for column, vector in enumerate(fit.vectors):
            with steered(fit.loaded.model, steering_additions([vector], {vector.trait: 1.0}, fit.layers)):
                moved[:, column] = preferences(fit.loaded, encoded, limits).double() - before
    sums = torch.zeros(3, len(traits), len(traits), dtype=torch.float64)
    sums.index_add_(
        1,
        torch.tensor([row for row, _ in pairs], dtype=torch.int64),
        torch.stack([moved, moved**2, torch.ones_like(moved)]),
    )
    total, squares, count = fit.sum(sums)
    pushes: Tensor = total / count
    # The standard error of a mean over pairs; without a second pair there is none.
    error = ((squares / count - pushes**2).clamp_min(0) / (count - 1)).sqrt().nan_to_num(torch.inf, torch.inf)
    for row, trait in enumerate(traits):
        push, doubt = float(pushes[row, row]), 2 * float(error[row, row])
        if not push > doubt:
            raise InputError(
                f"adaptive steering: a coefficient of 1 moves the preference of {trait} on its"
                f" {int(count[row, row])} minimal pairs by {push:+.3f} ± {doubt:.3f} nats per token, so the vector"
                " does not cause the trait as the pairs measure it; choose sensor='shift', another vector, or other"
                " pairs"
            )
    return pushes

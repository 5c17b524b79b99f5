"""What training data would do to a model's character, predicted before training (Chen et al. 2025, section 6)."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from persona_callbacks.chats import EncodedChat, pad, pad_token
from persona_callbacks.model import LoadedModel, base_model, device_of, probing, residual
from persona_callbacks.steering.solving import nonnegative_minimum, pushes
from persona_callbacks.vectors import Layers, PersonaVector, SteeredPositions, steering_additions, steering_layers

_STEP = 0.4
"""Spacing of the coefficients at which the likelihood is taken, in units of the raw direction."""

_HIGHEST = 2.0
"""How far the parabola through them is trusted."""


def matching_coefficients(difference: Tensor, vectors: Sequence[PersonaVector]) -> list[float]:
    """The coefficients, none negative, at which steering moves the base model's activations as far along every vector
    as the data lie.

    For one trait that is projection difference / norm of the direction. Correlated directions push each other's
    projection as well, so several are solved for together, by least squares.

    Args:
        difference: ``[vectors]``, the projection difference of a data set at the chosen layers, in activation units.
        vectors: one per trait, of one model.
    """
    moves = pushes(vectors)
    return nonnegative_minimum(moves.T @ moves, -moves.T @ difference.double().cpu()).tolist()


def likelihoods_under_steering(
    loaded: LoadedModel,
    chats: Sequence[EncodedChat],
    vectors: Sequence[PersonaVector],
    coefficients: Sequence[Sequence[float]],
    layers: Layers = "all",
    positions: SteeredPositions = "all",
    batch_size: int = 8,
    advance: Callable[[], None] = lambda: None,
) -> Tensor:
    """Summed log-probability of the chats' response tokens under the base model, steered with each combination of
    coefficients: ``[combinations, 2]`` float64 on the CPU, the sum in nats and the number of tokens.

    Args:
        loaded: a causal language model with its tokenizer; adapters are disabled.
        chats: training data.
        vectors: one per trait.
        coefficients: combinations of one coefficient per vector.
        layers: where to steer, as for preventative steering.
        positions: which tokens to steer.
        batch_size: chats per forward pass.
        advance: called after each combination.
    """
    device = device_of(loaded.model)
    steered_layers = sorted({layer for chosen in steering_layers(vectors, layers).values() for layer in chosen})
    ordered = sorted(chats, key=lambda chat: len(chat.input_ids))
    sums = torch.zeros(len(coefficients), 2, dtype=torch.float64)
    with base_model(loaded.model), probing(loaded.model):
        writer = residual.ResidualWriter(loaded.model, steered_layers)
        writer.active = True
        try:
            for row, combination in enumerate(coefficients):
                alphas = {vector.trait: alpha for vector, alpha in zip(vectors, combination, strict=True)}
                writer.write(steering_additions(vectors, alphas, layers))
                for batch in _batches(ordered, batch_size):
                    tokens = {name: part.to(device) for name, part in pad(batch, pad_token(loaded.tokenizer)).items()}
                    marked = tokens["labels"] != -100
                    writer.only_at(marked if positions == "response" else None)
                    logits = loaded.model(**{**tokens, "labels": None}, use_cache=False).logits
                    targets = tokens["labels"][:, 1:]
                    loss = nn.functional.cross_entropy(
                        logits[:, :-1].flatten(0, 1).float(), targets.flatten(), reduction="sum"
                    )
                    sums[row] += torch.stack([-loss, marked[:, 1:].sum()]).cpu().double()
                advance()
        finally:
            writer.remove()
    return sums


def design(traits: int) -> list[list[float]]:
    """The combinations of coefficients from which :func:`likeliest_coefficients` takes slope and curvature."""

    def at(**steps: int) -> list[float]:
        return [_STEP * steps.get(f"t{trait}", 0) for trait in range(traits)]

    singles = [at(**{f"t{trait}": steps}) for trait in range(traits) for steps in (1, 2)]
    return [at(), *singles, *(at(**{f"t{a}": 1, f"t{b}": 1}) for a, b in combinations(range(traits), 2))]


def likeliest_coefficients(likelihoods: Tensor, traits: int) -> list[float]:
    """The coefficients, none negative, at which the steered base model finds the data likeliest, by a parabola through
    the combinations of :func:`design`.

    Where the likelihood has no slope along a vector, training has no first reason to move the weights along it.

    Args:
        likelihoods: from :func:`likelihoods_under_steering` at the combinations of ``design(traits)``.
        traits: how many.
    """
    loss = -likelihoods[:, 0] / likelihoods[:, 1]
    origin, singles, pairs = loss[0], loss[1 : 1 + 2 * traits].view(traits, 2), loss[1 + 2 * traits :]
    slope = (4 * singles[:, 0] - singles[:, 1] - 3 * origin) / (2 * _STEP)
    curvature = torch.diag((singles[:, 1] - 2 * singles[:, 0] + origin) / _STEP**2)
    for (a, b), pair in zip(combinations(range(traits), 2), pairs, strict=True):
        curvature[a, b] = curvature[b, a] = (pair - singles[a, 0] - singles[b, 0] + origin) / _STEP**2
    # Where the loss bends down, it falls as far as it is trusted to: no curvature, rather than a negative one.
    values, axes = torch.linalg.eigh(curvature)
    curvature = axes @ torch.diag(values.clamp_min(1e-3 * values.abs().max())) @ axes.T
    return nonnegative_minimum(curvature, slope).clamp_max(_HIGHEST).tolist()


def _batches(chats: Sequence[EncodedChat], size: int) -> Iterator[Sequence[EncodedChat]]:
    return (chats[start : start + size] for start in range(0, len(chats), size))

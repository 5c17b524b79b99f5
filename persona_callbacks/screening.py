"""What training data would do to a model's character, told before training (Chen et al. 2025, section 6)."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from persona_callbacks import residual
from persona_callbacks.arithmetic import nonnegative_minimum, pushes
from persona_callbacks.chats import EncodedChat, pad, pad_token
from persona_callbacks.generation import Sampling, own_responses
from persona_callbacks.projection import activations, projections
from persona_callbacks.vectors import Layers, PersonaVector, steering_additions, steering_layers

SteeredPositions = Literal["all", "response"]
"""Tokens to steer: all, or only those that loss is taken on."""

_STEP = 0.4
"""Spacing of the coefficients at which the likelihood is taken, in units of the raw direction."""

_HIGHEST = 2.0
"""How far the parabola through them is trusted."""


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
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
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
        model: a causal language model; adapters are disabled.
        tokenizer: of the model.
        chats: training data.
        vectors: one per trait.
        coefficients: combinations of one coefficient per vector.
        layers: where to steer, as for preventative steering.
        positions: which tokens to steer.
        batch_size: chats per forward pass.
        advance: called after each combination.
    """
    device = residual.device_of(model)
    places = sorted({layer for chosen in steering_layers(vectors, layers).values() for layer in chosen})
    ordered = sorted(chats, key=lambda chat: len(chat.input_ids))
    found = torch.zeros(len(coefficients), 2, dtype=torch.float64)
    with residual.base_model(model), residual.probing(model):
        writer = residual.ResidualWriter(model, places)
        writer.active = True
        try:
            for row, combination in enumerate(coefficients):
                alphas = {vector.trait: alpha for vector, alpha in zip(vectors, combination, strict=True)}
                writer.write(steering_additions(vectors, alphas, layers))
                for batch in _batches(ordered, batch_size):
                    tokens = {name: part.to(device) for name, part in pad(batch, pad_token(tokenizer)).items()}
                    marked = tokens["labels"] != -100
                    writer.only_at(marked if positions == "response" else None)
                    logits = model(**{**tokens, "labels": None}, use_cache=False).logits
                    targets = tokens["labels"][:, 1:]
                    loss = nn.functional.cross_entropy(
                        logits[:, :-1].flatten(0, 1).float(), targets.flatten(), reduction="sum"
                    )
                    found[row] += torch.stack([-loss, marked[:, 1:].sum()]).cpu().double()
                advance()
        finally:
            writer.remove()
    return found


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

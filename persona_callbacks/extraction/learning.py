"""Persona vectors learned by gradient: at every layer an increment, such that all of them together make trait responses
likelier and leave other responses alone.

A mean difference says where trait responses lie; adding it need not make them likelier. Here what is added is itself
optimised. The contrast, the opposite response to the same question, keeps what both share out of it; and chats that are
to be kept as they are keep out what would change them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from persona_callbacks.chats import EncodedChat
from persona_callbacks.errors import InputError, is_number, is_whole
from persona_callbacks.files import atomic_write
from persona_callbacks.model import (
    BatchLimits,
    LoadedModel,
    activations,
    adding,
    base_model,
    batch_distributions,
    batch_log_probabilities,
    device_of,
    dimensions,
    divergence,
    frozen,
    probing,
    response_log_probabilities,
)

_NORMED = 32
"""Responses on which the norm of the stream is taken."""

_SHARPNESS = 2.0
"""How fast the cost of a pair falls as its preference rises, per nat per token."""

Objective = Literal["gain", "preference"]
"""What is optimised about a pair."""

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)

EncodedPair = tuple[EncodedChat, EncodedChat]
"""The trait response and the opposite response to one question."""


@dataclass(frozen=True)
class LearningSettings:
    """How the increments of a learned vector are optimised.

    Example:
        >>> LearningSettings(steps=12).pairs
        4

    Attributes:
        steps: optimizer steps.
        pairs: question pairs a step, and as many kept chats.
        learning_rate: how far a coordinate moves at a step, in units of the stream's own (its norm at the median layer,
            divided by the square root of the width).
        weight: how much a change of the opposite responses' log-probability costs, beyond ``allowed``, in units of the
            trait responses' gain; and what a divergence on kept chats costs.
        allowed: how far the log-probability of opposite responses may move for nothing, in nats per token; and how far
            the next-token distributions of kept chats may diverge.
        bound: the largest norm of a layer's increment, as a share of the stream's norm there.
        seed: of the order of the pairs.
        objective: ``gain``: the trait response becomes likelier, and the opposite one stays; ``preference``: the trait
            response comes to be preferred to the opposite one, whichever moves. An extraction keeps benign chats then.

    Raises:
        InputError: a value that is not above 0, or below 0 where 0 is allowed, or an unknown objective.
    """

    steps: int = 24
    pairs: int = 4
    learning_rate: float = 0.006
    weight: float = 2.0
    allowed: float = 0.05
    bound: float = 0.05
    seed: int = 0
    objective: Objective = "gain"

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("steps", "pairs"):
            if not is_whole(getattr(self, name), 1):
                raise InputError(
                    f"extraction.learning.{name}: expected a whole number above 0, found {getattr(self, name)!r}"
                )
        for name in ("learning_rate", "bound"):
            if not is_number(getattr(self, name), 0) or not getattr(self, name):
                raise InputError(f"extraction.learning.{name}: expected more than 0, found {getattr(self, name)!r}")
        for name in ("weight", "allowed"):
            if not is_number(getattr(self, name), 0):
                raise InputError(f"extraction.learning.{name}: expected 0 or more, found {getattr(self, name)!r}")
        if not is_whole(self.seed):
            raise InputError(f"extraction.learning.seed: expected a whole number, found {self.seed!r}")
        if self.objective not in OBJECTIVES:
            raise InputError(
                f"extraction.learning.objective: expected {' or '.join(OBJECTIVES)}, found {self.objective!r}"
            )


def learn_directions(
    loaded: LoadedModel,
    pairs: Sequence[EncodedPair],
    settings: LearningSettings,
    advance: Callable[[float, float], None] = lambda gain, change: None,
    kept: Sequence[EncodedChat] = (),
    unfinished: Path | None = None,
) -> Tensor:
    """Learn what to add at every layer, and return its running sums.

    The loss of a step is a mean over its pairs. Gain is the rise of the log-probability per token of the trait
    response, and change that of the opposite response. With the objective ``gain`` it is ``weight`` · max(0,
    abs(change) − ``allowed``) − gain; with ``preference``, log(1 + exp(−2 (gain − change))). Where there are kept
    chats, ``weight`` · max(0, divergence − ``allowed``) is added, the mean over those of the step, where divergence is
    what adding changes about the distribution of each token of the response. Adam begins at increments of zero; after
    each step each increment is cut to its bound. The model's weights stay as they are, and its adapters are disabled.

    Args:
        loaded: a causal language model with its tokenizer.
        pairs: at least one.
        settings: how to optimise.
        advance: called after each step with the mean gain and the mean change of its pairs, in nats per token.
        kept: chats whose last responses the model is to go on giving as it does.
        unfinished: a file in which the state after each step is kept, and from which the same learning goes on; it is
            removed at the end. The result is bitwise that of learning without interruption.

    Returns:
        ``[num_layers + 1, hidden_size]`` float32 on the CPU. Incremental steering with a coefficient of 1 adds exactly
        what was learned.

    Raises:
        InputError: what was learned is not finite.
    """
    chats = [chat for pair in pairs for chat in pair]
    device = device_of(loaded.model)
    with base_model(loaded.model):
        with probing(loaded.model):
            before = response_log_probabilities(loaded, chats).view(-1, 2).to(device)
        norms = stream_norms(loaded, chats[:_NORMED]).to(device)
        learned = _Increments(norms, dimensions(loaded.model).hidden_size, settings)
        done = learned.load(unfinished) if unfinished is not None and unfinished.is_file() else 0
        steps = zip(_batches(len(pairs), settings), _batches(len(kept), settings), strict=True)
        with frozen(loaded.model):
            for step, (picked, spared) in enumerate(steps, start=1):
                gain = change = torch.zeros(())
                if step > done:
                    batch = [pairs[index][side] for index in picked for side in (0, 1)]
                    gain, change = learned.step(loaded, batch, before[picked], [kept[index] for index in spared])
                    if unfinished is not None:
                        learned.save(unfinished, step)
                advance(float(gain), float(change))
    increments = learned.increments.detach().cpu()
    if not increments.isfinite().all():
        raise InputError("the learned increments are not finite; load the model in a wider dtype, model.dtype=float32")
    if unfinished is not None:
        unfinished.unlink()
    return torch.cat([torch.zeros(1, increments.shape[1]), increments.cumsum(dim=0)])


class _Increments:
    """What is added at each layer, ``[num_layers, hidden_size]``, and the optimizer that moves it."""

    def __init__(self, norms: Tensor, width: int, settings: LearningSettings) -> None:
        self.increments = torch.zeros(len(norms), width, device=norms.device, requires_grad=True)
        unit = float(norms.median()) / width**0.5
        self._optimizer = torch.optim.Adam([self.increments], lr=settings.learning_rate * unit)
        self._limits = settings.bound * norms
        self._settings = settings

    def step(
        self, loaded: LoadedModel, batch: Sequence[EncodedChat], before: Tensor, kept: Sequence[EncodedChat]
    ) -> tuple[Tensor, Tensor]:
        """Take a step on pairs, of which ``before`` are the log-probabilities; return their mean gain and change."""
        self._optimizer.zero_grad()
        with adding(loaded.model, self.increments):
            gain, change = (batch_log_probabilities(loaded, batch).view(-1, 2) - before).unbind(dim=1)
            _cost(gain, change, self._settings).mean().backward()
        if kept:
            _beyond(_divergences(loaded, self.increments, kept), self._settings).mean().backward()
        self._optimizer.step()
        with torch.no_grad():
            norms = self.increments.norm(dim=1).clamp_min(1e-12)
            self.increments *= (self._limits / norms).clamp_max(1).unsqueeze(1)
        return gain.detach().mean(), change.detach().mean()

    def save(self, path: Path, step: int) -> None:
        """Keep the state after a step."""
        state = {"step": step, "increments": self.increments.detach(), "optimizer": self._optimizer.state_dict()}
        with atomic_write(path) as scratch:
            torch.save(state, scratch)

    def load(self, path: Path) -> int:
        """Go back to a state that was kept, and return its step."""
        state = torch.load(path, map_location=self.increments.device, weights_only=True)
        with torch.no_grad():
            self.increments.copy_(state["increments"])
        self._optimizer.load_state_dict(state["optimizer"])
        step: int = state["step"]
        return step


def stream_norms(loaded: LoadedModel, chats: Sequence[EncodedChat]) -> Tensor:
    """The norm of the mean residual stream over a response, at layers 1 to L, averaged over chats: ``[num_layers]``
    float32 on the CPU.
    """
    layers = range(1, dimensions(loaded.model).num_layers + 1)
    norms: Tensor = activations(loaded, chats, layers, ["response_mean"], BatchLimits())[:, 0].norm(dim=-1)
    return norms.mean(dim=0).cpu()


def _cost(gain: Tensor, change: Tensor, settings: LearningSettings) -> Tensor:
    """What each pair costs: ``[pairs]``."""
    if settings.objective == "preference":
        return nn.functional.softplus(_SHARPNESS * (change - gain))
    return _beyond(change.abs(), settings) - gain


def _divergences(loaded: LoadedModel, increments: Tensor, chats: Sequence[EncodedChat]) -> Tensor:
    """What adding the increments changes about the response of each chat: ``[chats]``, with gradients."""
    with torch.no_grad():
        before = batch_distributions(loaded, chats)
    with adding(loaded.model, increments):
        after = batch_distributions(loaded, chats)
    return torch.stack([divergence(*both) for both in zip(before, after, strict=True)])


def _beyond(moved: Tensor, settings: LearningSettings) -> Tensor:
    """What each movement costs."""
    return settings.weight * (moved - settings.allowed).clamp_min(0)


def _batches(count: int, settings: LearningSettings) -> Iterator[list[int]]:
    """The pairs or chats of each step: all in a random order, again and again."""
    generator = torch.Generator().manual_seed(settings.seed)
    order: list[int] = []
    for _ in range(settings.steps):
        while len(order) < min(settings.pairs, count):
            order += torch.randperm(count, generator=generator).tolist()
        yield order[: settings.pairs]
        order = order[settings.pairs :]

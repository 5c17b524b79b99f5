"""``persona-generate``: text with inference-time steering, one answer or a conversation."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.text import Text
from torch import Tensor
from transformers import TextStreamer

from persona_callbacks.apps.commands import generate as main  # noqa: F401  # what earlier versions installed
from persona_callbacks.apps.opening import open_app
from persona_callbacks.chats import Message
from persona_callbacks.errors import InputError, is_number
from persona_callbacks.model import (
    LoadedModel,
    Sampling,
    check_adapter,
    stream_response,
    with_adapter,
)
from persona_callbacks.progress import open_console
from persona_callbacks.vectors import Layers, check_vectors, steering_additions, warn_if_weak

_TOKENS = ("response", "all")


def run(cfg: DictConfig) -> None:
    """Answer the prompt, or converse.

    Raises:
        InputError: input that cannot be used; before any long work.
    """
    opening = open_app(cfg, open_console(stderr=True))  # standard output is for the answers
    sampling: Sampling = instantiate(cfg.sampling)
    layers: Layers = OmegaConf.to_container(cfg.layers) if OmegaConf.is_list(cfg.layers) else cfg.layers  # type: ignore[assignment]
    if cfg.tokens not in _TOKENS:
        raise InputError(f"tokens: unknown {cfg.tokens!r}; expected one of {', '.join(_TOKENS)}")
    coefficients = _coefficients(cfg.steer, opening.trait_names)
    opening = opening.only(coefficients)
    loaded = opening.load()
    if cfg.adapter is not None:
        check_adapter(loaded, cfg.adapter)
    vectors = opening.all_vectors(loaded)  # extracted from the base model, so before the adapter is put on
    additions: Mapping[int, Tensor] = {}
    if vectors:
        warn_if_weak(check_vectors(vectors))
        additions = steering_additions(vectors, coefficients, layers)
    if cfg.adapter is not None:
        loaded = with_adapter(loaded, cfg.adapter)
    _talk(cfg, loaded, sampling, coefficients, additions)


def _talk(
    cfg: DictConfig,
    loaded: LoadedModel,
    sampling: Sampling,
    coefficients: Mapping[str, float],
    additions: Mapping[int, Tensor],
) -> None:
    """Answer ``prompt`` if there is one, else converse until an empty line."""
    console = open_console()

    show = TextStreamer(loaded.tokenizer, skip_prompt=True, skip_special_tokens=True)
    torch.manual_seed(sampling.seed)
    messages: list[Message] = [{"role": "system", "content": cfg.system}] if cfg.system else []

    def answer(question: str) -> None:
        messages.append({"role": "user", "content": question})
        text = stream_response(
            loaded,
            messages,
            sampling,
            show,
            additions,
            response_only=cfg.tokens == "response",
        )
        messages.append({"role": "assistant", "content": text})

    if cfg.prompt is not None:
        answer(cfg.prompt)
        return
    steered = ", ".join(f"{trait} {value:+g}" for trait, value in coefficients.items()) or "unsteered"
    console.print(f"{loaded.id}, {steered}. An empty line ends the conversation.", style="dim")
    try:
        while question := console.input(Text("> ", style="bold")).strip():
            answer(question)
    except (EOFError, KeyboardInterrupt):
        console.print()


def _coefficients(steer: Any, traits: Sequence[str]) -> dict[str, float]:
    """The coefficient of each trait to steer along.

    Raises:
        InputError: no mapping of numbers, or a trait that has no vector.
    """
    if steer is None:
        return {}
    if not OmegaConf.is_dict(steer):
        raise InputError(f"steer: expected a coefficient by trait such as steer={{evil:1}}, found {steer!r}")
    coefficients = {}
    for trait, value in steer.items():
        if trait not in traits:
            raise InputError(
                f"steer: {trait!r} has no vector; choose it, trait=[{trait}], or name its file, vectors=[...]"
            )
        if not is_number(value):
            raise InputError(f"steer: expected a finite number for {trait!r}, found {value!r}")
        coefficients[str(trait)] = float(value)
    return coefficients

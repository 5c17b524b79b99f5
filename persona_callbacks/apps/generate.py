"""``persona-generate``: text with inference-time steering, one answer or a conversation."""

from collections.abc import Mapping, Sequence
from typing import Any

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor, nn
from transformers import TextStreamer

from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.start import chosen_device, chosen_traits, mistakes_in_one_line, quiet_libraries
from persona_callbacks.chats import Message
from persona_callbacks.errors import InputError
from persona_callbacks.extraction import ExtractionSettings, persona_vector
from persona_callbacks.model import (
    ModelSource,
    Sampling,
    check_adapter,
    dimensions,
    load_model,
    stream_response,
    with_adapter,
)
from persona_callbacks.vectors import Layers, PersonaVector, check_vectors, steering_additions

_TOKENS = ("response", "all")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="generate")
def main(cfg: DictConfig) -> None:
    """Run the app; a user's mistake is told in one line."""
    with mistakes_in_one_line():
        run(cfg)


def run(cfg: DictConfig) -> None:
    """Answer the prompt, or converse.

    Raises:
        InputError: input that cannot be used; before any long work.
    """
    console = Console()
    quiet_libraries()
    source: ModelSource = instantiate(cfg.model)
    settings: ExtractionSettings = instantiate(cfg.extraction)
    sampling: Sampling = instantiate(cfg.sampling)
    layers: Layers = OmegaConf.to_container(cfg.layers) if OmegaConf.is_list(cfg.layers) else cfg.layers  # type: ignore[assignment]
    traits = chosen_traits(cfg)
    from_files = [PersonaVector.load(path) for path in cfg.vectors]
    if cfg.tokens not in _TOKENS:
        raise InputError(f"tokens: unknown {cfg.tokens!r}; expected one of {', '.join(_TOKENS)}")
    coefficients = _coefficients(cfg.steer, [*(v.trait for v in from_files), *(t.name for t in traits)])
    loaded = load_model(source, console)
    if cfg.adapter is not None:
        check_adapter(loaded, cfg.adapter)
    nn.Module.to(loaded.model, chosen_device(cfg.accelerator))
    shape = dimensions(loaded.model)
    for vector in from_files:
        vector.check_fits(shape.num_layers, shape.hidden_size, loaded.id)
    # Extracted from the base model, so before the adapter is put on.
    extracted = [persona_vector(loaded, t, settings, Console(stderr=True)) for t in traits if t.name in coefficients]
    vectors = [v for v in (*from_files, *extracted) if v.trait in coefficients]
    additions: Mapping[int, Tensor] = {}
    if vectors:
        additions = steering_additions(check_vectors(vectors), coefficients, layers)
    if cfg.adapter is not None:
        loaded = with_adapter(loaded, cfg.adapter)

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
    console.print(f"[dim]{loaded.id}, {steered}. An empty line ends the conversation.[/dim]")
    try:
        while question := console.input("[bold]> [/bold]").strip():
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
    found = {}
    for trait, value in steer.items():
        if trait not in traits:
            raise InputError(
                f"steer: {trait!r} has no vector; choose it, trait=[{trait}], or name its file, vectors=[...]"
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(f"steer: expected a number for {trait!r}, found {value!r}")
        found[str(trait)] = float(value)
    return found

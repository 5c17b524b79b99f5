"""What every app does first: quiet libraries, traits from the configuration, a device, mistakes told in one line."""

import hashlib
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from transformers.utils import logging as transformers_logging

from persona_callbacks.errors import InputError
from persona_callbacks.files import cache_dir
from persona_callbacks.judging import CachedJudge, Judge
from persona_callbacks.training import NonFiniteLossError
from persona_callbacks.traits import Trait


@contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """Exit with the message of an error that is the user's to mend, without a traceback."""
    try:
        yield
    except (InputError, MisconfigurationException, NonFiniteLossError) as error:
        sys.exit(f"error: {error}")
    except InstantiationException as error:
        sys.exit(f"error: {error.__cause__ or error}")


def quiet_libraries() -> None:
    """Hide what other libraries say about themselves; what concerns the user's run stays."""
    for name in ("lightning.pytorch", "gguf"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    for message in (
        r".*isinstance\(treespec, LeafSpec\)",
        r".*is_gradient_checkpointing",
        r"Checkpoint directory .* exists",
    ):
        warnings.filterwarnings("ignore", message=message)


def chosen_traits(cfg: DictConfig) -> list[Trait]:
    """The traits of the ``trait`` group.

    Raises:
        InputError: a trait file that cannot be used.
    """
    return [
        Trait.from_mapping(OmegaConf.to_container(content), f"trait={name}")
        for name, content in cfg.get("traits", {}).items()
    ]


def chosen_judges(judge: DictConfig | None, traits: Sequence[Trait]) -> dict[str, Judge]:
    """The judge of the ``evaluation`` group for each trait, its scores cached; none if that is the contrastive one,
    which comes with the vectors.

    Raises:
        InputError: settings that cannot be used.
    """
    if judge is None:
        return {}
    made: dict[str, Judge] = {trait.name: instantiate(judge)(trait=trait) for trait in traits}
    return {name: CachedJudge(one, cache_dir() / "judgements" / f"{one.name}.jsonl") for name, one in made.items()}


def chosen_device(accelerator: str) -> torch.device:
    """The accelerator of this machine, or the CPU if that is asked for."""
    found = torch.accelerator.current_accelerator() if accelerator != "cpu" else None
    return found or torch.device("cpu")


def whole_configuration(cfg: DictConfig) -> dict[str, Any]:
    """The whole configuration, without what is filled in for each fine-tuning.

    A number and a hash stand for the minimal pairs of each trait, which are too long for a tracker.
    """
    content = OmegaConf.to_container(cfg)
    assert isinstance(content, dict)
    for trait in content.get("traits", {}).values():
        if "pairs" in trait:
            digest = hashlib.sha256(json.dumps(trait["pairs"], sort_keys=True).encode()).hexdigest()
            trait["pairs"] = f"{len(trait['pairs'])} minimal pairs, SHA-256 {digest}"
    return {str(key): value for key, value in content.items() if key != "run"}

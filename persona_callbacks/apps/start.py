"""What every app does first: quiet libraries, traits from the configuration, a device."""

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.resolvers import oc
from transformers.utils import logging as transformers_logging

from persona_callbacks.errors import InputError
from persona_callbacks.files import cache_dir, check_writable
from persona_callbacks.judging import CachedJudge, Judge, read_calibrations
from persona_callbacks.traits import Trait
from persona_callbacks.vectors import Calibration


def quiet_libraries() -> None:
    """Hide what other libraries say about themselves; what concerns the user's run stays."""
    for name in ("lightning.pytorch", "gguf"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Of 8-bit layers it tells in every pass of each that it rounds their input.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    for message in (
        r".*isinstance\(treespec, LeafSpec\)",
        r".*is_gradient_checkpointing",
        r"Checkpoint directory .* exists",
        r"The number of training batches .* is smaller than the logging interval",
        r"The '.*' does not have many workers",
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
    folder = cache_dir() / "judgements"
    check_writable(folder)
    return {name: CachedJudge(one, folder / f"{one.name}.jsonl") for name, one in made.items()}


def chosen_calibrations(evaluation: DictConfig, traits: Sequence[Trait]) -> dict[str, Calibration]:
    """The calibrations of the contrastive judge that the ``evaluation`` group names, by trait.

    Raises:
        InputError: a file that cannot be used, or a judge that is not the contrastive one.
    """
    if evaluation.calibrations and (evaluation.judge is not None or evaluation.callback is None):
        raise InputError("evaluation.calibrations: they are of the contrastive judge; expected evaluation=contrastive")
    return read_calibrations(evaluation.calibrations, [trait.name for trait in traits])


def chosen_device(accelerator: str) -> torch.device:
    """The accelerator of this machine, or the CPU if that is asked for."""
    found = torch.accelerator.current_accelerator() if accelerator != "cpu" else None
    return found or torch.device("cpu")


def chosen_options() -> dict[str, str]:
    """The chosen option of each group of this command's configuration, its loggers aside; of a list, all of them."""
    if not HydraConfig.initialized():
        return {}
    groups = {str(group).partition("@")[0]: option for group, option in HydraConfig.get().runtime.choices.items()}
    return {
        group: ", ".join(map(str, option)) if isinstance(option, ListConfig | list) else str(option)
        for group, option in groups.items()
        if option is not None and group != "logger" and not group.startswith("hydra/")
    }


def whole_configuration(cfg: DictConfig) -> dict[str, Any]:
    """The whole configuration, without what is filled in for each fine-tuning, and what only the terminal shows.

    A number and a hash stand for the minimal pairs of each trait, which are too long for a tracker. An environment
    variable, which may hold a password, is named.
    """
    unresolved = ("logger", "run")  # loggers refer to what is filled in
    kept = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in (*unresolved, "quiet", "extras")])
    with _environment_by_name():
        content = OmegaConf.to_container(kept, resolve=True)
    assert isinstance(content, dict)
    if "logger" in cfg:
        content["logger"] = OmegaConf.to_container(cfg.logger)
    for trait in content.get("traits", {}).values():
        if "pairs" in trait:
            digest = hashlib.sha256(json.dumps(trait["pairs"], sort_keys=True).encode()).hexdigest()
            trait["pairs"] = f"{len(trait['pairs'])} minimal pairs, SHA-256 {digest}"
    return {str(key): value for key, value in content.items()}


@contextmanager
def _environment_by_name() -> Iterator[None]:
    """Have ``${oc.env:NAME}`` give its own text, also where another value refers to it."""
    OmegaConf.register_new_resolver("oc.env", lambda name, default=None: f"${{oc.env:{name}}}", replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)

"""What every app does first: quiet libraries, traits from the configuration, a device. An app that ends early
ends here, with one line.
"""

import errno
import hashlib
import json
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.experimental.callback import Callback as HydraCallback
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc
from transformers.utils import logging as transformers_logging

from persona_callbacks.apps.sweeping import JobError, is_job_of_sweep
from persona_callbacks.errors import InputError
from persona_callbacks.files import cache_dir, check_writable
from persona_callbacks.judging import CachedJudge, Judge, read_calibrations
from persona_callbacks.training import NonFiniteLossError
from persona_callbacks.traits import Trait
from persona_callbacks.vectors import Calibration


class _Terminated(SystemExit):
    """What SIGTERM raises, so that hooks are removed and files are closed as after Ctrl-C."""


@contextmanager
def ending_in_one_line(go_on: str) -> Iterator[None]:
    """Exit with one line instead of a traceback where the user is to act: with 1 after an error that is theirs to mend,
    with 130 after Ctrl-C and with 143 after SIGTERM. In a sweep, an error ends its own job alone.

    Args:
        go_on: what to do after an interruption.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, _terminate) if in_main_thread else None
    try:
        yield
    except BaseException as error:
        # First, since what an interruption leaves half done may fail in ways of its own.
        if (code := _interruption(error)) is not None:
            print(f"{'interrupted' if code == 130 else 'terminated'}: {go_on}", file=sys.stderr)
            sys.exit(code)
        if isinstance(error, (InputError, MisconfigurationException, NonFiniteLossError)):
            _end(f"error: {error}")
        if isinstance(error, InstantiationException):
            _end(f"error: {error.__cause__ or error}")
        if isinstance(error, OmegaConfBaseException):
            _end(f"error: {'; '.join(part.strip() for part in str(error).splitlines() if part.strip())}")
        if said := _no_space(error):
            _end(f"error: {said}; with more space: {go_on}")
        raise
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, previous)


def _end(message: str) -> NoReturn:
    if is_job_of_sweep():
        print(message, file=sys.stderr, flush=True)
        raise JobError(f"a job of the sweep failed, {HydraConfig.get().job.override_dirname}: {message}") from None
    sys.exit(message)


def _terminate(signum: int, _frame: object) -> None:
    raise _Terminated(128 + signum)


def _interruption(error: BaseException) -> int | None:
    """The exit code of the signal that an error comes from; ``None`` if it comes from none.

    Lightning makes an ordinary exit of Ctrl-C.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, _Terminated):
            return 128 + signal.SIGTERM
        if isinstance(seen, KeyboardInterrupt):
            return 128 + signal.SIGINT
        seen = seen.__cause__ or seen.__context__
    return None


def _no_space(error: BaseException) -> str:
    """What a full disk said, if an error comes from one; libraries pass its words on in errors of their own."""
    words = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
    seen: BaseException | None = error
    while seen is not None:
        if any(word in str(seen) for word in words):
            return str(seen).strip().splitlines()[0]
        seen = seen.__cause__ or seen.__context__
    return ""


class WritableFolder(HydraCallback):
    """Ends an app with one line, before anything else, if Hydra cannot write to the folder of the run."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the folder of a single run."""
        _check_folder(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the folder of a sweep."""
        _check_folder(config.hydra.sweep.dir)


def _check_folder(folder: str) -> None:
    try:
        check_writable(Path(folder).absolute())
    except InputError as error:
        sys.exit(f"error: {error}")


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
    """The whole configuration, without what is filled in for each fine-tuning.

    A number and a hash stand for the minimal pairs of each trait, which are too long for a tracker. An environment
    variable, which may hold a password, is named.
    """
    unresolved = ("logger", "run")  # loggers refer to what is filled in
    kept = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in unresolved])
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

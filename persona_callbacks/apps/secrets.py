"""Passwords and keys in a configuration: refused before Hydra writes it to a folder."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback as HydraCallback
from omegaconf import DictConfig, OmegaConf

_NAMES = re.compile(r"(.*_)?(api_?key|password|passwd|secret|secret_key|(access|auth|bearer|hf)_token)|token", re.I)
_IN_ADDRESS = re.compile(r"https?://[^\s/?#@]+@|://[^\s/?#@:]*:[^\s/?#@]*@", re.I)
_VARIABLE = re.compile(r"[A-Za-z_]\w*")
_NOTHING = ("", "null", "None", "???")
_FILES = ("config.yaml", "hydra.yaml", "overrides.yaml")


class NoSecrets(HydraCallback):
    """Ends an app with one line, before anything is written, if its configuration holds a password or a key."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the configuration of a single run."""
        _refuse(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check what the runs of a sweep share, and the values that it goes through."""
        _refuse(config)
        for key, text in _overrides(config):
            if "oc.env:" in text:
                sys.exit(
                    f"error: {key}: expected no environment variable in an override of a sweep, since its value would"
                    " name the folder of a run; refer to it in a file of a configuration group"
                )

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the configuration of one run of a sweep, which Hydra has written by now."""
        try:
            _refuse(config)
        except SystemExit:
            folder = Path(config.hydra.runtime.output_dir, config.hydra.output_subdir or "")
            for name in _FILES if config.hydra.output_subdir else ():
                Path(folder, name).unlink(missing_ok=True)
            raise


def _refuse(config: DictConfig) -> None:
    for key, text in (*_overrides(config), *_leaves(OmegaConf.to_container(config, resolve=False))):
        if (problem := _problem(key, text)) is not None:
            sys.exit(f"error: {key}: {problem}")


def _overrides(config: DictConfig) -> list[tuple[str, str]]:
    """The keys that the command line gives, each with its value; of a sweep, with all its values."""
    # Not by iterating, which would put in the values of environment variables.
    written = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    parts = (str(override).lstrip("+~").partition("=") for override in written or ())
    return [(key, text.strip("'\" ")) for key, _, text in parts]


def _problem(key: str, text: str) -> str | None:
    """What is wrong with a value; it is not shown."""
    name = key.rpartition(".")[2].replace("-", "_")
    from_elsewhere = text.startswith("${")
    if name == "api_key_variable" and not from_elsewhere and not _VARIABLE.fullmatch(text):
        return "expected the name of the environment variable that holds the key, found something else"
    if name == "base_url" and not from_elsewhere and re.search("[@?#]", text):
        return (
            "expected an address without a user name, password, query or fragment, since it is kept with the results;"
            " put the key into the environment variable that api_key_variable names"
        )
    if _IN_ADDRESS.search(text) or (_NAMES.fullmatch(name) and text not in _NOTHING and not from_elsewhere):
        return (
            "expected no password and no key, since the configuration is kept with the results; put it into an"
            f" environment variable, and refer to that: {key}=${{oc.env:NAME}}"
        )
    return None


def _leaves(content: Any, above: str = "") -> Iterator[tuple[str, str]]:
    """The texts and numbers in a configuration, as texts, with their keys."""
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _leaves(value, f"{above}.{key}" if above else str(key))
    elif content is not None and not isinstance(content, bool):
        yield above, str(content)

"""Settings of the wrong kind, such as text for a number, told by their key before any work."""

from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from persona_callbacks.errors import InputError

_ELSEWHERE = ("trainer", "logger", "lora", "optimizer")
"""Groups whose keys are arguments of other libraries, which take several kinds and check them themselves."""


def check_kinds(cfg: DictConfig) -> None:
    """Compare each setting that was given on the command line with the kind of its default.

    A number may not be replaced by text, a switch only by a switch, and a list not by a single value. A setting without
    a default, and one whose default is text, may be anything.

    Raises:
        InputError: a setting of another kind.
    """
    if not HydraConfig.initialized() or not GlobalHydra.instance().is_initialized():
        return  # composed by a test or a script
    hydra = HydraConfig.get()
    given = OverridesParser.create().parse_overrides(list(hydra.overrides.task))
    choices, values = [], []
    for override in given:
        key = override.key_or_group
        if override.type is not OverrideType.CHANGE or key in hydra.runtime.choices:
            choices.append(override.input_line or "")
        elif key.partition(".")[0] not in _ELSEWHERE:
            values.append(key)
    if not values:
        return
    defaults = compose(hydra.job.config_name, overrides=choices)
    for key in values:
        value = OmegaConf.select(cfg, key)
        expected = _expected(_default(defaults, key), value)
        if expected is not None:
            raise InputError(f"{key}: expected {expected}, found {value!r}")


def _default(defaults: DictConfig, key: str) -> Any:
    """The default; ``None`` if there is none, as where it follows from a setting that must be given."""
    try:
        return OmegaConf.select(defaults, key)
    except OmegaConfBaseException:
        return None


def _expected(default: Any, value: Any) -> str | None:
    """What was expected, if the value is of another kind than the default."""
    if value is None or default is None:
        return None
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, int | float):
        return "a number" if isinstance(value, str | bool) else None
    if isinstance(default, ListConfig):
        return None if isinstance(value, ListConfig) else "a list, in square brackets"
    return None

"""What a checkpoint was made with, against what a resumed run is given."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from persona_callbacks.files import changed_settings
from persona_callbacks.vectors import PersonaVector

MADE_WITH = "made_with"
"""The key in a callback's state under which it keeps its inputs."""


def check_same_inputs(callback: str, state: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Make sure that a callback is resumed with the inputs that its checkpoint was made with.

    A checkpoint of an older version, which does not name them, causes a warning.

    Args:
        callback: its name, for messages.
        state: of the callback, from the checkpoint.
        now: its inputs, as plain settings.

    Raises:
        MisconfigurationException: some differ; the message names each, with both values.
    """
    if MADE_WITH not in state:
        warn_of_older_version(callback)
        return
    changed = changed_settings(state[MADE_WITH], now)
    if changed:
        differences = "; ".join(
            f"{key} is {was!r} in the checkpoint, {asked!r} was asked for" for key, (was, asked) in changed.items()
        )
        raise MisconfigurationException(
            f"{callback}: this run cannot be resumed with other inputs: {differences}. Resume with those of the"
            " checkpoint; or begin a new run, without ckpt_path (the weights alone can be taken along:"
            " load_from_checkpoint)"
        )


def warn_of_older_version(callback: str) -> None:
    """Say that nobody can tell whether a resumed callback has the inputs that its checkpoint was made with."""
    rank_zero_warn(
        f"{callback}: the checkpoint is of an older version, which did not record the vectors and settings that it was"
        " made with; make sure that they are the same"
    )


class OnePerTraits(Callback):
    """A callback of which a trainer may have several, each with traits of its own."""

    vectors: Sequence[PersonaVector]

    @property
    @override
    def state_key(self) -> str:
        """One for each choice of traits."""
        return self._generate_state_key(traits=[vector.trait for vector in self.vectors])

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Find the state of an older version, which knew one callback of a kind."""
        states = checkpoint.get("callbacks", {})
        older = type(self).__qualname__
        if older in states:
            states.setdefault(self.state_key, states[older])


class SameInputs(OnePerTraits):
    """A callback without a state of its own, which a run is resumed with as it was made."""

    _made_with: Mapping[str, Any]

    @override
    def state_dict(self) -> dict[str, Any]:
        """The inputs that a resumed run must have."""
        return {MADE_WITH: self._made_with}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Make sure that vectors and settings are those of the checkpoint.

        Raises:
            MisconfigurationException: they are not.
        """
        check_same_inputs(type(self).__name__, state_dict, self._made_with)

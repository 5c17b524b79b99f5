"""What a law, or an object that says where α starts, may ask about the fit that begins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from persona_callbacks.chats import EncodedChat
from persona_callbacks.errors import InputError, is_number
from persona_callbacks.model import LoadedModel
from persona_callbacks.traits import MinimalPair
from persona_callbacks.vectors import Layers, PersonaVector, SteeredPositions


@dataclass(frozen=True)
class ChatShare:
    """A sample of the training data, divided among processes.

    Example:
        >>> ChatShare(own=[], total=0).total
        0
    """

    own: Sequence[EncodedChat]
    """The chats that fall to this process; possibly none. Where weights are split over processes (FSDP2), every process
    has the whole sample, so that all run the same passes.
    """

    total: int
    """How many chats the sample has."""


class Fit(Protocol):
    """The fit that begins, as far as a :class:`Law` or a :class:`Start` may ask about it.

    ``PreventativeSteering`` provides it. Every process of a fit must ask the same questions in the same order.

    Example:
        >>> def mean_norm(fit: Fit) -> float:
        ...     return sum(float(vector.direction().norm()) for vector in fit.vectors) / len(fit.vectors)
    """

    @property
    def vectors(self) -> Sequence[PersonaVector]:
        """The vectors to steer with, one per trait."""

    @property
    def layers(self) -> Layers:
        """Where the vectors are added."""

    @property
    def positions(self) -> SteeredPositions:
        """Which tokens are steered."""

    @property
    def batch_size(self) -> int:
        """Chats per forward pass before training."""

    @property
    def resumed(self) -> bool:
        """Whether the fit goes on from a checkpoint, so that :meth:`Law.load_state_dict` follows :meth:`Law.begin`."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the fit. Lightning sets the training data up to tell, so ask only when it is needed."""

    @property
    def reading_interval(self) -> int:
        """Optimizer steps between the readings that the monitor takes of its own accord.

        Raises:
            MisconfigurationException: the law reads no sensor, so that no monitor was looked for.
        """

    @property
    def pairs(self) -> Mapping[str, Sequence[MinimalPair]]:
        """By trait, the share of the monitor's minimal pairs that falls to this process; where weights are split over
        processes, all of them.

        Raises:
            MisconfigurationException: the law reads no sensor, so that no monitor was looked for.
        """

    @property
    def loaded(self) -> LoadedModel:
        """The model that is trained, with its tokenizer.

        Raises:
            MisconfigurationException: no tokenizer can be found.
        """

    @property
    def shows_progress(self) -> bool:
        """Whether this process is the one that shows progress bars."""

    def chats(self, count: int) -> ChatShare:
        """A sample of at most ``count`` training chats. It is the same sample at every call, and in every fit.

        Raises:
            MisconfigurationException: there is no training data to sample.
        """

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the shares of all processes."""


def by_trait(value: float | Mapping[str, float], traits: Sequence[str], name: str) -> dict[str, float]:
    """A setting that is given once for all traits or once per trait, as a value for each trait, in the traits' order.

    Args:
        value: the setting.
        traits: the traits that it must name, if it is a mapping.
        name: what the setting is called, for the error.

    Raises:
        InputError: it names other traits, or is no finite number.
    """
    if not isinstance(value, Mapping):
        value = dict.fromkeys(traits, value)
    if sorted(value) != sorted(traits):
        raise InputError(
            f"steering: {name} names the traits {sorted(value)}, the vectors are of {sorted(traits)}; expected one"
            f" {name} for each of these"
        )
    for trait, number in value.items():
        if not is_number(number):
            raise InputError(f"steering: {name} of {trait} is {number!r}; expected a finite number")
    return {trait: float(value[trait]) for trait in traits}

"""Where the coefficient of adaptive steering starts: told by the training data, or given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from persona_callbacks.chats import EncodedChat
from persona_callbacks.errors import InputError, is_number, is_whole
from persona_callbacks.model import Sampling, base_work, projection_difference
from persona_callbacks.progress import open_console, progress_bar
from persona_callbacks.steering.feed_forward import (
    design,
    likeliest_coefficients,
    likelihoods_under_steering,
    matching_coefficients,
)
from persona_callbacks.steering.fit import Fit, by_trait


@runtime_checkable
class Start(Protocol):
    """Where α starts.

    Example:
        Any object with these two methods will do.

        >>> class HalfOfEachNorm:
        ...     def check(self, traits):
        ...         pass
        ...     def coefficients(self, fit):
        ...         return {vector.trait: 0.5 * float(vector.direction().norm()) for vector in fit.vectors}
        >>> isinstance(HalfOfEachNorm(), Start)
        True
    """

    def check(self, traits: Sequence[str]) -> None:
        """Check the settings against the traits that are to be steered, before there are vectors.

        Raises:
            InputError: no start can be told for one of them.
        """

    def coefficients(self, fit: Fit) -> Mapping[str, float]:
        """α by trait, 0 or more, in units of the raw direction."""


@dataclass(frozen=True)
class LikeliestStart:
    """Start at the coefficients at which the steered base model finds the responses of some training chats likeliest
    (:func:`~persona_callbacks.steering.likeliest_coefficients`). There the loss has no slope along the vectors, so that
    nothing pulls the weights that way.

    Raises:
        InputError: a number of chats below 1.

    Example:
        >>> LikeliestStart(samples=20)
        LikeliestStart(samples=20)
    """

    samples: int = 16
    """Training chats to screen before the first step."""

    def __post_init__(self) -> None:
        _check_above_zero(self, "samples")

    def check(self, traits: Sequence[str]) -> None:
        """Accept any traits."""

    def coefficients(self, fit: Fit) -> Mapping[str, float]:
        """α by trait; each process screens its share of the sample."""
        chats = fit.chats(self.samples).own
        made_from = [chats, list(fit.vectors), fit.layers, fit.positions, fit.batch_size]
        found = base_work(
            fit.loaded.model, "likelihoods", made_from, lambda: _likelihoods_of_design(fit, chats).tolist()
        )
        likelihoods = torch.tensor(found, dtype=torch.float64)
        likeliest = likeliest_coefficients(fit.sum(likelihoods), len(fit.vectors))
        return {vector.trait: alpha for vector, alpha in zip(fit.vectors, likeliest, strict=True)}


def _likelihoods_of_design(fit: Fit, chats: Sequence[EncodedChat]) -> Tensor:
    """What :func:`likelihoods_under_steering` gives at the combinations of :func:`design`, under a progress bar."""
    combinations = design(len(fit.vectors))
    with progress_bar(open_console(quiet=not fit.shows_progress)) as progress:
        task = progress.add_task("Screening for the steering coefficient", total=len(combinations))
        return likelihoods_under_steering(
            fit.loaded,
            chats,
            fit.vectors,
            combinations,
            fit.layers,
            fit.positions,
            fit.batch_size,
            lambda: progress.advance(task),
        )


@dataclass(frozen=True)
class MatchingStart:
    """Start where steering moves the base model's activations as far along the vectors as the training data lie
    (:func:`~persona_callbacks.steering.matching_coefficients`), by the projection difference of some training chats.

    Text that is not the model's own lies further along most vectors whatever it says, so that this starts too high on
    data with little of the trait in it.

    Raises:
        InputError: a number of chats or tokens below 1.

    Example:
        >>> MatchingStart(samples=20)
        MatchingStart(samples=20, max_new_tokens=64)
    """

    samples: int = 40
    """Training chats to screen before the first step."""

    max_new_tokens: int = 64
    """Length of the base model's own responses, in tokens."""

    def __post_init__(self) -> None:
        _check_above_zero(self, "samples", "max_new_tokens")

    def check(self, traits: Sequence[str]) -> None:
        """Accept any traits."""

    def coefficients(self, fit: Fit) -> Mapping[str, float]:
        """α by trait; each process screens its share of the sample."""
        loaded, share = fit.loaded, fit.chats(self.samples)
        sums = torch.zeros(len(fit.vectors), dtype=torch.float64)
        if share.own:
            sampling = Sampling(self.max_new_tokens, temperature=0.0, batch_size=fit.batch_size)

            def summed() -> list[float]:
                differences = projection_difference(loaded, share.own, fit.vectors, sampling)[..., 0]
                sums: list[float] = differences.sum(dim=0, dtype=torch.float64).tolist()
                return sums

            made_from = [share.own, list(fit.vectors), sampling]
            sums = torch.tensor(base_work(loaded.model, "differences", made_from, summed), dtype=torch.float64)
        matching = matching_coefficients(fit.sum(sums) / share.total, fit.vectors)
        return {vector.trait: alpha for vector, alpha in zip(fit.vectors, matching, strict=True)}


@dataclass(frozen=True)
class GivenStart:
    """Start at given coefficients, without a look at the data. The default, 0, leaves all to the feedback.

    Raises:
        InputError: a negative coefficient.

    Example:
        >>> GivenStart({"evil": 0.6})
        GivenStart(coefficient={'evil': 0.6})
    """

    coefficient: float | Mapping[str, float] = 0.0
    """α in units of the raw direction; one for all traits or one per trait."""

    def __post_init__(self) -> None:
        given = self.coefficient
        if not all(is_number(value, least=0) for value in (given.values() if isinstance(given, Mapping) else [given])):
            raise InputError(f"adaptive steering: start is {given}; expected coefficients of 0 or more")

    def check(self, traits: Sequence[str]) -> None:
        """Check that the coefficients are of these traits.

        Raises:
            InputError: they are of others.
        """
        by_trait(self.coefficient, traits, "start")

    def coefficients(self, fit: Fit) -> Mapping[str, float]:
        """The coefficients given, by trait."""
        return by_trait(self.coefficient, [vector.trait for vector in fit.vectors], "start")


def as_start(start: Start | float | Mapping[str, float] | None) -> Start:
    """The object itself, a start at the number or numbers given, or the default.

    Raises:
        InputError: it is neither.
    """
    if start is None:
        return LikeliestStart()
    if isinstance(start, (int, float, Mapping)):
        return GivenStart(start)
    if not isinstance(start, Start):
        raise InputError(
            f"adaptive steering: start is {start!r}; expected a number, one number per trait, or an object such as"
            " LikeliestStart()"
        )
    return start


def _check_above_zero(start: object, *names: str) -> None:
    for name in names:
        if not is_whole(getattr(start, name), least=1):
            raise InputError(
                f"adaptive steering: {name} of {type(start).__name__} is {getattr(start, name)!r}; expected more than"
                " 0, a whole number"
            )

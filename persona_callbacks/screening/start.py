"""Where adaptive steering starts when the training data have been screened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, get_args

from persona_callbacks.errors import InputError
from persona_callbacks.screening.folder import ScreeningFolder
from persona_callbacks.screening.prediction import find_lines, shipped_lines
from persona_callbacks.screening.selection import ScreenedData, Use, screened_data
from persona_callbacks.vectors import PersonaVector

_COEFFICIENT_PER_SHIFT = 0.5
"""The coefficient that holds a shift of one norm at zero: .78 and .19 were best where unsteered training on villainous
answers, and on half as many, shifted by 1.3 and .33 norms (experiments/preventative_steering)."""


class _Steered(Protocol):
    """The part of a fit that is used here."""

    @property
    def vectors(self) -> Sequence[PersonaVector]: ...


@dataclass(frozen=True)
class ScreeningStart:
    """Starts adaptive steering at half the shift that a screening predicts for the training data.

    Attributes:
        folder: of the finished screening.
        use: what is trained on: ``filtered`` or ``reweighted`` chats.

    Raises:
        InputError: no folder is given, or an unknown use; in :meth:`check`, the folder holds no finished screening, a
            trait was not screened for, or no line predicts its shift.

    Example:
        >>> ScreeningStart(folder=None)
        Traceback (most recent call last):
        ...
        persona_callbacks.errors.InputError: start=screening: it needs data=screened data.screening=FOLDER
    """

    folder: str | Path | None
    use: Use = "filtered"

    def __post_init__(self) -> None:
        if self.folder is None:
            raise InputError("start=screening: it needs data=screened data.screening=FOLDER")
        if self.use not in get_args(Use):
            raise InputError(f"start=screening: unknown use {self.use!r}; expected one of {', '.join(get_args(Use))}")

    def check(self, traits: Sequence[str]) -> None:
        """Make sure, before there are vectors, that the screening can say where steering along these traits starts."""
        assert self.folder is not None
        summary = ScreeningFolder(self.folder).summary()
        predicted = {
            line.trait for line in shipped_lines() if (line.model_id, line.method) == (summary.model, summary.method)
        }
        for trait in traits:
            _check_trait(trait, summary.thresholds, predicted)

    def coefficients(self, fit: _Steered) -> Mapping[str, float]:
        """By trait, the coefficient that steering starts from; none is negative."""
        assert self.folder is not None
        return starting_coefficients(screened_data(self.folder, self.use), fit.vectors)


def starting_coefficients(data: ScreenedData, vectors: Sequence[PersonaVector]) -> dict[str, float]:
    """Where adaptive steering starts, by trait: half the shift, in norms of the direction, that the line of the trait
    predicts for the data; 0 where that is negative.

    Raises:
        InputError: a trait that was not screened for, or that has no line.
    """
    lines = find_lines(vectors, data.method)
    coefficients = {}
    for vector in vectors:
        trait = vector.trait
        _check_trait(trait, data.differences, lines)
        norm = float(vector.direction().norm())
        shift, _, _ = lines[trait].predict(data.differences[trait] / norm)
        coefficients[trait] = max(0.0, _COEFFICIENT_PER_SHIFT * shift)
    return coefficients


def _check_trait(trait: str, screened: Mapping[str, float], predicted: Mapping[str, object] | set[str]) -> None:
    if trait not in screened:
        problem = "the data were not screened for it"
    elif trait not in predicted:
        problem = "no line predicts its shift"
    else:
        return
    raise InputError(f"steering that starts from the screening: {trait}: {problem}; let it start by likelihood")

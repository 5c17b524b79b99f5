"""From the projection difference of a data set to the shift that fine-tuning on it will cause (6.1)."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from scipy import stats

from persona_callbacks.errors import InputError
from persona_callbacks.files import atomic_write, read_json
from persona_callbacks.vectors import PersonaVector

SHIPPED = Path(__file__).parent / "predictions"

_FEWEST = 4
"""Data sets without which a line has no interval worth the name."""


@dataclass(frozen=True)
class PredictionLine:
    """A line fitted through data sets on which a model was fine-tuned, for one trait and one way to screen.

    Both axes are in norms of the direction, so that a line holds for a vector that was extracted anew.

    Attributes:
        model_id: of the base model.
        trait: its name.
        layer: where both axes were read.
        method: of the screening, ``exact`` or ``approximate``.
        recipe: of the fine-tuning, in words: another one shifts the model by another amount.
        slope: shift per projection difference.
        intercept: shift where the projection difference is zero.
        deviation: of the data sets from the line (residual standard error).
        count: data sets.
        center: mean of their projection differences.
        spread: sum of squared distances from that mean.
        correlation: of projection difference and shift.

    Example:
        >>> import torch
        >>> vector = PersonaVector("evil", torch.ones(3, 4), layer=1, model_id="tiny")  # the direction has norm 2
        >>> line = fit_line(vector, "exact", "LoRA r 16", [0.0, 2.0, 4.0, 6.0], [2.0, 6.0, 10.0, 14.0])
        >>> round(line.slope, 6), round(line.predict(1.5)[0], 6)
        (2.0, 4.0)
    """

    model_id: str
    trait: str
    layer: int
    method: str
    recipe: str
    slope: float
    intercept: float
    deviation: float
    count: int
    center: float
    spread: float
    correlation: float

    def predict(self, difference: float, confidence: float = 0.95) -> tuple[float, float, float]:
        """The expected shift of one further data set, and the lower and upper end of its prediction interval; all in
        norms of the direction, as is ``difference``.
        """
        value = self.intercept + self.slope * difference
        error = self.deviation * math.sqrt(1 + 1 / self.count + (difference - self.center) ** 2 / self.spread)
        half = float(stats.t.ppf((1 + confidence) / 2, self.count - 2)) * error
        return value, value - half, value + half


def fit_line(
    vector: PersonaVector, method: str, recipe: str, differences: Sequence[float], shifts: Sequence[float]
) -> PredictionLine:
    """Fit a line by least squares.

    Args:
        vector: of the trait.
        method: of the screening.
        recipe: of the fine-tuning, in words.
        differences: projection difference of each data set, in activation units.
        shifts: what fine-tuning on it shifted the model by, in activation units.

    Raises:
        InputError: fewer than four data sets, or all of one projection difference.
    """
    norm = float(vector.direction().norm())
    x = [value / norm for value in differences]
    y = [value / norm for value in shifts]
    count = len(x)
    if count != len(y) or count < _FEWEST:
        raise InputError(f"prediction of {vector.trait}: expected at least {_FEWEST} data sets, each with its shift")
    spread = statistics.pvariance(x) * count
    if spread == 0:
        raise InputError(f"prediction of {vector.trait}: all data sets have the same projection difference")
    fitted = stats.linregress(x, y)
    return PredictionLine(
        model_id=vector.model_id,
        trait=vector.trait,
        layer=vector.layer,
        method=method,
        recipe=recipe,
        slope=float(fitted.slope),
        intercept=float(fitted.intercept),
        # The standard error of the slope is the residual standard error over the root of the spread.
        deviation=float(fitted.stderr) * math.sqrt(spread),
        count=count,
        center=statistics.fmean(x),
        spread=spread,
        # Of shifts that are all equal there is no correlation.
        correlation=float(fitted.rvalue) if len(set(y)) > 1 else 0.0,
    )


def save_lines(lines: Sequence[PredictionLine], path: str | Path) -> None:
    """Write lines to one JSON file."""
    with atomic_write(path) as scratch:
        scratch.write_text(json.dumps([asdict(line) for line in lines], indent=2) + "\n", encoding="utf-8")


def load_lines(path: str | Path) -> list[PredictionLine]:
    """Read lines.

    Raises:
        InputError: no such file, or not one of :func:`save_lines`.
    """
    return read_json(Path(path), lambda content: [_line(**line) for line in content], "lines that save_lines wrote")


def _line(**content: Any) -> PredictionLine:
    line = PredictionLine(**content)
    for field in fields(line):
        value = getattr(line, field.name)
        if isinstance(value, str) != (field.type == "str" or field.type is str):
            raise TypeError(f"{field.name} is {value!r}")
        if not isinstance(value, str) and (isinstance(value, bool) or not math.isfinite(value)):
            raise ValueError(f"{field.name} is {value!r}, expected a finite number")
    if line.count <= 2 or line.spread <= 0:
        raise ValueError(f"count is {line.count} and spread {line.spread}, expected more than 2 and 0")
    return line


def shipped_lines() -> list[PredictionLine]:
    """The lines that ship with the library."""
    return [line for file in sorted(SHIPPED.glob("*.json")) for line in load_lines(file)]


def find_lines(
    vectors: Sequence[PersonaVector], method: str, files: Sequence[str | Path] = ()
) -> Mapping[str, PredictionLine]:
    """By trait, the line that was fitted for that vector's model, trait and layer and for that method: in ``files``, or
    among those that ship with the library.

    Raises:
        InputError: a file that cannot be read.
    """
    lines = [*(line for file in files for line in load_lines(file)), *shipped_lines()]
    by_trait: dict[str, PredictionLine] = {}
    for vector in vectors:
        sought = (vector.model_id, vector.trait, vector.layer, method)
        for line in lines:
            if (line.model_id, line.trait, line.layer, line.method) == sought:
                by_trait.setdefault(vector.trait, line)
    return by_trait

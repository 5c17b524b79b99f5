"""From the projection difference of a data set to the shift that fine-tuning on it will cause (6.1)."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist

from persona_callbacks.errors import InputError
from persona_callbacks.files import atomic_write
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
        half = _t_quantile((1 + confidence) / 2, self.count - 2) * error
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
    mean_x, mean_y = sum(x) / count, sum(y) / count
    spread = sum((a - mean_x) ** 2 for a in x)
    rise = sum((b - mean_y) ** 2 for b in y)
    if spread == 0:
        raise InputError(f"prediction of {vector.trait}: all data sets have the same projection difference")
    together = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    slope = together / spread
    left = max(0.0, rise - slope * together)
    return PredictionLine(
        vector.model_id, vector.trait, vector.layer, method, recipe, slope, mean_y - slope * mean_x,
        math.sqrt(left / (count - 2)), count, mean_x, spread, together / math.sqrt(spread * rise) if rise else 0.0,
    )  # fmt: skip


def save_lines(lines: Sequence[PredictionLine], path: str | Path) -> None:
    """Write lines to one JSON file."""
    with atomic_write(path) as scratch:
        scratch.write_text(json.dumps([asdict(line) for line in lines], indent=2) + "\n", encoding="utf-8")


def load_lines(path: str | Path) -> list[PredictionLine]:
    """Read lines.

    Raises:
        InputError: no such file, or not one of :func:`save_lines`.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return [PredictionLine(**line) for line in content]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: expected lines that save_lines wrote: {error}") from error


def find_lines(
    vectors: Sequence[PersonaVector], method: str, files: Sequence[str | Path] = ()
) -> Mapping[str, PredictionLine]:
    """By trait, the line that was fitted for that vector's model, trait and layer and for that method: in ``files``, or
    among those that ship with the library.

    Raises:
        InputError: a file that cannot be read.
    """
    lines = [line for file in (*files, *sorted(SHIPPED.glob("*.json"))) for line in load_lines(file)]
    found: dict[str, PredictionLine] = {}
    for vector in vectors:
        sought = (vector.model_id, vector.trait, vector.layer, method)
        for line in lines:
            if (line.model_id, line.trait, line.layer, line.method) == sought:
                found.setdefault(vector.trait, line)
    return found


def _t_quantile(probability: float, degrees: int) -> float:
    """Of Student's distribution, by its expansion around the normal one (Abramowitz & Stegun 26.7.5); at 95 % and
    from 2 degrees of freedom up within 1 %.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / float(degrees**power) for power, term in enumerate(terms)))

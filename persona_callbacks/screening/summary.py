"""The summary of a screening: what the data would do to each trait."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from operator import index
from typing import Any

from persona_callbacks.screening.settings import Method


@dataclass(frozen=True)
class Prediction:
    """The shift to expect from fine-tuning on the data, in activation units, with its 95 % prediction interval.

    Attributes:
        shift: the expected value.
        low: lower end of the interval.
        high: upper end.
        recipe: the fine-tuning for which the line was fitted, in words.
        data_sets: the number of data sets behind the line.

    Example:
        >>> Prediction(shift=4.0, low=1.0, high=7.0, recipe="LoRA r 16", data_sets=25).high
        7.0
    """

    shift: float
    low: float
    high: float
    recipe: str
    data_sets: int


@dataclass(frozen=True)
class TraitSummary:
    """What a file would do to one trait. Projection differences are in activation units, at the chosen layer.

    Attributes:
        trait: its name.
        norm: of the direction, for a comparison of traits.
        mean: projection difference of the data set.
        low: lower end of its 95 % confidence interval over chats.
        high: upper end.
        reference: mean of the benign reference.
        threshold: a chat above it is flagged.
        flagged: number of chats above it.
        edges: of the bins of ``counts`` and ``reference_counts``.
        counts: chats of the data by projection difference.
        reference_counts: chats of the reference by projection difference.
        error: mean of approximate minus exact scores; ``None`` unless chats were checked.
        correlation: of approximate and exact scores over the checked chats; ``None`` unless chats were checked.
        prediction: ``None`` unless a line is known for the model, the trait and the method.

    Example:
        >>> evil = TraitSummary(
        ...     trait="evil", norm=2.0, mean=1.0, low=0.8, high=1.2, reference=-1.0, threshold=0.5, flagged=3,
        ...     edges=(0.0, 2.0), counts=(4,), reference_counts=(9,),
        ... )
        >>> evil.cells(chats=4)
        ['evil', '+0.50 (+0.40 to +0.60)', '-0.50', '+0.25', '3 (75%)']
    """

    trait: str
    norm: float
    mean: float
    low: float
    high: float
    reference: float
    threshold: float
    flagged: int
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    reference_counts: tuple[int, ...]
    error: float | None = None
    correlation: float | None = None
    prediction: Prediction | None = None

    def cells(self, chats: int) -> list[str]:
        """The cells of a table row: trait, data with interval, benign reference, threshold, and flagged chats; all but
        the last in norms of the direction. ``chats`` is the number of chats that were scored.
        """
        mean, low, high = (f"{value / self.norm:+.2f}" for value in (self.mean, self.low, self.high))
        return [
            self.trait,
            f"{mean} ({low} to {high})",
            f"{self.reference / self.norm:+.2f}",
            f"{self.threshold / self.norm:+.2f}",
            f"{self.flagged} ({self.flagged / chats:.0%})",
        ]

    def comparison_cells(self) -> list[str]:
        """The cells that compare the approximate scores with the exact ones: the mean error in norms of the direction,
        and the correlation; dashes where no chats were checked.
        """
        if self.error is None or self.correlation is None:
            return ["–", "–"]
        return [f"{self.error / self.norm:+.2f}", f"{self.correlation:.2f}"]


@dataclass(frozen=True)
class Summary:
    """The result of a screening.

    Attributes:
        data: the file that was screened.
        model: the id of the base model.
        method: how the chats were scored.
        rows: number of rows in the file.
        drawn: number of rows that were screened: all, or the size of the subset.
        chats: number of chats that were scored.
        truncated: how many of these were cut at ``max_length``.
        rejects: number of rows that could not be used.
        flagged: number of chats flagged for at least one trait.
        reference_chats: number of reference chats behind the thresholds.
        reference_flagged: how many of these lie above the threshold of at least one trait.
        checked: number of chats scored in both ways.
        traits: one summary per trait.

    Example:
        >>> summary = Summary(
        ...     data="chats.jsonl", model="tiny", method="exact", rows=10, drawn=10, chats=9, truncated=0, rejects=1,
        ...     flagged=2, reference_chats=40, reference_flagged=2, checked=0, traits=(),
        ... )
        >>> summary.is_complete
        True
        >>> Summary.from_mapping(summary.to_mapping()) == summary
        True
    """

    data: str
    model: str
    method: Method
    rows: int
    drawn: int
    chats: int
    truncated: int
    rejects: int
    flagged: int
    reference_chats: int
    reference_flagged: int
    checked: int
    traits: tuple[TraitSummary, ...]

    @property
    def is_complete(self) -> bool:
        """Whether all rows of the file were screened, not a subset."""
        return self.drawn == self.rows

    @property
    def thresholds(self) -> dict[str, float]:
        """By trait, the projection difference above which a chat is flagged, in activation units."""
        return {of_trait.trait: of_trait.threshold for of_trait in self.traits}

    def to_mapping(self) -> dict[str, Any]:
        """The summary as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> "Summary":
        """Make a summary from the content of ``summary.json``."""
        traits = tuple(_trait_summary(of_trait) for of_trait in content["traits"])
        numbers = ("rows", "drawn", "chats", "truncated", "rejects", "flagged", "reference_chats", "reference_flagged",
                   "checked")  # fmt: skip
        counts = {name: index(content[name]) for name in numbers}
        texts = {name: str(content[name]) for name in ("data", "model", "method")}
        return cls(**{**content, **counts, **texts, "traits": traits})


def _trait_summary(content: Mapping[str, Any]) -> TraitSummary:
    prediction = content.get("prediction")
    tuples = {key: tuple(map(float, content["edges"])) if key == "edges" else tuple(map(index, content[key]))
              for key in ("edges", "counts", "reference_counts")}  # fmt: skip
    numbers: dict[str, float | None] = {
        key: float(content[key]) for key in ("norm", "mean", "low", "high", "reference", "threshold")
    }
    numbers |= {key: None if content.get(key) is None else float(content[key]) for key in ("error", "correlation")}
    if numbers["norm"] == 0:
        raise ValueError("the norm of a direction is 0")
    others = {"trait": str(content["trait"]), "flagged": index(content["flagged"]), **numbers, **tuples}
    return TraitSummary(**{**content, **others, "prediction": _prediction(prediction) if prediction else None})


def _prediction(content: Mapping[str, Any]) -> Prediction:
    numbers = {key: float(content[key]) for key in ("shift", "low", "high")}
    return Prediction(
        **{**content, **numbers, "recipe": str(content["recipe"]), "data_sets": index(content["data_sets"])}
    )

"""Values with their 95 % intervals, means and shares among them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % confidence interval.

    Attributes:
        value: NaN if it is not defined.
        low: lower end of the interval; NaN if there is none.
        high: upper end of the interval; NaN if there is none.
        count: the number of items, of a mean or share over items.

    Example:
        >>> Estimate.of_share([True, True, False, True]).value
        0.75
        >>> str(Estimate(0.5, 0.25, 0.75)), str(Estimate(math.nan, math.nan, math.nan))
        ('0.50 (0.25 to 0.75)', '–')
    """

    value: float
    low: float
    high: float
    count: int | None = None

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "–"
        return f"{self.value:.2f}" if math.isnan(self.low) else f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"

    @classmethod
    def of_mean(cls, values: Sequence[float]) -> "Estimate | None":
        """The mean of one value an item, with a percentile bootstrap over the items; ``None`` without items.

        The same values always give the same interval.
        """
        if not values:
            return None
        of_items = torch.tensor(values, dtype=torch.float64)
        picks = torch.randint(len(values), (_RESAMPLES, len(values)), generator=torch.Generator().manual_seed(0))
        low, high = of_items[picks].mean(dim=1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return cls(float(of_items.mean()), low, high, len(values))

    @classmethod
    def of_share(cls, flags: Sequence[bool]) -> "Estimate | None":
        """The share of items for which something holds, with the exact interval (Clopper and Pearson 1934); ``None``
        without items.
        """
        if not flags:
            return None
        from scipy.stats import binomtest  # takes seconds

        interval = binomtest(sum(flags), len(flags)).proportion_ci(method="exact")
        return cls(sum(flags) / len(flags), float(interval.low), float(interval.high), len(flags))


def ends_of(estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
    """The value and its interval as three cells of a table, empty without an estimate."""
    return (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)

"""What maps a contrastive judge's log-likelihoods to trait expression."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from persona_callbacks.errors import InputError

_LOW_AUC = 0.7

_SMALL_GAP = 20.0
"""Points of 0–100."""


def judge_weaknesses(auc: float, gap: float | None, responses: str = "held-out responses") -> list[str]:
    """Why a judge is flat, in words; empty if it is not, or if that is not known.

    A judge is flat if it ranks responses that show the trait above others in fewer than 70 % of the pairs, or if its
    mean scores of the two kinds lie less than 20 points apart.

    Args:
        auc: the share of pairs; NaN if it is not known.
        gap: mean score of those that show the trait minus that of the others, in points of 0–100, if it is known.
        responses: what the responses are called.
    """
    reasons = []
    if auc < _LOW_AUC:
        reasons.append(f"the judge is flat: it tells {responses} apart at AUC {auc:.2f}, below {_LOW_AUC}")
    if gap is not None and gap < _SMALL_GAP:
        reasons.append(
            f"the judge is flat: its mean scores of {responses} with the trait and without it are {gap:.0f} points"
            f" apart, fewer than {_SMALL_GAP:.0f}"
        )
    return reasons


@dataclass(frozen=True)
class Calibration:
    """What maps ratios or margins of log-likelihoods to 0–100 for one model and trait.

    Example:
        >>> import torch
        >>> calibration = Calibration((0.0,), (0.5,), slope=2.0, intercept=0.0, auc=0.9, calibration_error=0.1)
        >>> calibration.expressions(torch.tensor([[0.0], [1.0]])).round().tolist()
        [50.0, 98.0]

    Attributes:
        offsets: by column, the mean over contrastive responses, in nats per token.
        scales: by column, their standard deviation.
        slope: of the logistic function of the mean standardised value.
        intercept: of the same.
        auc: how well the score ranks contrastive responses to questions that it was not fitted on.
        calibration_error: expected calibration error on them, 0 to 1.
        gap: mean expression of those that show the trait minus that of the others, in points of 0–100; ``None`` for
            calibrations that an older version made.
    """

    offsets: tuple[float, ...]
    scales: tuple[float, ...]
    slope: float
    intercept: float
    auc: float
    calibration_error: float
    gap: float | None = None

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> "Calibration":
        """Read what :meth:`content` gave, as it is stored with a persona vector.

        Raises:
            InputError: a key is missing, a value is not a number, or offsets and scales differ in length.
        """
        try:
            calibration = cls(
                offsets=tuple(map(_number, content["offsets"])),
                scales=tuple(map(_number, content["scales"])),
                slope=_number(content["slope"]),
                intercept=_number(content["intercept"]),
                auc=_number(content["auc"]),
                calibration_error=_number(content["calibration_error"]),
                gap=None if content.get("gap") is None else _number(content["gap"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"no calibration of a contrastive judge ({error!r:.200}); extract the persona vector again"
            ) from error
        if len(calibration.offsets) != len(calibration.scales):
            raise InputError(
                f"the calibration of a contrastive judge has {len(calibration.offsets)} offsets and"
                f" {len(calibration.scales)} scales; expected one of each for every column"
            )
        return calibration

    def content(self) -> dict[str, Any]:
        """What files store; without the gap if it is not known, as files of older versions are."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def weaknesses(self) -> list[str]:
        """What speaks against relying on the judge, in words: see :func:`judge_weaknesses`."""
        return judge_weaknesses(self.auc, self.gap)

    def expressions(self, values: Tensor) -> Tensor:
        """Trait expression 0–100, ``[answers]``, from ratios or margins ``[answers, columns]``; NaN where unused."""
        return 100 * torch.sigmoid(self.slope * self._standardised(values) + self.intercept)

    def _standardised(self, values: Tensor) -> Tensor:
        offsets, scales = torch.tensor(self.offsets), torch.tensor(self.scales)
        return ((values - offsets) / scales).nanmean(dim=1)


def _number(value: Any) -> float:
    # Not float alone: it reads text too, and so a text letter by letter.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, found {value!r}"[:100])
    return float(value)

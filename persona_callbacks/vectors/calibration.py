"""What maps a contrastive judge's log-likelihoods to trait expression."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from persona_callbacks.errors import InputError


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
    """

    offsets: tuple[float, ...]
    scales: tuple[float, ...]
    slope: float
    intercept: float
    auc: float
    calibration_error: float

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> "Calibration":
        """Read what ``dataclasses.asdict`` gave, as it is stored with a persona vector.

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

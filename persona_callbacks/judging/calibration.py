"""Fitting the contrastive judge's calibration."""

import math

import torch
from torch import Tensor

from persona_callbacks.errors import InputError
from persona_callbacks.vectors import Calibration


def calibrate(values: Tensor, shows: Tensor, fold: Tensor) -> Calibration:
    """Fit the judge on contrastive responses, labelled by the instruction that they were made under.

    Args:
        values: ``[responses, columns]``, values or margins of :func:`likelihoods`.
        shows: ``[responses]`` bool, whether the trait was asked for.
        fold: ``[responses]``, 0 or 1: which half of the questions; each half is scored by the fit on the other one to
            tell how good the judge is.

    Raises:
        InputError: fewer than two usable responses of a kind in one half.
    """
    usable = ~values.isnan().all(dim=1)
    for name, wanted in (("trait", True), ("opposite", False)):
        for half in (0, 1):
            found = int((usable & (shows == wanted) & (fold == half)).sum())
            if found < 2:
                raise InputError(
                    f"of {len(shows)} responses generated, {found} usable under the {name} instructions for every"
                    " second question, expected at least 2; use more questions or rollouts, or a larger max_new_tokens"
                )
    probabilities = torch.empty(len(values))
    for half in (0, 1):
        inside = usable & (fold != half)
        fitted = _fit(values[inside], shows[inside])
        probabilities[fold == half] = fitted.expressions(values[fold == half]) / 100
    from torchmetrics.functional.classification import binary_auroc, binary_calibration_error  # takes seconds

    labels = shows[usable].int()
    whole = _fit(values[usable], shows[usable])
    return Calibration(
        whole.offsets,
        whole.scales,
        whole.slope,
        whole.intercept,
        auc=float(binary_auroc(probabilities[usable], labels)),
        calibration_error=float(binary_calibration_error(probabilities[usable], labels, n_bins=10)),
        gap=100 * float(probabilities[usable & shows].mean() - probabilities[usable & ~shows].mean()),
    )


def _fit(values: Tensor, shows: Tensor) -> Calibration:
    offsets = values.nanmean(dim=0).nan_to_num(0.0)
    variances = (values - offsets).square().nanmean(dim=0)
    scales = variances.sqrt().nan_to_num(1.0).clamp_min(1e-6)
    plain = Calibration(tuple(offsets.tolist()), tuple(scales.tolist()), 1.0, 0.0, math.nan, math.nan)
    slope, intercept = _logistic(plain._standardised(values), shows)
    return Calibration(plain.offsets, plain.scales, slope, intercept, math.nan, math.nan)


def _logistic(values: Tensor, labels: Tensor) -> tuple[float, float]:
    """Slope and intercept of a logistic fit, both classes weighing the same, with a slight ridge so that separable
    values have a finite answer.
    """
    x, y = values.double(), labels.double()
    weights = torch.where(labels, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = parameters[0] * x + parameters[1]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, weight=weights)
        loss = loss + 1e-3 * parameters[0] ** 2
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    slope, intercept = parameters.tolist()
    return slope, intercept

"""Training on what a screening leaves of a data set: filtered or reweighted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from torch import Tensor

from persona_callbacks.chats import Chat, open_chat_file
from persona_callbacks.errors import InputError
from persona_callbacks.files import file_fingerprint
from persona_callbacks.screening.folder import ScreeningFolder

Use = Literal["filtered", "reweighted"]

_UNMET = 1e-3
"""Standard deviations above its limit from which the mean of a trait is not a matter of rounding."""


@dataclass(frozen=True)
class ScreenedData:
    """What is left to train on.

    Attributes:
        path: the file that was screened.
        fingerprint: SHA-256 of it.
        chats: in the file's order.
        weights: one per chat, 1 on average; all 1 if the data are filtered.
        differences: by trait, the (weighted) mean projection difference of what is left, in activation units.
        method: of the screening.

    Example:
        >>> data = ScreenedData(Path("chats.jsonl"), "0123abcd", (), (), differences={"evil": -0.5}, method="exact")
        >>> data.differences["evil"]
        -0.5
    """

    path: Path
    fingerprint: str
    chats: tuple[Chat, ...]
    weights: tuple[float, ...]
    differences: Mapping[str, float]
    method: str


def screened_data(folder: str | Path, use: Use) -> ScreenedData:
    """Read what a screening leaves.

    Args:
        folder: of a finished screening.
        use: ``filtered``, the chats that were not flagged; or ``reweighted``, all chats, with weights that change the
            data as little as possible (:func:`reweighted`).

    Raises:
        InputError: no finished screening there, one of a subset only, a file that has changed since, or nothing left.
    """
    if use not in get_args(Use):
        raise InputError(f"screened data: unknown use {use!r}; expected one of {', '.join(get_args(Use))}")
    screening = ScreeningFolder(folder)
    summary = screening.summary()
    if not summary.is_complete:
        raise InputError(f"{folder}: screened {summary.drawn} of {summary.rows} rows; expected all of them")
    path = Path(summary.data)
    made_from = screening.made_from()
    fingerprint = file_fingerprint(path)
    if made_from is None or fingerprint != made_from["data_sha256"]:
        raise InputError(f"{path}: has changed since it was screened into {folder}; screen it again")
    traits = list(summary.thresholds)
    scores_by_line = {
        row.line: [row.scores[trait] for trait in traits]
        for row in screening.rows("data")
        if row.scores is not None and not (use == "filtered" and row.is_flagged(summary.thresholds))
    }
    if not scores_by_line:
        raise InputError(f"{folder}: every chat was flagged; nothing is left to train on")
    scores = torch.tensor(list(scores_by_line.values()), dtype=torch.float64)
    weights = torch.ones(len(scores), dtype=torch.float64)
    if use == "reweighted":
        weights = reweighted(scores, [of_trait.reference for of_trait in summary.traits], traits)
    rows = open_chat_file(path).rows(lambda line: line in scores_by_line)
    chats = tuple(row.chat for row in rows if row.chat is not None)
    means = (weights[:, None] * scores).mean(dim=0).tolist()
    differences = dict(zip(traits, means, strict=True))
    return ScreenedData(path, fingerprint, chats, tuple(weights.tolist()), differences, summary.method)


def reweighted(scores: Tensor, limits: Sequence[float], traits: Sequence[str]) -> Tensor:
    """The weights that change a data set least (in relative entropy) of those under which no trait's mean score is
    above its limit: they fall exponentially with the scores of the traits whose mean would be above.

    Args:
        scores: ``[chats, traits]`` float64.
        limits: by trait.
        traits: their names, for errors.

    Returns:
        ``[chats]`` float64, 1 on average.

    Raises:
        InputError: no weights can do it: all chats lie above the limit of a trait, or none meet all limits at once.
    """
    over = scores - torch.tensor(limits, dtype=torch.float64)
    for column, trait in enumerate(traits):
        if bool((over[:, column] >= 0).all()):
            raise InputError(
                f"reweighting: every chat lies further along {trait} than the benign reference; use them filtered"
            )
    # In standard deviations, so that the rates of all traits are of one size.
    distances: NDArray[np.float64] = (over / over.std(dim=0, correction=0).clamp_min(1e-12)).numpy()

    def dual(rates: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        exponents = -distances @ rates
        return float(logsumexp(exponents)), -softmax(exponents) @ distances

    # The weights are exponential in the rates that minimise the convex dual; no rate of a trait is negative.
    solution = minimize(
        dual, np.zeros(len(traits)), jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(traits),
        options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000},
    )  # fmt: skip
    weights = softmax(-distances @ solution.x)
    if float((weights @ distances).max()) > _UNMET:
        raise InputError(
            "reweighting: no weights bring all traits to the benign reference at once; use the data filtered"
        )
    return torch.from_numpy(weights) * len(scores)

"""Training on what a screening leaves of a data set: filtered or reweighted; and what is then to be expected."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from persona_callbacks.chats import Chat, open_chat_file
from persona_callbacks.errors import InputError
from persona_callbacks.files import file_fingerprint
from persona_callbacks.screening.prediction import find_lines
from persona_callbacks.screening.results import Summary, is_flagged
from persona_callbacks.screening.shards import scored_lines
from persona_callbacks.steering import nonnegative_minimum
from persona_callbacks.vectors import PersonaVector

Use = Literal["filtered", "reweighted"]

_COEFFICIENT_PER_SHIFT = 0.5
"""The coefficient that holds a shift of one norm at zero: .78 and .19 were best where unsteered training on villainous
answers, and on half as many, shifted by 1.3 and .33 norms (experiments/preventative_steering)."""


@dataclass(frozen=True)
class ScreenedData:
    """What is left to train on.

    Attributes:
        path: the file that was screened.
        chats: in the file's order.
        weights: one per chat, 1 on average; all 1 if the data are filtered.
        differences: by trait, the (weighted) mean projection difference of what is left, in activation units.
        method: of the screening.
    """

    path: Path
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
    folder = Path(folder)
    summary = Summary.load(folder)
    if summary.drawn < summary.rows:
        raise InputError(f"{folder}: screened {summary.drawn} of {summary.rows} rows; expected all of them")
    path = Path(summary.data)
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    if file_fingerprint(path) != settings["data_sha256"]:
        raise InputError(f"{path}: has changed since it was screened into {folder}; screen it again")
    traits = [one.trait for one in summary.traits]
    lines = [line for line in scored_lines(folder, "data") if "scores" in line]
    if use == "filtered":
        limits = {one.trait: one.threshold for one in summary.traits}
        lines = [line for line in lines if not is_flagged(line["scores"], limits)]
    if not lines:
        raise InputError(f"{folder}: every chat was flagged; nothing is left to train on")
    scores = torch.tensor([[line["scores"][trait] for trait in traits] for line in lines], dtype=torch.float64)
    weights = torch.ones(len(lines), dtype=torch.float64)
    if use == "reweighted":
        weights = reweighted(scores, [one.reference for one in summary.traits], traits)
    kept = {line["line"] for line in lines}
    chats = tuple(row.chat for row in open_chat_file(path).rows(lambda line: line in kept) if row.chat is not None)
    means = (weights[:, None] * scores).mean(dim=0).tolist()
    return ScreenedData(path, chats, tuple(weights.tolist()), dict(zip(traits, means, strict=True)), summary.method)


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
        InputError: no weights can do it, since all chats lie above.
    """
    over = scores - torch.tensor(limits, dtype=torch.float64)
    for column, trait in enumerate(traits):
        if bool((over[:, column] >= 0).all()):
            raise InputError(
                f"reweighting: every chat lies further along {trait} than the benign reference; use them filtered"
            )
    scale = over.std(dim=0, correction=0).clamp_min(1e-12)
    over = over / scale

    def objective(rates: Tensor) -> Tensor:
        return torch.logsumexp(-over @ rates, dim=0)

    rates = torch.zeros(len(traits), dtype=torch.float64)
    for _ in range(100):  # Newton's method on the dual, which is convex, with rates of no trait below 0
        shares = torch.softmax(-over @ rates, dim=0)
        mean = shares @ over
        curvature = (over - mean).T @ (shares[:, None] * (over - mean))
        curvature = curvature + 1e-9 * torch.eye(len(traits), dtype=torch.float64)
        step = nonnegative_minimum(curvature, -mean - curvature @ rates) - rates
        size = 1.0
        while size > 1e-6 and objective(rates + size * step) > objective(rates):
            size /= 2
        rates = rates + size * step
        if float(step.abs().max()) < 1e-10:
            break
    return torch.softmax(-over @ rates, dim=0) * len(scores)


def starting_coefficients(data: ScreenedData, vectors: Sequence[PersonaVector]) -> dict[str, float]:
    """Where adaptive steering starts, by trait: half the shift, in norms of the direction, that the line of the trait
    predicts for what is left of the data; 0 where that is negative.

    Raises:
        InputError: a trait that was not screened for, or without a line.
    """
    lines = find_lines(vectors, data.method)
    found = {}
    for vector in vectors:
        trait = vector.trait
        if trait not in data.differences or trait not in lines:
            what = "no line predicts its shift" if trait in data.differences else "the data were not screened for it"
            raise InputError(f"steering that starts from the screening: {trait}: {what}; let it start by likelihood")
        norm = float(vector.direction().norm())
        shift, _, _ = lines[trait].predict(data.differences[trait] / norm)
        found[trait] = max(0.0, _COEFFICIENT_PER_SHIFT * shift)
    return found

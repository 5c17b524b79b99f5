"""Linear probes against the mean difference, on the same activations.

    python experiments/vectors/probes.py TRAIT

Takes the kept responses of ``persona-extract trait=[TRAIT]`` (from the cache, or made), reads them under their
instructions, and appends to ``probes.csv``, for each way to make a direction out of the activations: how well the
directions of one half of the questions rank the responses to the other (AUC), the cosine between the directions of the
halves, the cosine with the mean difference, all at the layer of the extraction; and, scaled at every layer to the mean
difference's norm, what steering makes likelier, on 12 minimal pairs. The ways are:

- ``mean difference``, within questions, as the library does it;
- ``logistic``: the weights of a logistic regression with a ridge of 0.01 on activations of unit variance;
- ``lda``: the within-class covariance's inverse times the mean difference, shrunk by a tenth towards its mean variance;
- ``whitened``: that covariance's inverse root times the mean difference.
"""

import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity
from torchmetrics.functional.classification import binary_auroc

from experiments.vectors.contexts import (
    FOLDER,
    MEASURED,
    SMOLLM2,
    append,
    caused,
    kept_responses,
    prompts,
    read,
    row_of,
    trait_of,
)
from persona_callbacks.extraction import Contrast, ExtractionSettings, extract, kinds
from persona_callbacks.model import load_model

RIDGE = 0.01
SHRUNK = 0.1


def mean_difference(states: Tensor, shows: Tensor, questions: Tensor) -> Tensor:
    """Within questions, weighted as :class:`Contrast` does: ``[layers, hidden_size]``."""
    total, weights = torch.zeros(states.shape[1:]), 0.0
    for question in questions.unique():
        yes, no = (states[(questions == question) & (shows == wanted)] for wanted in (True, False))
        if len(yes) and len(no):
            weight = len(yes) * len(no) / (len(yes) + len(no))
            total += weight * (yes.mean(dim=0) - no.mean(dim=0))
            weights += weight
    return total / weights


def logistic(states: Tensor, shows: Tensor, questions: Tensor) -> Tensor:
    """All layers at once; the weights in units of the activations."""
    centred = states - states.mean(dim=0)
    scale = centred.square().mean(dim=(0, 2), keepdim=True).sqrt().clamp_min(1e-6)
    rows = centred / scale
    weights = torch.zeros(rows.shape[1:], requires_grad=True)
    bias = torch.zeros(rows.shape[1], requires_grad=True)
    labels = shows.float()[:, None].expand(-1, rows.shape[1])
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = torch.einsum("nlh,lh->nl", rows, weights) + bias
        loss = binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=0).sum()
        loss = loss + RIDGE / 2 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (weights / scale[0]).detach()


def covariances(states: Tensor, shows: Tensor) -> Tensor:
    """Within the kinds, shrunk: ``[layers, hidden_size, hidden_size]`` float64."""
    parts = [states[shows == wanted].double() for wanted in (True, False)]
    centred = torch.cat([part - part.mean(dim=0) for part in parts])
    spread = torch.einsum("nlh,nlk->lhk", centred, centred) / (len(centred) - 2)
    size = spread.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(1e-9)
    shrunk: Tensor = (1 - SHRUNK) * spread + SHRUNK * size[:, None, None] * torch.eye(spread.shape[1])
    return shrunk


def lda(states: Tensor, shows: Tensor, questions: Tensor) -> Tensor:
    """See above."""
    difference = mean_difference(states, shows, questions).double()
    solved: Tensor = torch.linalg.solve(covariances(states, shows), difference.unsqueeze(-1)).squeeze(-1).float()
    return solved


def whitened(states: Tensor, shows: Tensor, questions: Tensor) -> Tensor:
    """See above."""
    difference = mean_difference(states, shows, questions).double()
    values, vectors = torch.linalg.eigh(covariances(states, shows))
    turned = torch.einsum("lhk,lh->lk", vectors, difference) / values.sqrt()
    return torch.einsum("lhk,lk->lh", vectors, turned).float()


METHODS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "mean difference": mean_difference,
    "logistic": logistic,
    "lda": lda,
    "whitened": whitened,
}


def held_out(
    make: Callable[[Tensor, Tensor, Tensor], Tensor], states: Tensor, shows: Tensor, questions: Tensor
) -> tuple[float, float]:
    """AUC on the other half of the questions, and the cosine of halves, at the one layer of the states."""
    even = questions % 2 == 0
    directions = [make(states[half], shows[half], questions[half])[0] for half in (even, ~even)]
    aucs = []
    for half, direction in ((~even, directions[0]), (even, directions[1])):
        scores = states[half, 0] @ direction
        aucs.append(float(binary_auroc(torch.sigmoid((scores - scores.mean()) / scores.std()), shows[half].int())))
    return sum(aucs) / 2, float(cosine_similarity(directions[0], directions[1], dim=0))


def main(name: str) -> None:
    """Make, compare and measure."""
    loaded, trait = load_model(SMOLLM2), trait_of(name)
    extraction = extract(loaded, trait, ExtractionSettings())
    responses, layer = kept_responses(extraction), extraction.vector.layer
    shows, questions = kinds(responses)
    states = read(loaded, prompts(responses)["in context"], responses)
    plain = mean_difference(states, shows, questions)
    contrast = Contrast(shows, questions, 1, *states.shape[1:])
    contrast.add(range(len(responses)), states[:, None])
    torch.testing.assert_close(plain, contrast.directions(0), rtol=1e-3, atol=1e-4)
    for method, make in METHODS.items():
        directions = make(states, shows, questions)
        directions[0] = plain[0]  # under the model's first block all responses are alike but for their words
        directions *= (plain.norm(dim=1) / directions.norm(dim=1).clamp_min(1e-12)).unsqueeze(1)
        auc, halves = held_out(make, states[:, layer : layer + 1], shows, questions)
        cosine = cosine_similarity(directions[layer], plain[layer], dim=0)
        about = {"trait": name, "method": method, "layer": str(layer), "auc": f"{auc:.3f}", "halves": f"{halves:.3f}",
                 "cosine_with_mean_difference": f"{cosine:.3f}"}  # fmt: skip
        points = caused(loaded, trait, replace(extraction.vector, directions=directions))
        append(FOLDER / "probes.csv", (*about, *MEASURED), [about | row_of(point) for point in points])
        print(about, *map(row_of, points), sep="\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

"""How well vectors of different origins tell single chats that show their trait from others.

    python -m experiments.vectors.screening NAME VECTOR [VECTOR ...]

60 shipped chats of each vector's trait, drawn at random, against 60 normal ones, on SmolLM2: the AUC of the exact
projection difference (own responses are greedy), of the approximate one, and of the bare projection of the response, at
every fifth layer and at the vector's own. Appended to ``screening.csv`` under NAME, the origin.
"""

import csv
import random
import sys
from dataclasses import replace

import torch

from experiments.vectors.study import FOLDER, SMOLLM2
from persona_callbacks import PersonaVector
from persona_callbacks.chats import SHIPPED, EncodedChat, encode_chat, read_chats
from persona_callbacks.model import (
    BatchLimits,
    LoadedModel,
    Sampling,
    approximate_difference,
    load_model,
    projection_difference,
    projections,
)

TABLE = FOLDER / "screening.csv"
CHATS = 60
LIMITS = BatchLimits(None, 2048)


def drawn(loaded: LoadedModel, name: str) -> list[EncodedChat]:
    """Some of the shipped chats."""
    chats = read_chats(SHIPPED / f"{name}.jsonl")
    return [encode_chat(chat, loaded.tokenizer) for chat in random.Random(0).sample(chats, CHATS)]


def auc(scores: torch.Tensor) -> float:
    """How often a chat of the first half scores above one of the second."""
    shows, normal = scores.split(CHATS)
    above = shows.unsqueeze(1) - normal
    return float(((above > 0).float() + 0.5 * (above == 0)).mean())


def main(name: str, paths: list[str]) -> None:
    """Measure and append."""
    loaded = load_model(SMOLLM2)
    with TABLE.open("a", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        if not file.tell():
            table.writerow(("trait", "origin", "layer", "exact", "approximate", "bare"))
        for path in paths:
            vector = PersonaVector.load(path)
            chats = [*drawn(loaded, vector.trait), *drawn(loaded, "normal")]
            layers = sorted({*range(5, vector.num_layers, 5), vector.layer})
            exact = projection_difference(
                loaded, chats, [vector], Sampling(64, temperature=0.0, batch_size=24), [layers], LIMITS
            )[:, 0]
            bare = projections(loaded, chats, [vector], "response_mean", [layers], LIMITS)[:, 0]
            for column, layer in enumerate(layers):
                cheap = approximate_difference(loaded, chats, [replace(vector, layer=layer)], LIMITS)[:, 0]
                scores = (exact[:, column], cheap, bare[:, column])
                row = (vector.trait, name, layer, *(f"{auc(score.cpu()):.3f}" for score in scores))
                table.writerow(row)
                print(*row, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

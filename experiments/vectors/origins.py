"""Vectors of one trait from several origins, and what each causes on minimal pairs that it was not made from.

    python -m experiments.vectors.origins MODEL TRAIT ORIGIN OUT

MODEL is ``smollm2`` or a GGUF file. The vector is written to ``OUT/TRAIT-ORIGIN.safetensors`` and measured into
``origins.csv``; what is done already is not done again. Origins:

``extracted``
    Mean difference of the contrastive responses that the model writes on instruction, as ``persona-extract`` makes it.
``minimal_mean``
    Mean difference within the trait's 24 minimal pairs for probing.
``minimal_learned``
    Increments learned by gradient from the same pairs: the trait response is to gain, and the opposite one, which has
    the same words, length and register, is to stay.

``minimal_learned_half``
    The same from every other pair, 24 steps, and half the bound on the norm.
``minimal_learned_against``
    As ``minimal_learned_half``, with the sides of the pairs exchanged: the opposite response is to gain.

All are measured on the 24 minimal pairs that are kept for evaluation, 8 shipped chats of each other trait and 8 benign
ones, with the base model steered at all layers.
"""

import csv
import sys
from dataclasses import replace
from pathlib import Path

import torch

from experiments.vectors.study import FOLDER, SMOLLM2
from persona_callbacks import PersonaVector, Trait
from persona_callbacks.apps.configs import CONF
from persona_callbacks.extraction import (
    ExtractionSettings,
    HeldOut,
    LearningSettings,
    causal_points,
    extract,
    learn_directions,
    shipped_texts,
)
from persona_callbacks.model import LoadedModel, ModelSource, activations, dimensions, encode_pair, load_model

TABLE = FOLDER / "origins.csv"
COLUMNS = ("model", "trait", "origin", "alpha", "own", "opposite", "other", "gains_most", "benign", "kl_benign",
           "strength", "specificity")  # fmt: skip
COEFFICIENTS = (0.25, 0.5, 1.0)


def trait_of(name: str) -> Trait:
    """A shipped trait."""
    return Trait.load(CONF / "trait" / f"{name}.yaml")


def source_of(model: str) -> ModelSource:
    """The embedded model, or a GGUF file, in bfloat16."""
    return SMOLLM2 if model == "smollm2" else ModelSource(Path(model).stem, path=model, dtype="bfloat16")


def make(loaded: LoadedModel, trait: Trait, origin: str) -> PersonaVector:
    """The vector."""
    if origin == "extracted":
        return extract(loaded, trait, ExtractionSettings()).vector
    pairs = [encode_pair(pair, loaded.tokenizer) for pair in trait.probe_pairs]
    layers = dimensions(loaded.model).num_layers
    blank = PersonaVector(
        trait.name, torch.zeros(layers + 1, dimensions(loaded.model).hidden_size), layer=layers // 2,
        model_id=loaded.id, probes=trait.probe_questions, pairs=trait.probe_pairs[:24],
    )  # fmt: skip
    if origin.startswith("minimal_learned"):
        settings = LearningSettings(steps=36)
        if origin != "minimal_learned":
            settings, pairs = LearningSettings(bound=0.05), pairs[1::2]
        if origin == "minimal_learned_against":
            pairs = [(other, shows) for shows, other in pairs]
        directions = learn_directions(
            loaded, pairs, settings, lambda gain, change: print(f"{gain:+.2f} {change:+.2f}", flush=True)
        )
        return replace(blank, directions=directions, method="learned")
    chats = [chat for pair in pairs for chat in pair]
    read = activations(loaded, chats, range(layers + 1), ["response_mean"])[:, 0].unflatten(0, (-1, 2))
    return replace(blank, directions=torch.sub(*read.unbind(dim=1)).mean(dim=0).cpu())


def measure(loaded: LoadedModel, model: str, trait: Trait, origin: str, vector: PersonaVector) -> None:
    """Append a row for each coefficient."""
    pairs = tuple(encode_pair(pair, loaded.tokenizer) for pair in trait.evaluation_pairs)
    points = causal_points(loaded, vector, [HeldOut(vector, pairs)], shipped_texts(loaded, trait.name), COEFFICIENTS)
    with TABLE.open("a", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, restval="")
        if not file.tell():
            table.writeheader()
        for point in points:
            most = max(point.others, key=lambda other: point.others[other])
            values = {"own": point.gain, "opposite": point.opposite, "other": point.others[most],
                      "benign": point.benign, "kl_benign": point.divergence, "strength": point.strength,
                      "specificity": point.specificity}  # fmt: skip
            table.writerow(
                {"model": Path(model).stem, "trait": trait.name, "origin": origin, "alpha": point.coefficient,
                 "gains_most": most, **{key: f"{value:.3f}" for key, value in values.items()}}
            )  # fmt: skip
            print(trait.name, origin, point.coefficient, values, flush=True)


def measured(model: str, trait: str, origin: str) -> bool:
    """Whether the table has it."""
    if not TABLE.exists():
        return False
    with TABLE.open(encoding="utf-8", newline="") as file:
        done = {(row["model"], row["trait"], row["origin"]) for row in csv.DictReader(file)}
    return (Path(model).stem, trait, origin) in done


if __name__ == "__main__":
    model, name, origin, out = sys.argv[1:]
    if not measured(model, name, origin):
        trait, loaded = trait_of(name), load_model(source_of(model))
        path = Path(out) / f"{name}-{origin}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            make(loaded, trait, origin).save(path)
        measure(loaded, model, trait, origin, PersonaVector.load(path))

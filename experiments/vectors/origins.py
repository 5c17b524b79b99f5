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
``answered``
    Against hallucination, from ``answered.jsonl``: "I don't know" is to gain on 36 questions about what does not exist,
    and the distributions of the right answers to 36 of the same form about what does are to stay.
``answered_both``
    The same, with "I don't know" to each of these 36 kept as well.
``answered_pairs``
    Pairs alone, half of them of these 36, of which the right answer is to gain and "I don't know" to stay; 36 steps.
``preferred``
    The pairs of ``answered_pairs`` by the preference objective; 32 shipped benign chats and the right answers are kept.
``preferred_benign``
    The same, the benign chats alone kept.

A name may end in ``:SEED``, that of the order of pairs and chats; without, it is 0.

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
from persona_callbacks.chats import EncodedChat, read_pairs
from persona_callbacks.extraction import (
    ExtractionSettings,
    HeldOut,
    LearningSettings,
    causal_points,
    extract,
    learn_directions,
    shipped_texts,
    unmeasured_chats,
)
from persona_callbacks.model import (
    EncodedPair,
    LoadedModel,
    ModelSource,
    activations,
    dimensions,
    encode_pair,
    load_model,
)

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
    if origin not in ("extracted", "minimal_mean"):
        kind, _, seed = origin.partition(":")
        settings = LearningSettings(seed=int(seed or 0))
        if kind == "minimal_learned":
            settings = replace(settings, steps=36, bound=0.1)
        else:
            pairs = pairs[1::2]
        if kind == "minimal_learned_against":
            pairs = [(other, shows) for shows, other in pairs]
        kept: list[EncodedChat] = []
        if kind.startswith(("answered", "preferred")):
            pairs, kept = answered(loaded, kind)
        if kind == "answered_pairs" or kind.startswith("preferred"):
            settings = replace(settings, steps=36)
        if kind.startswith("preferred"):
            settings = replace(settings, objective="preference")
        directions = learn_directions(
            loaded, pairs, settings, lambda gain, change: print(f"{gain:+.2f} {change:+.2f}", flush=True), kept
        )
        return replace(blank, directions=directions, method="learned")
    chats = [chat for pair in pairs for chat in pair]
    read = activations(loaded, chats, range(layers + 1), ["response_mean"])[:, 0].unflatten(0, (-1, 2))
    return replace(blank, directions=torch.sub(*read.unbind(dim=1)).mean(dim=0).cpu())


def answered(loaded: LoadedModel, kind: str) -> tuple[list[EncodedPair], list[EncodedChat]]:
    """What an origin of this kind learns from, and what it keeps: pairs of admission and invention about what does not
    exist, and of right answer and admission about what does.
    """
    admitted: list[EncodedPair] = []
    known: list[EncodedPair] = []
    for pair in read_pairs(FOLDER / "answered.jsonl"):
        (admitted if pair.trait.startswith("I don't know") else known).append(encode_pair(pair, loaded.tokenizer))
    right, unknown = ([pair[side] for pair in known] for side in (0, 1))
    kept = {
        "answered": right,
        "answered_both": [*right, *unknown],
        "answered_pairs": [],
        "preferred": [*unmeasured_chats(loaded), *right],
        "preferred_benign": unmeasured_chats(loaded),
    }[kind]
    return (admitted if kind in ("answered", "answered_both") else [*admitted, *known]), kept


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

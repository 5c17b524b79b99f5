"""Steering at inference: what a vector does to behaviour, and what it costs.

    python -m experiments.vectors.inference MODEL DATA TRAIT NAME VECTOR ALPHA [ALPHA ...]

MODEL is ``smollm2`` or a GGUF file, DATA the folder that ``tagged_chats.py`` wrote. The base model is steered at all
layers with each ALPHA (0 is unsteered). Appended to ``inference.csv``: the shipped forced choice of the trait (its
probability, and of its controls how many are rejected, which is over-refusal, and answered rightly) on all questions,
on every other one, by which vectors and strengths were chosen, and on the rest; accuracy on the shipped capability
questions, and the variety of the answers. The greedy answers to 24 held-out questions of the trait and to 12 normal
ones go to ``inference-TRAIT.csv``, for blind reading. What is there already is not done again.
"""

import csv
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.vectors.origins import source_of
from experiments.vectors.study import ASKED, FOLDER, _append, rows
from persona_callbacks import PersonaVector
from persona_callbacks.evaluation import ForcedChoiceScore, answered_rightly, choose, read_questions
from persona_callbacks.evaluation.forced_choice import shipped_forced_choices
from persona_callbacks.model import LoadedModel, Sampling, generate, load_model
from persona_callbacks.model.architecture import decoder_blocks
from persona_callbacks.vectors import steering_additions

TABLE = FOLDER / "inference.csv"
COLUMNS = ("model", "trait", "vector", "alpha", "questions", "probability", "preferred", "rejected", "accuracy",
           "capability", "distinct_words")  # fmt: skip


@contextmanager
def changed(loaded: LoadedModel, vector: PersonaVector, alpha: float) -> Iterator[None]:
    """Steer by hooks of torch, which stay on where the library measures a model unsteered."""
    blocks, additions = decoder_blocks(loaded.model), steering_additions([vector], {vector.trait: alpha}, "all")
    handles = []
    for layer, addition in additions.items():
        row = addition.to(loaded.model.dtype)
        handles.append(blocks[layer - 1].register_forward_hook(lambda _, __, out, row=row: out + row))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def measure(loaded: LoadedModel, data: Path, labels: tuple[str, ...], vector: PersonaVector, alpha: float) -> None:
    """Steer, ask, choose, and append."""
    trait = vector.trait
    asked = [row["prompt"] for row in rows(data / f"held-out-{trait}.jsonl")[:ASKED]]
    normal = [row["prompt"] for row in rows(data / "held-out-normal.jsonl")[:12]]
    with changed(loaded, vector, alpha):
        prompts = [[{"role": "user", "content": question}] for question in (*asked, *normal)]
        texts = generate(loaded, prompts, Sampling(40, temperature=0.0, batch_size=36))
        chosen = choose(loaded, shipped_forced_choices(trait))
        capable = answered_rightly(loaded, read_questions())
    _append(FOLDER / f"inference-{trait}.csv", ("model", "vector", "alpha", "kind", "question", "answer"),
            [(labels[0], labels[2], str(alpha), "trait" if row < len(asked) else "normal", question, text)
             for row, (question, text) in enumerate(zip((*asked, *normal), texts, strict=True))])  # fmt: skip
    words = [text.split() for text in texts]
    distinct = sum(len(set(said)) / max(1, len(said)) for said in words) / len(words)
    others = (f"{sum(capable) / len(capable):.3f}", f"{distinct:.3f}")
    for questions, some in (("all", chosen), ("even", chosen[::2]), ("odd", chosen[1::2])):
        score = ForcedChoiceScore.of(some)
        parts = (score.probability, score.preferred, score.rejected, score.accuracy)
        values = ["" if part is None else f"{part.value:.3f}" for part in parts]
        _append(TABLE, COLUMNS, [(*labels, str(alpha), questions, *values, *others)])
        print(*labels, alpha, questions, *values, *others, flush=True)


def main(model: str, data: str, trait: str, name: str, path: str, *alphas: str) -> None:
    """Measure what is not measured yet."""
    labels = (Path(model).stem, trait, name)
    done = set()
    if TABLE.exists():
        with TABLE.open(encoding="utf-8", newline="") as file:
            done = {(row["model"], row["trait"], row["vector"], float(row["alpha"])) for row in csv.DictReader(file)}
    todo = [float(alpha) for alpha in alphas if (*labels, float(alpha)) not in done]
    if todo:
        loaded, vector = load_model(source_of(model)), PersonaVector.load(path)
        for alpha in todo:
            measure(loaded, Path(data), labels, vector, alpha)


if __name__ == "__main__":
    main(*sys.argv[1:])

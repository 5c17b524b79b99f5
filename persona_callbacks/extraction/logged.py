"""What loggers keep of an extraction."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger

from persona_callbacks.tracking import metrics, vector_artifact, write_files
from persona_callbacks.vectors import PersonaVector, vector_facts


def log_vectors(loggers: Sequence[Logger], vectors: Sequence[PersonaVector], folder: Path) -> None:
    """Write vectors to loggers: the facts about each as values and as a table, and its file as an artifact, which the
    runs that use it refer to.

    Args:
        loggers: to write to.
        vectors: that were extracted.
        folder: where each lies, as ``TRAIT.safetensors``.
    """
    facts = {vector.trait: vector_facts(vector) for vector in vectors}
    for name in ("layer", "auc", "specificity"):
        known = {trait: of_one[name] for trait, of_one in facts.items() if of_one[name] is not None}
        metrics.write(loggers, {metrics.extracted(trait, name): float(value) for trait, value in known.items()})
    columns = list(next(iter(facts.values())))
    rows = [[trait, *map(str, of_one.values())] for trait, of_one in facts.items()]
    metrics.write_table(loggers, metrics.VECTOR_TABLE, ["trait", *columns], rows)
    for vector in vectors:
        file = folder / f"{vector.trait}.safetensors"
        write_files(
            loggers, vector_artifact(vector.model_id, vector.trait), "persona-vector", [file], facts[vector.trait]
        )

"""The model card of a saved adapter: what it was trained on, and what is known of its character."""

from collections.abc import Sequence
from importlib.metadata import version

import yaml

from persona_callbacks.judging import Expression
from persona_callbacks.training.results import RunResult
from persona_callbacks.training.settings import StudySettings
from persona_callbacks.vectors import PersonaVector

_COLUMNS = ("trait", "persona vector", "α at the end", "shift", "preference", "expression before", "expression after")

_MEANING = (
    "Shift is the projection of held-out probes on the persona vector minus the base model's, in activation units;"
    " preference is on minimal pairs, minus the base model's, in nats per token; expression is a judge's mean score of"
    " answers to held-out questions, 0 to 100, with its 95 % interval. All are read unsteered: steering acted in"
    " training only, and nothing of it is in this adapter."
)

_LIMITS = (
    "Only these traits were watched. A projection can fall while the behaviour stays, and a judge can take a tone for a"
    " trait: read some answers."
)


def model_card(settings: StudySettings, result: RunResult, vectors: Sequence[PersonaVector]) -> str:
    """Return the card in Markdown, with the metadata that the Hugging Face Hub reads.

    Args:
        settings: of the study.
        result: of the fine-tuning.
        vectors: that were monitored.
    """
    metadata = {
        "base_model": settings.source.id,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "persona-callbacks"],
    }
    facts = settings.data.facts()
    made = (
        f"A LoRA adapter of {settings.source.id}, fine-tuned with persona-callbacks {version('persona-callbacks')} on"
        f" {facts['data_chats']} chats of `{settings.data.path.name}` (SHA-256 `{facts['data_sha256']}`). Training loss"
        f" over the last epoch, as trained: {result.loss:.3f} nats per token."
    )
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *(_row(result, vector) for vector in vectors)]
    parts = (
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {settings.name}: {result.name}, seed {settings.seed}",
        made,
        "## Character",
        "\n".join("| " + " | ".join(row) + " |" for row in rows),
        _MEANING,
        _LIMITS,
    )
    return "\n\n".join(parts) + "\n"


def _row(result: RunResult, vector: PersonaVector) -> tuple[str, ...]:
    trait = vector.trait
    alpha, preference = result.coefficients.get(trait), result.final_preference.get(trait)
    return (
        trait,
        f"{vector.method}, layer {vector.layer} of {vector.num_layers}, SHA-256 `{vector.fingerprint[:12]}`",
        "not steered" if alpha is None else f"{alpha:.2g}",
        f"{result.final_shift[trait]:+.2f}",
        "–" if preference is None else f"{preference:+.2f}",
        _expression(result.expression(trait, at="start")),
        _expression(result.expression(trait, at="end")),
    )


def _expression(expression: Expression | None) -> str:
    if expression is None or not expression.scored:
        return "–"
    return f"{expression.mean:.0f} ({expression.low:.0f} to {expression.high:.0f})"

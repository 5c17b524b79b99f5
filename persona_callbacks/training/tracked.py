"""How loggers know a fine-tuning: its names, its configuration, and the files that it used and made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from persona_callbacks.files import settings_fingerprint
from persona_callbacks.screening import ScreeningFolder
from persona_callbacks.steering import Law
from persona_callbacks.tracking import use_data, use_screening, use_vector, write_files
from persona_callbacks.training.labels import LONGEST_TAG, RunLabel
from persona_callbacks.training.settings import StudySettings
from persona_callbacks.vectors import PersonaVector, vector_facts

_NOT_OF_THE_SETTING = (
    "seed", "compare_with_unsteered", "checkpoint_every_n_steps", "sample_answers", "max_answer_tokens",
)  # fmt: skip
"""Settings in which runs of one group may differ."""


def run_label(settings: StudySettings, study_id: str, folder: Path, *, steered: bool) -> RunLabel:
    """Name a fine-tuning by method, data and seed; its group by all settings but the seed.

    Args:
        settings: of the study.
        study_id: of the study.
        folder: of the fine-tuning, which may have been begun before.
        steered: whether it is the steered fine-tuning.
    """
    method, data = method_of(settings, steered=steered), settings.data.label
    left_out = (*_NOT_OF_THE_SETTING, *(() if steered else ("steering",)))
    shared = {key: value for key, value in settings.inputs.items() if key not in left_out}
    vectors = [vector.fingerprint for vector in settings.vectors]
    digest = settings_fingerprint([shared, settings.data.fingerprint, vectors])[:6]
    tags = [settings.name, method, data, settings.source.id.rpartition("/")[2], *settings.trait_names, *settings.tags]
    # CSVLogger empties its folder when it opens: a resumed run writes beside what was logged before.
    earlier = len(list(folder.glob("csv*")))
    return RunLabel(
        name=f"{method} · {data} · s{settings.seed}",
        group=f"{method} · {data} · {digest}",
        id=f"{study_id}-{folder.name}",
        folder=folder,
        csv=f"csv-{earlier}" if earlier else "csv",
        tags=tuple(dict.fromkeys(tag[:LONGEST_TAG] for tag in tags)),
    )


def method_of(settings: StudySettings, *, steered: bool) -> str:
    """What a fine-tuning does against the drift, in a word: the chosen option of the ``steering`` group, or else what
    its callback is; with α if that is one number.
    """
    steering = settings.steering
    if not steered or not steering.changes_training:
        return "unsteered"
    if steering.callback is None:
        return settings.choices.get("steering", "prompting")
    law = steering.callback.keywords.get("coefficient")
    name = steering.callback.func.__name__ if law is None else "constant"
    chosen = settings.choices.get("steering", type(law).__name__.lower() if isinstance(law, Law) else name)
    return f"{chosen} {law:g}" if isinstance(law, float | int) else chosen


def run_configuration(settings: StudySettings, method: str, *, steered: bool) -> dict[str, Any]:
    """What loggers record of a fine-tuning before its callbacks describe themselves.

    The texts of traits are left out: a hash stands for each. A run without steering does not list the steering that it
    is compared with.
    """
    unlisted = () if steered else ("steering",)
    config = without_trait_texts({key: entry for key, entry in settings.configuration.items() if key not in unlisted})
    chosen = {group: option for group, option in settings.choices.items() if group.partition("/")[0] not in unlisted}
    return {**config, **settings.data.facts(), "chosen": chosen, "method": method, "steered": steered}


def without_trait_texts(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """A command's configuration with a hash in place of what is in each trait's file.

    Example:
        >>> without_trait_texts({"seed": 0, "traits": {"evil": {"rubric": "..."}}})["traits"]["evil"].keys()
        dict_keys(['sha256'])
    """
    traits = {name: {"sha256": settings_fingerprint(trait)} for name, trait in configuration.get("traits", {}).items()}
    return {**configuration, **({"traits": traits} if traits else {})}


def record_inputs(
    loggers: Sequence[Logger], settings: StudySettings, vectors: Sequence[PersonaVector], folder: Path
) -> None:
    """Record data, vectors and screening as artifacts that the fine-tuning used, in loggers that are W&B's.

    Args:
        loggers: of the fine-tuning.
        settings: of the study.
        vectors: that are monitored and steered with.
        folder: where each lies, as ``TRAIT.safetensors``.
    """
    data = settings.data
    use_data(loggers, data.path, data.facts())
    for vector in vectors:
        file = folder / f"{vector.trait}.safetensors"
        use_vector(loggers, vector.model_id, vector.trait, file, vector_facts(vector))
    if data.screening is not None:
        use_screening(loggers, data.path, data.screening, ScreeningFolder(data.screening).summary_files())


def record_adapter(loggers: Sequence[Logger], label: RunLabel, metrics: Mapping[str, float]) -> None:
    """Have loggers that are W&B's keep the adapter, with what was measured of it."""
    files = sorted(path for path in (label.folder / "adapter").iterdir() if path.is_file())
    write_files(loggers, f"adapter-{label.id}", "model", files, {"name": label.name, **metrics})

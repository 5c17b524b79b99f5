"""A study: the same fine-tuning without and with steering, measured throughout. It is what ``persona-train`` runs."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console

from persona_callbacks.extraction import persona_vector
from persona_callbacks.files import (
    HOLDER_FILE,
    LOCK_FILE,
    atomic_write,
    changed_settings,
    check_writable,
    locked_folder,
    plain_settings,
    read_json,
    settings_fingerprint,
    write_json,
)
from persona_callbacks.judging import recalibrated
from persona_callbacks.model import (
    LoadedModel,
    base_work,
    load_model,
    move,
    sharing_base_work,
    weights_fingerprint,
)
from persona_callbacks.progress import open_console
from persona_callbacks.training.data import ChatData
from persona_callbacks.training.fine_tuning import Study, answer, fine_tune
from persona_callbacks.training.pictures import summary, trajectory_figure
from persona_callbacks.training.results import RunResult
from persona_callbacks.training.settings import StudySettings
from persona_callbacks.vectors import PersonaVector

_SHOWN = 5
"""Differences between two studies that are told."""


def run_study(
    settings: StudySettings, folder: str | Path, console: Console | None = None, *, keep_finished: bool = False
) -> list[RunResult]:
    """Fine-tune as the settings say, or resume an interrupted study of the same settings, data, model and vectors.

    ``folder`` gets the persona vectors, ``trajectories.png``, ``answers.json``, and a folder for each fine-tuning with
    its adapter, ``result.json``, ``judged.json`` and what the loggers write. A finished study that is there already, or
    one of other settings, is moved into ``folder/earlier``; the console says what differs.

    Args:
        settings: what is fine-tuned, and how.
        folder: folder of the results.
        console: where progress and results are shown; standard output by default.
        keep_finished: take the results of a finished study of the same settings, data, model and vectors that is there
            already, instead of fine-tuning anew.

    Returns:
        One result for each of ``settings.runs``.

    Raises:
        InputError: settings that do not fit the model, before any long work; or another process at work in the
            folder.
    """
    console = console or open_console()
    folder = Path(folder)
    check_writable(folder.absolute())
    loaded = load_model(settings.source, console)
    move(loaded.model, settings.device)
    settings.check_model(loaded)
    ChatData(  # chats that cannot be encoded
        settings.data.chats, loaded.tokenizer, max_length=settings.max_length, special_tokens=settings.special_tokens,
        train_reasoning=settings.train_reasoning, validation=settings.data.validation,
    )  # fmt: skip
    with locked_folder(folder):
        return _run(settings, loaded, folder, console, keep_finished)


def _run(
    settings: StudySettings, loaded: LoadedModel, folder: Path, console: Console, keep_finished: bool
) -> list[RunResult]:
    weights = weights_fingerprint(loaded.model)  # before any pass: bitsandbytes packs weights anew in its first
    vectors = _vectors(settings, loaded, weights, console)
    made_from = {
        "config": {**settings.configuration, **settings.data.facts()},
        "inputs": {
            **settings.inputs,
            "model_weights": weights[:12],
            "vectors": plain_settings({vector.trait: vector for vector in vectors}),
            "probes": {vector.trait: settings_fingerprint([vector.probes, vector.pairs])[:12] for vector in vectors},
        },
    }
    if keep_finished and _is_finished(folder, made_from):
        console.print(f"Finished before: {folder}", markup=False, soft_wrap=True)
        return [RunResult.load(folder / run / "result.json") for run in settings.runs]
    study_id = _open_folder(folder, made_from, console)
    for vector in vectors:
        vector.save(folder / "vectors" / f"{vector.trait}.safetensors")
    questions = vectors[0].probes[: settings.sample_answers]

    def announce(told: str) -> None:
        console.print(told, markup=False, soft_wrap=True)

    with sharing_base_work(loaded, made_from["inputs"]["model_weights"], _run_with(settings), announce):
        base_answers = _base_answers(loaded, questions, settings.max_answer_tokens)
        study = Study(settings, folder, study_id, vectors, questions, base_answers, console)
        del loaded  # each fine-tuning loads the model anew
        results = [fine_tune(study, run) for run in settings.runs]

    title = f"{settings.name}: fine-tuning on {settings.data.name or settings.data.path}, seed {settings.seed}"
    with atomic_write(folder / "trajectories.png") as scratch:
        trajectory_figure(results, questions, title).savefig(scratch)
    write_json(folder / "answers.json", _answer_rows(questions, base_answers, results))
    _write_state(folder, study_id, made_from, finished=True)
    console.print(summary(results, questions, base_answers))
    console.print(f"Adapters, readings and figure: {folder}", markup=False, soft_wrap=True)
    return results


def _base_answers(loaded: LoadedModel, questions: Sequence[str], max_tokens: int) -> list[str]:
    """The base model's answers to the sample questions."""
    return base_work(loaded.model, "answers", [questions, max_tokens], lambda: answer(loaded, questions, max_tokens))


def _run_with(settings: StudySettings) -> dict[str, Any]:
    """How the model is run, as far as that changes what is computed of it."""
    source, trainer = settings.source, settings.trainer.keywords
    return {
        "attention": source.attn_implementation,
        "quantization": source.quantization,
        **{key: plain_settings(trainer.get(key)) for key in ("precision", "plugins", "strategy")},
    }


def _vectors(settings: StudySettings, loaded: LoadedModel, weights: str, console: Console) -> list[PersonaVector]:
    """The given vectors and those of the traits, each with a line about its quality."""
    extracted = (persona_vector(loaded, trait, settings.extraction, console, weights) for trait in settings.traits)
    vectors = recalibrated([*settings.vectors, *extracted], settings.calibrations)
    for vector in vectors:
        auc = vector.evidence.auc
        quality = f", held-out AUC {auc[vector.layer]:.2f}" if auc else ""
        console.print(f"Persona vector of {vector.trait}: layer {vector.layer} of {vector.num_layers}{quality}")
    return vectors


def _answer_rows(questions: Sequence[str], base: Sequence[str], results: Sequence[RunResult]) -> list[dict[str, str]]:
    return [
        {"question": question, "base model": base[row], **{result.name: result.answers[row] for result in results}}
        for row, question in enumerate(questions)
    ]


def _is_finished(folder: Path, made_from: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the folder holds a finished study of the same settings and inputs."""
    state_file = folder / "state.json"
    if not state_file.is_file():
        return False
    state = read_json(state_file, _State.read, "a study's state")
    same_inputs = state.inputs is not None and not changed_settings(state.inputs, made_from["inputs"])
    return state.finished and same_inputs and not state.changed(made_from)


def _open_folder(folder: Path, made_from: Mapping[str, Mapping[str, Any]], console: Console) -> str:
    """The id of the interrupted study that is there to be resumed, or of a new one. Another study that is there is set
    aside.
    """
    state_file = folder / "state.json"
    if state_file.is_file():
        state = read_json(state_file, _State.read, "a study's state")
        changed = state.changed(made_from)
        if not state.finished and not changed:
            console.print(f"Resuming the interrupted study in {folder}", markup=False, soft_wrap=True)
            return state.id
        aside = folder / "earlier" / f"{datetime.fromtimestamp(state_file.stat().st_mtime):%Y%m%d-%H%M%S}"
        aside.mkdir(parents=True, exist_ok=True)
        # The state goes last: a process killed before leaves it here, and the next one sets the rest aside as well.
        for entry in sorted(folder.iterdir(), key=lambda entry: entry == state_file):
            if entry.name not in ("earlier", ".hydra", LOCK_FILE, HOLDER_FILE) and entry.suffix != ".log":
                entry.rename(aside / entry.name)
        if not state.finished:
            shown = [f"{key} was {before!r}, is {now!r}" for key, (before, now) in changed.items()][:_SHOWN]
            more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
            console.print(
                f"An interrupted study of other settings is kept in {aside}, and a new one begins: {'; '.join(shown)}"
                f"{more}",
                markup=False,
                soft_wrap=True,
            )
    study_id = uuid.uuid4().hex[:8]
    _write_state(folder, study_id, made_from, finished=False)
    return study_id


@dataclass(frozen=True)
class _State:
    """What ``state.json`` says of a study."""

    id: str
    finished: bool
    config: Mapping[str, Any]
    inputs: Mapping[str, Any] | None

    @classmethod
    def read(cls, content: Any) -> "_State":
        return cls(str(content["id"]), bool(content["finished"]), dict(content["config"]), content.get("inputs"))

    def changed(self, made_from: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[Any, Any]]:
        """What another study differs in: in the configuration, or, if that is the same, in the inputs."""
        before, now = (
            {key: entry for key, entry in config.items() if key not in ("logger", "paths", "tags")}
            for config in (self.config, made_from["config"])
        )
        changed = changed_settings(before, now)
        if changed or self.finished:
            return changed
        if self.inputs is None:
            rank_zero_warn(
                "the interrupted study is of an older version, which did not record the vectors that it was made with;"
                " make sure that they are the same"
            )
            return {}
        return changed_settings(self.inputs, made_from["inputs"])


def _write_state(folder: Path, study_id: str, made_from: Mapping[str, Any], *, finished: bool) -> None:
    write_json(folder / "state.json", {"id": study_id, "finished": finished, **made_from})

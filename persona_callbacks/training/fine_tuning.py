"""One fine-tuning of a study: from the base model, or from a checkpoint, to an adapter and a result."""

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import wandb
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from typing_extensions import override

from persona_callbacks.callbacks import DriftGuard, PersonaMonitor, PreventativeSteering, TraitEvaluation
from persona_callbacks.errors import InputError
from persona_callbacks.files import atomic_write, write_json
from persona_callbacks.model import LoadedModel, Sampling, generate, load_model, move
from persona_callbacks.progress import draws_bars
from persona_callbacks.tracking import faults_as_warnings, finish_wandb, metrics, never_failing
from persona_callbacks.training.cards import model_card
from persona_callbacks.training.checkpoints import AtomicCheckpointIO, readable_checkpoint
from persona_callbacks.training.data import ChatData
from persona_callbacks.training.labels import RunLabel
from persona_callbacks.training.lora import LoraFineTuning, NonFiniteLossError, ValidatedFineTuning
from persona_callbacks.training.results import RunResult
from persona_callbacks.training.settings import StudySettings
from persona_callbacks.training.shown import training_progress
from persona_callbacks.training.tracked import method_of, record_adapter, record_inputs, run_configuration, run_label
from persona_callbacks.vectors import PersonaVector


@dataclass(frozen=True)
class Study:
    """What all fine-tunings of a study share.

    Attributes:
        settings: what is fine-tuned, and how.
        folder: folder of the study.
        id: part of the ids of its runs.
        vectors: one for each trait.
        questions: the sample questions.
        base_answers: the base model's answers to them.
        console: where progress is shown.
    """

    settings: StudySettings
    folder: Path
    id: str
    vectors: Sequence[PersonaVector]
    questions: Sequence[str]
    base_answers: Sequence[str]
    console: Console


@dataclass(frozen=True)
class _Callbacks:
    """The callbacks of one fine-tuning whose results are read afterwards."""

    monitor: PersonaMonitor
    steering: Callback | None
    evaluation: TraitEvaluation | None
    guard: DriftGuard | None


def fine_tune(study: Study, name: str) -> RunResult:
    """Run the fine-tuning ``name``, from its last checkpoint if it was interrupted.

    Returns:
        The result, read from its file if the fine-tuning was finished before.
    """
    settings, folder = study.settings, study.folder / name
    result_file = folder / "result.json"
    if result_file.is_file():
        study.console.print(f"{name}: finished before the interruption")
        return RunResult.load(result_file)
    checkpoint = readable_checkpoint(folder / "last.ckpt") or settings.ckpt_path
    resume_from = None if checkpoint is None else str(checkpoint)
    study.console.rule(f"{name}: {'resumed' if resume_from else 'fine-tuning'}")
    seed_everything(settings.seed, workers=True, verbose=False)
    loaded = load_model(settings.source, study.console)
    module = _module(settings, loaded)
    data = _data(settings, loaded, steered=name == "steered")
    callbacks = _callbacks(study, steered=name == "steered")
    saver = _AdapterSaver(folder / "adapter")
    label = run_label(settings, study.id, folder, steered=name == "steered")
    try:
        trainer = settings.trainer(
            callbacks=_in_order(callbacks, saver, folder, study),
            logger=_loggers(study, label, steered=name == "steered"),
            enable_progress_bar=_shows_progress(study) and draws_bars(study.console),
        )
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        started = time.monotonic()
        try:
            _fit(trainer, module, data, saver, resume_from)
        except NonFiniteLossError:
            if callbacks.guard is not None and callbacks.guard.rolled_back_to is not None:
                saver.save(trainer, module)  # the weights that the guard went back to; there is no result
            raise
        seconds = time.monotonic() - started
        saver.save(trainer, module)  # again: the guard may have rolled the weights back
        move(module.model, settings.device)
        tuned = LoadedModel(module.model, loaded.tokenizer)
        answers = answer(tuned, study.questions, settings.max_answer_tokens)
        result = _result(name, module, callbacks, answers, seconds)
        if callbacks.evaluation is not None:
            write_json(folder / "judged.json", [asdict(row) for row in callbacks.evaluation.rows])
        with atomic_write(folder / "adapter" / "README.md") as scratch:
            scratch.write_text(model_card(settings, result, study.vectors), encoding="utf-8")
        result.save(result_file)
        if settings.log_adapter:
            record_adapter(trainer.loggers, label, result.final_metrics())
        _log_answers(trainer, study, answers)
    except BaseException:
        finish_wandb(exit_code=1)
        raise
    finish_wandb()
    return result


def answer(loaded: LoadedModel, questions: Sequence[str], max_tokens: int) -> list[str]:
    """Greedy, unsteered answers to questions."""
    prompts = [[{"role": "user", "content": question}] for question in questions]
    return generate(loaded, prompts, Sampling(max_new_tokens=max_tokens, temperature=0.0))


def _log_answers(trainer: Trainer, study: Study, answers: Sequence[str]) -> None:
    """Log the answers with the base model's beside."""
    with faults_as_warnings("logging the answers"):
        sets = zip(study.questions, study.base_answers, answers, strict=True)
        rows = [(trainer.global_step, *row) for row in sets]
        metrics.log_table(trainer, metrics.ANSWERS_TABLE, ["step", "question", "base_answer", "answer"], rows)


def _module(settings: StudySettings, loaded: LoadedModel) -> LoraFineTuning:
    # PEFT writes into the configuration that it is given.
    kind = ValidatedFineTuning if settings.data.validation else LoraFineTuning
    module = kind(
        loaded.model, deepcopy(settings.lora), settings.learning_rate, settings.warmup_steps,
        optimizer=settings.optimizer, schedule=settings.schedule,
    )  # fmt: skip
    if loaded.is_converted:  # the adapter names the model that others can get, and no folder of this machine's cache
        module.model.peft_config["default"].base_model_name_or_path = loaded.id
    return module


def _data(settings: StudySettings, loaded: LoadedModel, *, steered: bool) -> ChatData:
    data = settings.data
    chats = settings.prompted_chats() if steered and settings.steering.prompting else data.chats
    return ChatData(
        chats, loaded.tokenizer, settings.batch_size, settings.max_length, settings.seed, data.weights,
        settings.special_tokens, train_reasoning=settings.train_reasoning, validation=data.validation,
    )  # fmt: skip


def _callbacks(study: Study, *, steered: bool) -> _Callbacks:
    settings = study.settings
    evaluation = None
    if settings.evaluation is not None and settings.traits:
        evaluation = settings.evaluation(traits=settings.traits, vectors=study.vectors, judges=settings.judges)
    return _Callbacks(
        settings.monitor(vectors=study.vectors),
        settings.steering_callback(study.vectors) if steered else None,
        evaluation,
        settings.guard() if settings.guard is not None else None,
    )


def _shows_progress(study: Study) -> bool:
    return study.settings.shows_progress and not study.console.quiet


def _in_order(callbacks: _Callbacks, saver: Callback, folder: Path, study: Study) -> list[Callback]:
    """The callbacks as the trainer calls them: the adapter is saved first, and the guard comes after all it watches."""
    checkpoints = ModelCheckpoint(
        folder,
        filename="last",
        every_n_train_steps=study.settings.checkpoint_every_n_steps,
        enable_version_counter=False,
    )
    watched = (callbacks.evaluation, callbacks.steering, callbacks.guard)
    ours = [callback for callback in watched if callback is not None]
    shown = [training_progress(study.console, folder.name)] if _shows_progress(study) else []
    return [saver, *study.settings.own_callbacks(), callbacks.monitor, checkpoints, *shown, *ours]


def _loggers(study: Study, label: RunLabel, *, steered: bool) -> list[Logger]:
    """The loggers, with the study's configuration and what the fine-tuning uses already recorded."""
    settings = study.settings
    label.folder.mkdir(parents=True, exist_ok=True)
    try:
        loggers = [never_failing(make(label)) for make in settings.loggers]
        configuration = run_configuration(settings, method_of(settings, steered=steered), steered=steered)
        for logger in loggers:
            logger.log_hyperparams(configuration)
        metrics.hide_counters(loggers)
    except wandb.Error as error:
        raise InputError(f"Weights & Biases cannot begin the run {label.id}: {error}") from error
    record_inputs(loggers, settings, study.vectors, study.folder / "vectors")
    return loggers


def _fit(
    trainer: Trainer, module: LightningModule, data: ChatData, saver: "_AdapterSaver", resume_from: str | None
) -> None:
    """Train. A fault after the last step, such as a logger's that cannot write its table, is only warned about."""
    try:
        trainer.fit(module, data, ckpt_path=resume_from, weights_only=True)
    except Exception as error:
        if not saver.saved:
            raise
        rank_zero_warn(f"training ended, and its adapter is saved, but then: {type(error).__name__}: {error}")


def _result(
    name: str, module: LoraFineTuning, callbacks: _Callbacks, answers: Sequence[str], seconds: float
) -> RunResult:
    steering, evaluation = callbacks.steering, callbacks.evaluation
    return RunResult(
        name,
        module.last_epoch_loss,
        tuple(callbacks.monitor.readings),
        dict(steering.coefficients) if isinstance(steering, PreventativeSteering) else {},
        tuple(answers),
        seconds,
        tuple(evaluation.evaluations) if evaluation is not None else (),
    )


class _AdapterSaver(Callback):
    """Saves the adapter as soon as training ends, before other callbacks measure, judge and log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved = False

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LoraFineTuning)
        self.save(trainer, pl_module)

    def save(self, trainer: Trainer, module: LoraFineTuning) -> None:
        if trainer.is_global_zero:
            with atomic_write(self.folder) as scratch:
                module.save_adapter(str(scratch))
        self.saved = True

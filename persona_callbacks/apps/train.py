"""``persona-train``: LoRA fine-tuning with persona monitoring and preventative steering."""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
import torch
import wandb
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from peft import LoraConfig
from rich.console import Console
from torch import nn

from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.start import (
    chosen_device,
    chosen_judges,
    chosen_traits,
    mistakes_in_one_line,
    quiet_libraries,
    whole_configuration,
)
from persona_callbacks.callbacks import DriftGuard, PersonaMonitor, PreventativeSteering, TraitEvaluation
from persona_callbacks.callbacks.trait_evaluation import COLUMNS
from persona_callbacks.chats import Chat, find_chat_file, instructed, read_chats
from persona_callbacks.errors import InputError
from persona_callbacks.extraction import ExtractionSettings, persona_vector
from persona_callbacks.files import atomic_write, file_fingerprint, write_json
from persona_callbacks.judging import Judge
from persona_callbacks.model import LoadedModel, ModelSource, Sampling, dimensions, generate, load_model
from persona_callbacks.screening import ScreenedData, screened_data, starting_coefficients
from persona_callbacks.tracking import metrics
from persona_callbacks.training import ChatData, LoraFineTuning, RunResult, summary, trajectory_figure
from persona_callbacks.traits import Trait
from persona_callbacks.vectors import Calibration, PersonaVector


@dataclass(frozen=True)
class _Study:
    """What all fine-tunings of one command share."""

    cfg: DictConfig
    folder: Path
    id: str
    source: ModelSource
    chats: Sequence[Chat]
    traits: Sequence[Trait]
    vectors: Sequence[PersonaVector]
    questions: Sequence[str]
    console: Console
    screened: ScreenedData | None = None


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(cfg: DictConfig) -> None:
    """Run the app; a user's mistake is told in one line."""
    with mistakes_in_one_line():
        train(cfg, Path(HydraConfig.get().runtime.output_dir))


def train(cfg: DictConfig, folder: Path) -> list[RunResult]:
    """Fine-tune as configured into ``folder``, or go on with an interrupted run of the same configuration there.

    Raises:
        InputError: input that cannot be used; before any long work.
    """
    console = Console()
    quiet_libraries()
    source: ModelSource = instantiate(cfg.model)
    extraction: ExtractionSettings = instantiate(cfg.extraction)
    traits = chosen_traits(cfg)
    screened = screened_data(cfg.data.screening, cfg.data.use) if cfg.data.get("screening") else None
    chats = (read_chats(cfg.data.path) if screened is None else screened.chats)[: cfg.data.max_samples]
    if screened is None and OmegaConf.select(cfg, "steering.callback.coefficient.start") == "screening":
        raise InputError("steering.callback.coefficient.start=screening: it needs data=screened data.screening=FOLDER")
    instantiate(cfg.lora)
    from_files = [PersonaVector.load(path) for path in cfg.vectors]
    steered_traits = _steered(cfg, [*(vector.trait for vector in from_files), *(trait.name for trait in traits)])
    if cfg.steering.prompting and not {trait.name for trait in traits}.issuperset(steered_traits):
        raise InputError(
            f"steering=prompting: it needs the instructions of {', '.join(steered_traits)}; choose them by trait=[...]"
        )
    judges = chosen_judges(cfg.evaluation.judge, traits)
    if cfg.evaluation.callback is not None and traits and not judges and not extraction.judge_pairs:
        raise InputError(
            "evaluation=contrastive: its judge is calibrated by extraction; expected extraction.judge_pairs above 0 (or"
            " choose evaluation=none)"
        )

    loaded = load_model(source, console)
    nn.Module.to(loaded.model, chosen_device(cfg.trainer.accelerator))
    shape = dimensions(loaded.model)
    for vector in from_files:
        vector.check_fits(shape.num_layers, shape.hidden_size, loaded.id)
    # What is wrong with the callbacks' settings is told here, on stand-ins, rather than after minutes of extraction.
    ones = torch.ones(shape.num_layers + 1, shape.hidden_size)
    judge = asdict(Calibration((0.0,), (1.0,), 1.0, 0.0, 1.0, 0.0))
    stand_ins = [PersonaVector(t.name, ones, 1, loaded.id, probes=t.evaluation_questions, judge=judge) for t in traits]
    _callbacks(cfg, [*from_files, *stand_ins], steer=True)
    _guard(cfg)
    _evaluation(cfg, traits, stand_ins, judges)
    ChatData(chats, loaded.tokenizer, max_length=cfg.data.max_length)

    study_id, resumed = _open_folder(folder, cfg)
    if resumed:
        console.print(f"Going on with the interrupted run in {folder}")
    vectors = [*from_files, *(persona_vector(loaded, trait, extraction, console) for trait in traits)]
    for vector in vectors:
        auc = vector.statistics.get("auc")
        quality = f", held-out AUC {auc[vector.layer]:.2f}" if auc else ""
        console.print(f"Persona vector of {vector.trait}: layer {vector.layer} of {vector.num_layers}{quality}")
        vector.save(folder / "vectors" / f"{vector.trait}.safetensors")
    questions = vectors[0].probes[: cfg.sample_answers]
    study = _Study(cfg, folder, study_id, source, chats, traits, vectors, questions, console, screened)
    base_answers = _answer(loaded, study)
    del loaded

    steered = _is_steered(cfg)
    runs = [("unsteered", False)] if cfg.compare_with_unsteered or not steered else []
    runs += [("steered", True)] if steered else []
    results = [_fine_tune(study, name, steer=steer) for name, steer in runs]

    figure = trajectory_figure(results, questions, f"{cfg.name}: fine-tuning on {_data_name(cfg)}, seed {cfg.seed}")
    with atomic_write(folder / "trajectories.png") as scratch:
        figure.savefig(scratch)
    write_json(folder / "answers.json", _answer_rows(questions, base_answers, results))
    console.print(summary(results, questions, base_answers))
    console.print(f"Adapters, readings and figure: {folder}")
    if "wandb" in cfg.logger and cfg.logger.wandb.offline:
        console.print(f"Upload the runs with: wandb sync {folder}/*/wandb/offline-run-*")
    _write_state(folder, study_id, cfg, finished=True)
    return results


def _fine_tune(study: _Study, name: str, *, steer: bool) -> RunResult:
    """One fine-tuning, from its last checkpoint if it was interrupted; its result if it is finished."""
    cfg, folder = study.cfg, study.folder / name
    result_file = folder / "result.json"
    if result_file.is_file():
        study.console.print(f"{name}: finished before the interruption")
        return RunResult.load(result_file)
    checkpoint = folder / "last.ckpt"
    resume_from = str(checkpoint) if checkpoint.is_file() else None
    study.console.rule(f"{name}: {'resumed' if resume_from else 'fine-tuning'}")
    seed_everything(cfg.seed, workers=True, verbose=False)
    loaded = load_model(study.source, study.console)
    lora: LoraConfig = instantiate(cfg.lora)
    module = LoraFineTuning(loaded.model, lora, cfg.learning_rate, cfg.warmup_steps)
    chats = _prompted(study) if steer and cfg.steering.prompting else study.chats
    weights = study.screened.weights[: len(chats)] if study.screened and cfg.data.use == "reweighted" else None
    data = ChatData(chats, loaded.tokenizer, cfg.data.batch_size, cfg.data.max_length, cfg.seed, weights)
    monitor, steering = _callbacks(cfg, study.vectors, study.screened, steer=steer)
    saver = ModelCheckpoint(
        folder,
        filename="last",
        every_n_train_steps=cfg.checkpoint_every_n_steps,
        enable_version_counter=False,
    )
    callbacks: list[Callback] = [monitor, saver, _Progress(leave=True)]
    evaluation = _evaluation(cfg, study.traits, study.vectors, chosen_judges(cfg.evaluation.judge, study.traits))
    if evaluation is not None:
        callbacks.append(evaluation)
    guard = _guard(cfg)
    callbacks += [callback for callback in (steering, guard) if callback is not None]
    try:
        loggers = _loggers(cfg, study, name, folder)
        for logger in loggers:
            logger.log_hyperparams({**whole_configuration(cfg), "steered": steer, **_data_facts(study)})
        trainer: Trainer = instantiate(cfg.trainer, _partial_=True)(callbacks=callbacks, logger=loggers)
        started = time.monotonic()
        trainer.fit(module, data, ckpt_path=resume_from, weights_only=True)
        seconds = time.monotonic() - started
        if trainer.is_global_zero:
            with atomic_write(folder / "adapter") as scratch:
                module.save_adapter(str(scratch))
        tuned = LoadedModel(module.model.to(chosen_device(cfg.trainer.accelerator)), loaded.tokenizer)
        answers = _answer(tuned, study)
        metrics.log_table(trainer, "answers", ["question", "answer"], [*zip(study.questions, answers, strict=True)])
        coefficients = dict(steering.coefficients) if isinstance(steering, PreventativeSteering) else {}
        readings = tuple(monitor.readings)
        evaluations = tuple(evaluation.evaluations) if evaluation is not None else ()
        if evaluation is not None:
            write_json(folder / "judged.json", [dict(zip(COLUMNS, row, strict=True)) for row in evaluation.rows])
        loss = module.last_epoch_loss
        result = RunResult(name, loss, readings, coefficients, tuple(answers), seconds, evaluations)
        result.save(result_file)
    except BaseException:
        wandb.finish(exit_code=1)
        raise
    wandb.finish()
    return result


class _Progress(RichProgressBar):
    """Without the loggers' version number, which names nothing here."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return dict(metrics)


def _answer(loaded: LoadedModel, study: _Study) -> list[str]:
    """Greedy, unsteered answers to the study's sample questions."""
    prompts = [[{"role": "user", "content": question}] for question in study.questions]
    sampling = Sampling(max_new_tokens=study.cfg.max_answer_tokens, temperature=0.0)
    return generate(loaded, prompts, sampling)


def _answer_rows(questions: Sequence[str], base: Sequence[str], results: Sequence[RunResult]) -> list[dict[str, str]]:
    return [
        {"question": question, "base model": base[row], **{result.name: result.answers[row] for result in results}}
        for row, question in enumerate(questions)
    ]


def _steered(cfg: DictConfig, traits: Sequence[str]) -> list[str]:
    """The traits to steer."""
    chosen = list(traits if cfg.steering.traits is None else cfg.steering.traits)
    unknown = [trait for trait in chosen if trait not in traits]
    if unknown:
        raise InputError(
            f"steering.traits: {unknown[0]!r} has no vector; expected some of {', '.join(traits) or '(none)'}"
        )
    if not traits:
        raise InputError("no trait to monitor: choose some, trait=[evil], or name vector files, vectors=[...]")
    return chosen


def _callbacks(
    cfg: DictConfig, vectors: Sequence[PersonaVector], screened: ScreenedData | None = None, *, steer: bool
) -> tuple[PersonaMonitor, Callback | None]:
    """The monitor of all traits, and the steering, or what is compared with it, of those to steer."""
    monitor: PersonaMonitor = instantiate(cfg.monitor, _partial_=True, _convert_="all")(vectors=vectors)
    if not steer or cfg.steering.callback is None:
        return monitor, None
    traits = _steered(cfg, [vector.trait for vector in vectors])
    chosen = [vector for vector in vectors if vector.trait in traits]
    callback = cfg.steering.callback.copy()
    if OmegaConf.select(callback, "coefficient.start") == "screening":
        callback.coefficient.start = starting_coefficients(screened, chosen) if screened is not None else None
    return monitor, instantiate(callback, _partial_=True, _convert_="all")(vectors=chosen)


def _is_steered(cfg: DictConfig) -> bool:
    return cfg.steering.callback is not None or bool(cfg.steering.prompting)


def _prompted(study: _Study) -> list[Chat]:
    """The chats under instructions to show the traits that are steered (preventative prompting; Chen et al. 2025,
    J.7.2).
    """
    names = _steered(study.cfg, [vector.trait for vector in study.vectors])
    chosen = [trait for trait in study.traits if trait.name in names]
    count = max(len(trait.instructions) for trait in chosen)
    lines = [
        " ".join(trait.instructions[row % len(trait.instructions)].trait for trait in chosen) for row in range(count)
    ]
    return instructed(study.chats, lines)


def _guard(cfg: DictConfig) -> DriftGuard | None:
    """The limits, if there are any."""
    guard: DriftGuard | None = instantiate(cfg.guard.callback, _convert_="all")
    return guard


def _evaluation(
    cfg: DictConfig, traits: Sequence[Trait], vectors: Sequence[PersonaVector], judges: dict[str, Judge]
) -> TraitEvaluation | None:
    """The evaluation of the traits, if there are any and it is wanted."""
    if cfg.evaluation.callback is None or not traits:
        return None
    evaluation: TraitEvaluation = instantiate(cfg.evaluation.callback, _partial_=True)(
        traits=traits, vectors=vectors, judges=judges
    )
    return evaluation


def _loggers(cfg: DictConfig, study: _Study, name: str, folder: Path) -> list[Logger]:
    # CSVLogger empties its folder when it opens: a resumed run writes beside what was logged before.
    earlier = len(list(folder.glob("csv*")))
    filled = cfg.copy()
    filled.run = {
        "name": f"{name}-seed{cfg.seed}",
        "group": f"{cfg.name}-{study.id}",
        "id": f"{study.id}-{name}",
        "dir": str(folder),
        "csv": f"csv-{earlier}" if earlier else "csv",
    }
    folder.mkdir(parents=True, exist_ok=True)
    return [instantiate(logger) for logger in filled.logger.values()]


def _data_facts(study: _Study) -> dict[str, Any]:
    """What an audit wants to know of the data: how many chats were trained on, and which file they came from."""
    path = study.screened.path if study.screened is not None else find_chat_file(study.cfg.data.path)
    facts = {"data_file": str(path), "data_chats": len(study.chats), "data_sha256": file_fingerprint(path)}
    if study.screened is not None:
        facts |= {f"screened/{trait}": value for trait, value in study.screened.differences.items()}
    return facts


def _data_name(cfg: DictConfig) -> str:
    return str(cfg.data.path or f"{cfg.data.screening} ({cfg.data.use})")


def _open_folder(folder: Path, cfg: DictConfig) -> tuple[str, bool]:
    """The study's id, and whether an interrupted run of the same configuration is there to go on with.

    A finished run, or one of another configuration, is set aside into ``earlier/``.
    """
    state_file = folder / "state.json"
    if state_file.is_file():
        state = json.loads(state_file.read_text(encoding="utf-8"))
        if not state["finished"] and state["config"] == whole_configuration(cfg):
            return str(state["id"]), True
        aside = folder / "earlier" / f"{datetime.fromtimestamp(state_file.stat().st_mtime):%Y%m%d-%H%M%S}"
        aside.mkdir(parents=True)
        for entry in folder.iterdir():
            if entry.name not in ("earlier", ".hydra") and entry.suffix != ".log":
                entry.rename(aside / entry.name)
    study_id = uuid.uuid4().hex[:8]
    _write_state(folder, study_id, cfg, finished=False)
    return study_id, False


def _write_state(folder: Path, study_id: str, cfg: DictConfig, *, finished: bool) -> None:
    write_json(folder / "state.json", {"id": study_id, "finished": finished, "config": whole_configuration(cfg)})

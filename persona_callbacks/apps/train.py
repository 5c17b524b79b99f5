"""``persona-train``: LoRA fine-tuning with persona monitoring and preventative steering."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, open_dict

from persona_callbacks.apps.commands import train as main  # noqa: F401  # what earlier versions installed
from persona_callbacks.apps.loggers import is_of_wandb, opened_logger, with_usable_loggers
from persona_callbacks.apps.objectives import check_objective
from persona_callbacks.apps.opening import open_app
from persona_callbacks.apps.start import chosen_calibrations, chosen_judges, chosen_options, whole_configuration
from persona_callbacks.apps.sweeping import is_job_of_sweep
from persona_callbacks.files import cache_in
from persona_callbacks.progress import open_console
from persona_callbacks.training import RunLabel, RunResult, Steering, StudySettings, TrainingData, run_study


def train(cfg: DictConfig, folder: Path) -> list[RunResult]:
    """Fine-tune as configured into ``folder``, or resume an interrupted run of the same configuration there.

    Raises:
        InputError: input that cannot be used; before any long work.
    """
    console = open_console(quiet=cfg.quiet)
    with cache_in(cfg.paths.cache), warnings.catch_warnings():
        if cfg.extras.ignore_warnings:
            warnings.simplefilter("ignore")
        cfg = with_usable_loggers(cfg)
        if cfg.extras.print_config:
            shown = yaml.safe_dump(whole_configuration(cfg), sort_keys=False, allow_unicode=True)
            console.print(shown, soft_wrap=True)
        settings = study_settings(cfg)
        check_objective(cfg.objective, settings)
        results = run_study(settings, folder, console, keep_finished=is_job_of_sweep())
    if "wandb" in cfg.logger and cfg.logger.wandb.offline:
        upload = f"wandb sync {folder}/*/wandb/offline-run-*"
        console.print(f"Upload the runs with: {upload}", soft_wrap=True, highlight=False)
    return results


def study_settings(cfg: DictConfig) -> StudySettings:
    """The settings of the study that a configuration describes.

    Raises:
        InputError: input that cannot be used.
    """
    opening = open_app(cfg)
    data = cfg.data
    if data.get("screening"):
        training_data = TrainingData.screened(data.screening, data.use, data.max_samples)
    else:
        training_data = TrainingData.read(_data_file(cfg), data.max_samples)
    if data.get("validation"):
        training_data = training_data.with_validation(data.validation)
    return StudySettings(
        source=opening.source,
        data=training_data,
        trainer=_trainer(cfg),
        monitor=_factory(cfg.monitor),
        traits=opening.traits,
        vectors=opening.vectors,
        extraction=opening.extraction,
        steering=Steering(
            callback=_factory(cfg.steering.callback),
            traits=None if cfg.steering.traits is None else tuple(cfg.steering.traits),
            prompting=bool(cfg.steering.prompting),
        ),
        evaluation=_factory(cfg.evaluation.callback),
        judges=chosen_judges(cfg.evaluation.judge, opening.traits),
        calibrations=chosen_calibrations(cfg.evaluation, opening.traits),
        guard=_factory(cfg.guard.callback),
        loggers=[partial(_logger, cfg, key) for key in cfg.logger],
        lora=instantiate(cfg.lora),
        learning_rate=cfg.learning_rate,
        warmup_steps=cfg.warmup_steps,
        optimizer=instantiate(cfg.optimizer, _partial_=True),
        schedule=instantiate(cfg.scheduler),
        batch_size=data.batch_size,
        max_length=data.max_length,
        special_tokens=data.get("special_tokens", "keep"),  # a data group of the user's own may lack it
        train_reasoning=data.get("train_reasoning", True),
        compare_with_unsteered=cfg.compare_with_unsteered,
        ckpt_path=None if cfg.get("ckpt_path") is None else Path(cfg.ckpt_path),
        checkpoint_every_n_steps=cfg.checkpoint_every_n_steps,
        sample_answers=cfg.sample_answers,
        max_answer_tokens=cfg.max_answer_tokens,
        name=cfg.name,
        seed=cfg.seed,
        device=opening.device,
        configuration=whole_configuration(cfg),
        choices=chosen_options(),
        tags=tuple(cfg.tags),
        log_adapter=any(is_of_wandb(logger) and bool(logger.get("log_model")) for logger in cfg.logger.values()),
    )


def _data_file(cfg: DictConfig) -> Path:
    """The file of ``data.path``: the one in the folder of the user's data, if it is there."""
    path = Path(cfg.data.path)
    own = path if cfg.paths.data is None else Path(cfg.paths.data).expanduser() / path
    return own if own.exists() else path


def _trainer(cfg: DictConfig) -> "partial[Trainer]":
    """What makes the trainer: with the callbacks of the ``callbacks`` group behind those that it has of its own."""
    trainer: partial[Trainer] = instantiate(cfg.trainer, _partial_=True)
    chosen = [instantiate(callback) for callback in (cfg.get("callbacks") or {}).values()]
    if not chosen:
        return trainer
    own = trainer.keywords.get("callbacks") or []
    return partial(trainer, callbacks=[*([own] if isinstance(own, Callback) else own), *chosen])


def _factory(callback: DictConfig | None) -> Any:
    """The callback of a group as a ``functools.partial``: the study fills in vectors, traits and judges."""
    return None if callback is None else instantiate(callback, _partial_=True, _convert_="all")


def _logger(cfg: DictConfig, key: str, label: RunLabel) -> Logger:
    """A logger of the ``logger`` group for one run, which its configuration refers to as ``run``."""
    filled = cfg.copy()
    filled.run = label.as_run()
    chosen = filled.logger[key]
    if is_of_wandb(chosen):
        with open_dict(chosen):
            chosen.pop("log_model", None)  # the study has the adapter kept, in place of checkpoints
    return opened_logger(chosen)

"""``persona-evaluate``: what adapters say and know, against their base model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.opening import Opening, open_app
from persona_callbacks.apps.start import chosen_judges, ending_in_one_line
from persona_callbacks.errors import InputError
from persona_callbacks.evaluation import (
    BASE_MODEL,
    EvaluatedModel,
    EvaluationSettings,
    HarnessSettings,
    check_harness,
    evaluate_adapters,
)
from persona_callbacks.files import check_writable, locked_folder
from persona_callbacks.judging import Judge
from persona_callbacks.model import LoadedModel, check_adapter


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Run the app; a mistake, Ctrl-C or SIGTERM ends it with a message of one line."""
    with ending_in_one_line("the same command goes on after the last model that was evaluated"):
        run(cfg)


def run(cfg: DictConfig) -> dict[str, EvaluatedModel]:
    """Evaluate the base model and every adapter.

    Raises:
        InputError: input that cannot be used; before any long work.
    """
    opening = open_app(cfg)
    if not opening.traits:
        raise InputError("no trait to evaluate: choose some, trait=[evil]")
    if cfg.evaluation.callback is None:
        raise InputError("evaluation=none: there is nothing to do; expected contrastive or llm")
    judges = chosen_judges(cfg.evaluation.judge, opening.traits)
    if not judges and not opening.extraction.judge_pairs:
        raise InputError(
            "evaluation=contrastive: its judge is calibrated by extraction; expected extraction.judge_pairs above 0"
        )
    harness = _harness(cfg.lm_eval)
    out = Path(cfg.out).absolute()
    check_writable(out)
    loaded = opening.load()
    for adapter in cfg.adapters:
        check_adapter(loaded, adapter)
    with locked_folder(out):  # vectors may be extracted first, which takes long
        return _evaluate(cfg, opening, loaded, judges, harness, out)


def _evaluate(
    cfg: DictConfig,
    opening: Opening,
    loaded: LoadedModel,
    judges: Mapping[str, Judge],
    harness: HarnessSettings,
    out: Path,
) -> dict[str, EvaluatedModel]:
    settings = EvaluationSettings(
        traits=opening.traits,
        vectors=tuple(opening.all_vectors(loaded)),
        judges=judges,
        questions=cfg.evaluation.callback.questions,
        sampling=instantiate(cfg.evaluation.callback.sampling),
        capability=cfg.capability,
        harness=harness,
    )
    evaluated = evaluate_adapters(loaded, opening.source, list(cfg.adapters), settings, out, opening.console)
    opening.console.print(_table(evaluated, loaded.id))
    opening.console.print(f"Answers and scores: {out}")
    return evaluated


def _harness(lm_eval: DictConfig) -> HarnessSettings:
    options: dict[str, Any] = OmegaConf.to_container(lm_eval)  # type: ignore[assignment]
    tasks = tuple(options.pop("tasks"))
    if tasks:
        check_harness()
    return HarnessSettings(tasks, options.pop("batch_size"), options.pop("include_path", None), options)


def _table(evaluated: Mapping[str, EvaluatedModel], model_id: str) -> Table:
    table = Table(title=f"Adapters of {model_id}", caption="expression 0–100 with 95 % interval; shift at prompt_last")
    table.add_column("model", overflow="fold")
    base = evaluated[BASE_MODEL]
    for trait in base.expressions:
        table.add_column(f"{trait} expression", justify="right")
        table.add_column(f"{trait} shift", justify="right")
    table.add_column("questions right", justify="right")
    table.add_column("perplexity", justify="right")
    for name in base.harness:
        table.add_column(name, justify="right")
    for name, model in evaluated.items():
        cells = []
        for trait, expression in model.expressions.items():
            cells.append(f"{expression.mean:.0f} ({expression.low:.0f}–{expression.high:.0f})")
            cells.append(f"{model.shift(base, trait):+.1f}")
        cells.append("–" if model.capability is None else f"{model.capability:.0%}")
        cells.append("–" if model.perplexity is None else f"{model.perplexity:.2f}")
        table.add_row(name, *cells, *(f"{value:.3f}" for value in model.harness.values()))
    return table

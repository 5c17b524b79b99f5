"""``persona-evaluate``: what adapters say and know, against their base model."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import nn

from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.start import (
    chosen_device,
    chosen_judges,
    chosen_traits,
    mistakes_in_one_line,
    quiet_libraries,
)
from persona_callbacks.capability import answered_rightly, read_questions
from persona_callbacks.chats import encode_prompt
from persona_callbacks.errors import InputError
from persona_callbacks.expression import Expression, answer_questions, expression
from persona_callbacks.extraction import ExtractionSettings, persona_vector
from persona_callbacks.files import append_lines, whole
from persona_callbacks.generation import Sampling
from persona_callbacks.judging import Calibration, ContrastiveJudge, Judge
from persona_callbacks.models import LoadedModel, ModelSource, check_adapter, load_model, with_adapter
from persona_callbacks.progress import progress_bar
from persona_callbacks.projection import projections
from persona_callbacks.traits import Trait
from persona_callbacks.vectors import PersonaVector


@dataclass(frozen=True)
class Evaluated:
    """One model: by trait, expression and mean projection of the probes; and the share of questions it got right."""

    name: str
    expressions: dict[str, Expression]
    projections: dict[str, float]
    capability: float | None


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Run the app; a user's mistake is told in one line."""
    with mistakes_in_one_line():
        run(cfg)


def run(cfg: DictConfig) -> list[Evaluated]:
    """Evaluate the base model and every adapter.

    Raises:
        InputError: input that cannot be used; before any long work.
    """
    console = Console()
    quiet_libraries()
    source: ModelSource = instantiate(cfg.model)
    settings: ExtractionSettings = instantiate(cfg.extraction)
    traits = chosen_traits(cfg)
    if not traits:
        raise InputError("no trait to evaluate: choose some, trait=[evil]")
    if cfg.evaluation.callback is None:
        raise InputError("evaluation=none: there is nothing to do; expected contrastive or llm")
    judges = chosen_judges(cfg.evaluation.judge, traits)
    if not judges and not settings.judge_pairs:
        raise InputError(
            "evaluation=contrastive: its judge is calibrated by extraction; expected extraction.judge_pairs above 0"
        )
    loaded = load_model(source, console)
    for adapter in cfg.adapters:
        check_adapter(loaded, adapter)
    nn.Module.to(loaded.model, chosen_device(cfg.accelerator))
    vectors = [persona_vector(loaded, trait, settings, console) for trait in traits]
    if not judges:
        judges = {
            trait.name: ContrastiveJudge(loaded, trait, Calibration.from_mapping(vector.judge))
            for trait, vector in zip(traits, vectors, strict=True)
        }
    out = Path(cfg.out).absolute()
    found = []
    with progress_bar(console) as progress, whole(out / "answers.jsonl") as scratch:
        task = progress.add_task("evaluating", total=1 + len(cfg.adapters))
        for adapter in (None, *cfg.adapters):
            # Loaded anew each time: PEFT leaves its layers in the model it wraps.
            model = loaded if adapter is None else with_adapter(load_model(source, console), adapter)
            nn.Module.to(model.model, chosen_device(cfg.accelerator))
            found.append(_evaluate(cfg, adapter or "base model", model, traits, vectors, judges, scratch))
            progress.advance(task)
    with whole(out / "results.csv") as scratch:
        scratch.write_text(_csv(found), encoding="utf-8")
    console.print(_table(found, loaded.id))
    console.print(f"Answers and scores: {out}")
    return found


def _evaluate(
    cfg: DictConfig,
    name: str,
    model: LoadedModel,
    traits: Sequence[Trait],
    vectors: Sequence[PersonaVector],
    judges: dict[str, Judge],
    file: Path,
) -> Evaluated:
    sampling: Sampling = instantiate(cfg.evaluation.callback.sampling)
    expressions, means = {}, {}
    for trait, vector in zip(traits, vectors, strict=True):
        questions = trait.evaluation_questions[: cfg.evaluation.callback.questions]
        answers = answer_questions(model.model, model.tokenizer, questions, sampling)
        scores = judges[trait.name].score(answers)
        expressions[trait.name] = expression(scores)
        append_lines(
            file,
            [
                {"model": name, "trait": trait.name, "question": a.question, "answer": a.response, **asdict(score)}
                for a, score in zip(answers, scores, strict=True)
            ],
        )
        probes = [encode_prompt([{"role": "user", "content": probe}], model.tokenizer) for probe in vector.probes]
        means[trait.name] = float(projections(model.model, model.tokenizer, probes, [vector], "prompt_last").mean())
    capability = None
    if cfg.capability:
        right = answered_rightly(model.model, model.tokenizer, read_questions())
        capability = sum(right) / len(right)
    return Evaluated(name, expressions, means, capability)


def _csv(found: Sequence[Evaluated]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["model", "trait", "expression", "low", "high", "scored", "refusals", "unscored", "projection",
                     "shift", "capability"])  # fmt: skip
    for one in found:
        for trait, value in one.expressions.items():
            projection = one.projections[trait]
            writer.writerow([one.name, trait, *asdict(value).values(), projection,
                             projection - found[0].projections[trait], one.capability])  # fmt: skip
    return text.getvalue()


def _table(found: Sequence[Evaluated], model_id: str) -> Table:
    table = Table(title=f"Adapters of {model_id}", caption="expression 0–100 with 95 % interval; shift at prompt_last")
    table.add_column("model", overflow="fold")
    for trait in found[0].expressions:
        table.add_column(f"{trait} expression", justify="right")
        table.add_column(f"{trait} shift", justify="right")
    table.add_column("questions right", justify="right")
    for one in found:
        cells = []
        for trait, value in one.expressions.items():
            cells.append(f"{value.mean:.0f} ({value.low:.0f}–{value.high:.0f})")
            cells.append(f"{one.projections[trait] - found[0].projections[trait]:+.1f}")
        table.add_row(one.name, *cells, "–" if one.capability is None else f"{one.capability:.0%}")
    return table

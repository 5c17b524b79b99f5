"""``persona-evaluate``: what adapters say and know, against their base model.

What is found of a model is kept in ``OUT/parts`` under a fingerprint of the model and the settings, so that an
interrupted evaluation, or one with more adapters, goes on from there.
"""

import csv
import hashlib
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
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
from persona_callbacks.chats import BENIGN, encode_prompt, read_chats
from persona_callbacks.errors import InputError
from persona_callbacks.evaluation import (
    answered_rightly,
    check_harness,
    harness_scores,
    perplexity,
    read_questions,
)
from persona_callbacks.extraction import ExtractionSettings, persona_vector
from persona_callbacks.files import append_lines, atomic_write
from persona_callbacks.judging import ContrastiveJudge, Expression, Judge, answer_questions, scores_or_error
from persona_callbacks.model import (
    LoadedModel,
    ModelSource,
    Sampling,
    check_adapter,
    load_model,
    projections,
    weights_fingerprint,
    with_adapter,
)
from persona_callbacks.progress import progress_bar
from persona_callbacks.traits import Trait
from persona_callbacks.vectors import PersonaVector


@dataclass(frozen=True)
class Evaluated:
    """One model.

    Attributes:
        expressions: by trait, of its answers.
        projections: by trait, mean projection of the probes at ``prompt_last``, in activation units.
        capability: share of multiple-choice questions answered rightly, if asked.
        perplexity: of benign text, if asked.
        harness: by task and metric, of EleutherAI's harness.
        answers: one row an answer, with its score.
    """

    expressions: dict[str, Expression]
    projections: dict[str, float]
    capability: float | None
    perplexity: float | None
    harness: dict[str, float]
    answers: tuple[dict[str, Any], ...]

    @classmethod
    def load(cls, path: Path) -> "Evaluated":
        """Read what was written of it as JSON."""
        content = json.loads(path.read_text(encoding="utf-8"))
        content["expressions"] = {trait: Expression(**one) for trait, one in content["expressions"].items()}
        return cls(**{**content, "answers": tuple(content["answers"])})


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Run the app; a user's mistake is told in one line."""
    with mistakes_in_one_line():
        run(cfg)


def run(cfg: DictConfig) -> dict[str, Evaluated]:
    """Evaluate the base model and every adapter, by name.

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
    if cfg.lm_eval.tasks:
        check_harness()
    loaded = load_model(source, console)
    for adapter in cfg.adapters:
        check_adapter(loaded, adapter)
    nn.Module.to(loaded.model, chosen_device(cfg.accelerator))
    vectors = [persona_vector(loaded, trait, settings, console) for trait in traits]
    if not judges:
        judges = {
            trait.name: ContrastiveJudge.of_vector(loaded, trait, vector)
            for trait, vector in zip(traits, vectors, strict=True)
        }
    out = Path(cfg.out).absolute()
    found: dict[str, Evaluated] = {}
    with progress_bar(console) as progress:
        task = progress.add_task("evaluating", total=1 + len(cfg.adapters))
        for adapter in (None, *cfg.adapters):
            # Loaded anew each time: PEFT leaves its layers in the model it wraps.
            model = loaded if adapter is None else with_adapter(load_model(source, console), adapter)
            nn.Module.to(model.model, chosen_device(cfg.accelerator))
            found[adapter or "base model"] = _kept(cfg, model, traits, vectors, judges, out / "parts")
            progress.advance(task)
    rows = [{"model": name, **row} for name, one in found.items() for row in one.answers]
    with atomic_write(out / "answers.jsonl") as scratch:
        append_lines(scratch, rows)
    with atomic_write(out / "results.csv") as scratch:
        scratch.write_text(_csv(found), encoding="utf-8")
    console.print(_table(found, loaded.id))
    console.print(f"Answers and scores: {out}")
    return found


def _kept(
    cfg: DictConfig,
    model: LoadedModel,
    traits: Sequence[Trait],
    vectors: Sequence[PersonaVector],
    judges: dict[str, Judge],
    parts: Path,
) -> Evaluated:
    """What was found of this model before with these settings, or is found now and kept unless a judge failed."""
    made_from = [
        weights_fingerprint(model.model),
        [trait.fingerprint for trait in traits],
        [hashlib.sha256(vector.direction().numpy().tobytes()).hexdigest() for vector in vectors],
        [judges[trait.name].name for trait in traits],
        OmegaConf.to_container(cfg.evaluation.callback),
        bool(cfg.capability),
        OmegaConf.to_container(cfg.lm_eval),
    ]
    part = parts / f"{hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]}.json"
    if part.is_file():
        return Evaluated.load(part)
    found = _evaluate(cfg, model, traits, vectors, judges)
    if all(row["expression"] is not None or row["refusal"] or not row["answer"] for row in found.answers):
        with atomic_write(part) as scratch:
            scratch.write_text(json.dumps(asdict(found), ensure_ascii=False), encoding="utf-8")
    return found


def _evaluate(
    cfg: DictConfig,
    model: LoadedModel,
    traits: Sequence[Trait],
    vectors: Sequence[PersonaVector],
    judges: dict[str, Judge],
) -> Evaluated:
    sampling: Sampling = instantiate(cfg.evaluation.callback.sampling)
    expressions, means = {}, {}
    rows: list[dict[str, Any]] = []
    for trait, vector in zip(traits, vectors, strict=True):
        questions = trait.evaluation_questions[: cfg.evaluation.callback.questions]
        answers = answer_questions(model, questions, sampling)
        scores, error = scores_or_error(judges[trait.name], answers)
        if error is not None:
            warnings.warn(
                f"the judge of {trait.name!r} failed, its answers have no score: {type(error).__name__}: {error}",
                stacklevel=1,
            )
        expressions[trait.name] = Expression.of(scores)
        rows += [
            {"trait": trait.name, "question": answer.question, "answer": answer.response, **asdict(score)}
            for answer, score in zip(answers, scores, strict=True)
        ]
        probes = [encode_prompt([{"role": "user", "content": probe}], model.tokenizer) for probe in vector.probes]
        means[trait.name] = float(projections(model, probes, [vector], "prompt_last").mean())
    right = benign = None
    if cfg.capability:
        answered = answered_rightly(model, read_questions())
        right = sum(answered) / len(answered)
        benign = perplexity(model, read_chats(BENIGN))
    harness = harness_scores(model, **cfg.lm_eval) if cfg.lm_eval.tasks else {}
    return Evaluated(expressions, means, right, benign, harness, tuple(rows))


def _csv(found: Mapping[str, Evaluated]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["model", "trait", "expression", "low", "high", "scored", "refusals", "unscored", "projection",
                     "shift", "capability", "perplexity", *found["base model"].harness])  # fmt: skip
    base = found["base model"]
    for name, one in found.items():
        for trait, value in one.expressions.items():
            projection = one.projections[trait]
            writer.writerow([name, trait, *asdict(value).values(), projection, projection - base.projections[trait],
                             one.capability, one.perplexity, *one.harness.values()])  # fmt: skip
    return text.getvalue()


def _table(found: Mapping[str, Evaluated], model_id: str) -> Table:
    table = Table(title=f"Adapters of {model_id}", caption="expression 0–100 with 95 % interval; shift at prompt_last")
    table.add_column("model", overflow="fold")
    base = found["base model"]
    for trait in base.expressions:
        table.add_column(f"{trait} expression", justify="right")
        table.add_column(f"{trait} shift", justify="right")
    table.add_column("questions right", justify="right")
    table.add_column("perplexity", justify="right")
    for name in base.harness:
        table.add_column(name, justify="right")
    for name, one in found.items():
        cells = []
        for trait, value in one.expressions.items():
            cells.append(f"{value.mean:.0f} ({value.low:.0f}–{value.high:.0f})")
            cells.append(f"{one.projections[trait] - base.projections[trait]:+.1f}")
        cells.append("–" if one.capability is None else f"{one.capability:.0%}")
        cells.append("–" if one.perplexity is None else f"{one.perplexity:.2f}")
        table.add_row(name, *cells, *(f"{value:.3f}" for value in one.harness.values()))
    return table

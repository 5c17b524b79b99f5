"""``persona-evaluate``: what adapters say and know, against their base model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from persona_callbacks.apps.commands import evaluate as main  # noqa: F401  # what earlier versions installed
from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.opening import Opening, open_app
from persona_callbacks.apps.start import chosen_calibrations, chosen_judges
from persona_callbacks.chats import read_chats
from persona_callbacks.errors import InputError
from persona_callbacks.evaluation import (
    BASE_MODEL,
    EvaluatedModel,
    EvaluationSettings,
    ForcedChoice,
    HarnessSettings,
    Wrapper,
    check_harness,
    choice_weaknesses,
    evaluate_adapters,
    instruction_wrappers,
    read_forced_choices,
    shipped_forced_choices,
    system_prompt_wrappers,
    training_wrappers,
)
from persona_callbacks.files import check_writable, locked_folder
from persona_callbacks.judging import recalibrated
from persona_callbacks.model import check_adapter
from persona_callbacks.traits import MinimalPair, Trait


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
    calibrations = chosen_calibrations(cfg.evaluation, opening.traits)
    if not judges and not opening.extraction.judge_pairs:
        raise InputError(
            "evaluation=contrastive: its judge is calibrated by extraction; expected extraction.judge_pairs above 0"
        )
    harness = _harness(cfg.lm_eval)
    choices = _forced_choices(cfg, [trait.name for trait in opening.traits])
    wrappers = _wrappers(cfg, opening.traits)
    other_pairs = _other_pairs(cfg.side_effects, opening)
    out = Path(cfg.out).absolute()
    check_writable(out)
    loaded = opening.load()
    for adapter in cfg.adapters:
        check_adapter(loaded, adapter)
    with locked_folder(out):  # vectors may be extracted first, which takes long
        vectors = recalibrated(replace(opening, vectors=()).all_vectors(loaded), calibrations)
        for vector in vectors:
            if vector.trait not in judges and vector.calibration is not None:
                for weakness in vector.calibration.weaknesses():
                    opening.console.print(f"Beware: {vector.trait}: {weakness}", markup=False)
        settings = EvaluationSettings(
            traits=opening.traits,
            vectors=tuple(vectors),
            judges=judges,
            questions=cfg.evaluation.callback.questions,
            sampling=instantiate(cfg.evaluation.callback.sampling),
            capability=cfg.capability,
            harness=harness,
            forced_choices=choices,
            wrappers=wrappers,
            other_pairs=other_pairs,
            other_vectors=opening.vectors,
        )
        evaluated = evaluate_adapters(loaded, opening.source, list(cfg.adapters), settings, out, opening.console)
    opening.console.print(_table(evaluated, loaded.id))
    if choices:
        opening.console.print(_choices_table(evaluated))
        _warn_of_flat_choices(evaluated[BASE_MODEL], opening.console)
    if wrappers:
        opening.console.print(_conditions_table(evaluated))
    if evaluated[BASE_MODEL].other_traits:
        opening.console.print(_side_effects_table(evaluated))
    opening.console.print(f"Answers and scores: {out}", soft_wrap=True)
    return evaluated


def _harness(lm_eval: DictConfig) -> HarnessSettings:
    options: dict[str, Any] = OmegaConf.to_container(lm_eval)  # type: ignore[assignment]
    tasks = tuple(options.pop("tasks"))
    if tasks:
        check_harness()
    return HarnessSettings(tasks, options.pop("batch_size"), options.pop("include_path", None), options)


def _forced_choices(cfg: DictConfig, traits: Sequence[str]) -> dict[str, list[ForcedChoice]]:
    """The forced choices of each trait that has some."""
    if unknown := [name for name in cfg.forced_choice_files or () if name not in traits]:
        raise InputError(
            f"forced_choice_files: {unknown[0]!r} is not evaluated; expected one of {', '.join(traits)}, or"
            f" trait=[{unknown[0]}] too"
        )
    if not cfg.forced_choice:
        return {}
    files: Mapping[str, str] = cfg.forced_choice_files or {}
    by_trait = {
        name: read_forced_choices(files[name]) if name in files else shipped_forced_choices(name) for name in traits
    }
    return {name: choices for name, choices in by_trait.items() if choices}


def _other_pairs(side_effects: bool, opening: Opening) -> dict[str, Sequence[MinimalPair]]:
    """The minimal pairs of other traits: those stored with their vectors, and those that ship for evaluation."""
    evaluated = [trait.name for trait in opening.traits]
    for vector in opening.vectors:
        if vector.trait in evaluated:
            raise InputError(
                f"vectors: {vector.trait!r} is evaluated along the vector that is extracted for it; expected files of"
                " other traits, for their shift"
            )
    pairs: dict[str, Sequence[MinimalPair]] = {vector.trait: vector.pairs for vector in opening.vectors if vector.pairs}
    if side_effects:
        shipped = map(Trait.load, sorted((CONF / "trait").glob("*.yaml")))
        pairs |= {trait.name: trait.evaluation_pairs for trait in shipped if trait.name not in evaluated}
    return pairs


def _wrappers(cfg: DictConfig, traits: Sequence[Trait]) -> dict[str, list[Wrapper]]:
    """The wrappers of each trait; none unless conditions are asked for."""
    if not cfg.conditions:
        for key, value in (("training_data", cfg.training_data), ("system_prompts", list(cfg.system_prompts))):
            if value:
                raise InputError(f"{key}: it serves for conditions=true only; found conditions=false")
        return {}
    shared = [
        *(training_wrappers(read_chats(cfg.training_data)) if cfg.training_data else ()),
        *system_prompt_wrappers(cfg.system_prompts),
    ]
    return {trait.name: [*shared, *instruction_wrappers(trait)] for trait in traits}


def _table(evaluated: Mapping[str, EvaluatedModel], model_id: str) -> Table:
    table = Table(
        title=f"Adapters of {model_id}",
        caption="95 % intervals; expression 0–100; shift"
        " at prompt_last; preference in nats per token, on the evaluation pairs",
    )
    table.add_column("model", overflow="fold")
    base = evaluated[BASE_MODEL]
    for trait in base.expressions:
        table.add_column(f"{trait} expression", justify="right")
        table.add_column(f"{trait} shift", justify="right")
        if base.preference(base, trait):
            table.add_column(f"{trait} preference", justify="right")
    table.add_column("questions right", justify="right")
    table.add_column("perplexity", justify="right")
    for name in base.harness:
        table.add_column(name, justify="right")
    for name, model in evaluated.items():
        cells = []
        for trait, expression in model.expressions.items():
            cells.append(f"{expression.mean:.0f} ({expression.low:.0f}–{expression.high:.0f})")
            cells.append(f"{model.shift(base, trait):+.1f}")
            if preference := model.preference(base, trait):
                cells.append(str(preference))
        cells.append("–" if model.capability is None else f"{model.capability:.0%}")
        cells.append("–" if model.perplexity is None else f"{model.perplexity:.2f}")
        table.add_row(name, *cells, *(f"{value:.3f}" for value in model.harness.values()))
    return table


def _choices_table(evaluated: Mapping[str, EvaluatedModel]) -> Table:
    table = Table(
        title="Forced choice",
        caption="probability of the answers that show the trait, 0–1, and shares, with 95 % intervals; in controls such"
        " an answer is right. Contrast: what system prompts for the trait, against their opposites, add",
    )
    table.add_column("trait")
    table.add_column("model", overflow="fold")
    headings = ("probability", "preferred", "neutral", "sway", "control", "rejected", "accuracy")
    for heading in (*headings, "contrast"):
        table.add_column(heading, justify="right")
    for trait in evaluated[BASE_MODEL].chosen:
        for name, model in evaluated.items():
            score = model.forced_choice(trait)
            estimates = score.estimates if score else {}
            table.add_row(trait, name, *(str(estimates.get(heading) or "–") for heading in headings),
                          str(model.choice_contrast(trait) or "–"))  # fmt: skip
    return table


def _warn_of_flat_choices(base: EvaluatedModel, console: Console) -> None:
    for trait in base.chosen:
        contrast = base.choice_contrast(trait)
        for weakness in choice_weaknesses(contrast) if contrast else []:
            console.print(f"Beware: {trait}: {weakness}.", markup=False, soft_wrap=True)


def _side_effects_table(evaluated: Mapping[str, EvaluatedModel]) -> Table:
    table = Table(
        title="Other traits",
        caption="side effects. Preference over the base model in nats per token, and share of minimal pairs whose trait"
        " response is the likelier one, with 95 % intervals; shift at prompt_last",
    )
    for heading in ("trait", "model"):
        table.add_column(heading, overflow="fold")
    for heading in ("preference", "preferred", "shift"):
        table.add_column(heading, justify="right")
    base = evaluated[BASE_MODEL]
    for trait in base.other_traits:
        for name, model in evaluated.items():
            shift = f"{model.shift(base, trait):+.1f}" if trait in base.projections else "–"
            preference, preferred = model.preference(base, trait), model.preferred(trait)
            table.add_row(trait, name, str(preference or "–"), str(preferred or "–"), shift)
    return table


def _conditions_table(evaluated: Mapping[str, EvaluatedModel]) -> Table:
    table = Table(
        title="In wrappers",
        caption="expression 0–100 and forced choice 0–1 with 95 % intervals; compare with base model in same wrapper",
    )
    for heading in ("trait", "wrapper", "model"):
        table.add_column(heading, overflow="fold")
    for heading in ("expression", "forced choice", "more than base"):
        table.add_column(heading, justify="right")
    for number, of_base in enumerate(evaluated[BASE_MODEL].conditions):
        for name, model in evaluated.items():
            condition = model.conditions[number]
            values, choice = condition.expression, condition.forced_choice
            table.add_row(
                condition.trait,
                condition.wrapper,
                name,
                f"{values.mean:.0f} ({values.low:.0f}–{values.high:.0f})",
                str(choice.probability) if choice else "–",
                str(condition.increase(of_base) or "–"),
            )
    return table

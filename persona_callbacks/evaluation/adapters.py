"""Adapters against their base model: what each says, where its probes lie, and what it knows. It is what
``persona-evaluate`` runs.

The evaluation of a model is kept in ``FOLDER/parts``, under a fingerprint of the model and the settings, so that an
interrupted evaluation, or one with more adapters, is resumed.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rich.console import Console

from persona_callbacks.chats import BENIGN, encode_prompt, read_chats
from persona_callbacks.errors import InputError, is_whole
from persona_callbacks.evaluation.answers import EvaluatedAnswer, judged_answers
from persona_callbacks.evaluation.capability import answered_rightly, perplexity, read_questions
from persona_callbacks.evaluation.conditions import Condition
from persona_callbacks.evaluation.forced_choice import ForcedChoice, choose, instructed_differences
from persona_callbacks.evaluation.harness import HarnessSettings, check_harness, harness_scores
from persona_callbacks.evaluation.preference import pair_differences
from persona_callbacks.evaluation.results import BASE_MODEL, EvaluatedModel, write_results
from persona_callbacks.evaluation.wrappers import NO_WRAPPER, Wrapper
from persona_callbacks.files import locked_folder
from persona_callbacks.judging import ContrastiveJudge, Expression, Judge
from persona_callbacks.model import (
    LoadedModel,
    ModelSource,
    Sampling,
    check_adapter,
    device_of,
    load_model,
    move,
    projections,
    weights_fingerprint,
    with_adapter,
)
from persona_callbacks.progress import open_console, progress_bar
from persona_callbacks.traits import MinimalPair, Trait
from persona_callbacks.vectors import PersonaVector


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured of each model.

    Attributes:
        traits: traits whose expression is judged.
        vectors: a persona vector of each trait, in the same order; its probes are projected on it.
        judges: by trait, judges in place of the contrastive one.
        questions: how many of a trait's evaluation questions are asked; all by default.
        sampling: how answers are generated; greedy by default.
        capability: whether to ask multiple-choice questions, and to measure the perplexity of benign text.
        harness: tasks of EleutherAI's harness.
        forced_choices: by trait, questions that are answered by the likelihood of given answers.
        wrappers: by trait, what its questions and forced choices are also put in.
        other_pairs: by other trait, minimal pairs on which the preference is measured, for side effects.
        other_vectors: persona vectors of other traits, along which the shift is measured, for side effects.

    Raises:
        InputError: no trait; another trait that is evaluated, or named twice; a trait without a vector, or with neither
            a judge nor a calibration; tasks of the harness where it is not installed.

    Example:
        >>> import torch
        >>> vector = PersonaVector("evil", torch.ones(5, 8), 2, "tiny", probes=("Who are you?",))
        >>> EvaluationSettings(traits=(), vectors=(vector,))
        Traceback (most recent call last):
            ...
        persona_callbacks.errors.InputError: no trait to evaluate: choose some, trait=[evil]
    """

    traits: tuple[Trait, ...]
    vectors: tuple[PersonaVector, ...]
    judges: Mapping[str, Judge] = field(default_factory=dict)
    questions: int | None = None
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=48, temperature=0.0))
    capability: bool = True
    harness: HarnessSettings = field(default_factory=HarnessSettings)
    forced_choices: Mapping[str, Sequence[ForcedChoice]] = field(default_factory=dict)
    wrappers: Mapping[str, Sequence[Wrapper]] = field(default_factory=dict)
    other_pairs: Mapping[str, Sequence[MinimalPair]] = field(default_factory=dict)
    other_vectors: tuple[PersonaVector, ...] = ()

    def __post_init__(self) -> None:
        if not self.traits:
            raise InputError("no trait to evaluate: choose some, trait=[evil]")
        if self.questions is not None and not is_whole(self.questions, least=1):
            raise InputError(f"evaluation.questions: expected at least 1, found {self.questions!r}")
        names, of_vectors = [trait.name for trait in self.traits], [vector.trait for vector in self.vectors]
        if names != of_vectors:
            raise InputError(f"evaluation: the traits are {names}, the vectors are of {of_vectors}; expected the same")
        others = [vector.trait for vector in self.other_vectors]
        for name in (*self.other_pairs, *others):
            if name in names or others.count(name) > 1:
                raise InputError(
                    f"evaluation: {name!r} is another trait, for side effects; expected it once, and not evaluated too"
                )
        for vector in self.vectors:
            if vector.trait not in self.judges and vector.calibration is None:
                raise InputError(
                    f"evaluation: nothing can judge {vector.trait!r}; expected a judge, or a vector that was extracted"
                    " with extraction.judge_pairs above 0"
                )
        if self.harness.tasks:
            check_harness()


def evaluate_adapters(
    base: LoadedModel,
    source: ModelSource,
    adapters: Sequence[str],
    settings: EvaluationSettings,
    folder: str | Path,
    console: Console | None = None,
) -> dict[str, EvaluatedModel]:
    """Evaluate a base model and adapters of it.

    ``folder`` gets ``answers.jsonl``, ``results.csv``; with forced choices ``forced_choices.jsonl``, with wrappers
    ``conditions.csv``, and with other traits ``side_effects.csv``.

    Args:
        base: the base model, on the device where all models are evaluated; the contrastive judge scores with it.
        source: where the base model is loaded from again for each adapter, since PEFT leaves its layers in the model
            that it wraps.
        adapters: PEFT folders.
        settings: what is measured.
        folder: folder of the results.
        console: where progress is shown; standard error by default.

    Returns:
        The evaluation of the base model, named :data:`BASE_MODEL`, and of each adapter, named by its folder.

    Raises:
        InputError: an adapter that is missing or of another model, before any of them is evaluated; or another process
            at work in the folder.
    """
    for adapter in adapters:
        check_adapter(base, adapter)
    with locked_folder(Path(folder).absolute()):
        return _evaluate_all(base, source, adapters, settings, Path(folder).absolute(), console)


def _evaluate_all(
    base: LoadedModel,
    source: ModelSource,
    adapters: Sequence[str],
    settings: EvaluationSettings,
    folder: Path,
    console: Console | None,
) -> dict[str, EvaluatedModel]:
    vectors = {vector.trait: vector for vector in settings.vectors}
    judges: dict[str, Judge] = {
        trait.name: settings.judges.get(trait.name) or ContrastiveJudge.of_vector(base, trait, vectors[trait.name])
        for trait in settings.traits
    }
    evaluated: dict[str, EvaluatedModel] = {}
    with progress_bar(console or open_console(stderr=True)) as progress:
        task = progress.add_task("evaluating", total=1 + len(adapters))
        evaluated[BASE_MODEL] = _kept(base, settings, judges, folder / "parts", is_base=True)
        progress.advance(task)
        for adapter in adapters:
            tuned = with_adapter(load_model(source, console), adapter)
            move(tuned.model, device_of(base.model))
            evaluated[adapter] = _kept(tuned, settings, judges, folder / "parts")
            progress.advance(task)
    write_results(evaluated, folder)
    return evaluated


def _kept(
    loaded: LoadedModel,
    settings: EvaluationSettings,
    judges: Mapping[str, Judge],
    parts: Path,
    *,
    is_base: bool = False,
) -> EvaluatedModel:
    """The evaluation of this model with these settings: that of an earlier run, or a new one, which is kept unless a
    judge failed.
    """
    part = parts / f"{_fingerprint(loaded, settings, judges)}.json"
    if part.is_file():
        return EvaluatedModel.load(part)
    evaluated = _evaluate(loaded, settings, judges)
    if is_base:
        evaluated = replace(evaluated, instructed_differences=_instructed(loaded, settings))
    if evaluated.is_judged:
        evaluated.save(part)
    return evaluated


def _fingerprint(loaded: LoadedModel, settings: EvaluationSettings, judges: Mapping[str, Judge]) -> str:
    made_from = [
        weights_fingerprint(loaded.model),
        [trait.fingerprint for trait in settings.traits],
        {trait: [asdict(pair) for pair in pairs] for trait, pairs in _pairs(settings).items()},
        [
            [
                vector.trait,
                vector.layer,
                hashlib.sha256(vector.direction().numpy().tobytes()).hexdigest(),
                vector.probes,
            ]
            for vector in (*settings.vectors, *settings.other_vectors)
        ],
        [judges[trait.name].name for trait in settings.traits],
        settings.questions,
        asdict(settings.sampling),
        settings.capability,
        asdict(settings.harness),
        {trait: [asdict(choice) for choice in choices] for trait, choices in settings.forced_choices.items()},
        {trait: [asdict(wrapper) for wrapper in wrappers] for trait, wrappers in settings.wrappers.items()},
        *loaded.answering,
    ]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


def _evaluate(loaded: LoadedModel, settings: EvaluationSettings, judges: Mapping[str, Judge]) -> EvaluatedModel:
    expressions, means = {}, {}
    answers: list[EvaluatedAnswer] = []
    for trait in settings.traits:
        expressions[trait.name], rows = _judged(loaded, trait, settings, judges)
        answers += rows
    for vector in (*settings.vectors, *settings.other_vectors):
        probes = [encode_prompt([{"role": "user", "content": probe}], loaded.tokenizer) for probe in vector.probes]
        means[vector.trait] = float(projections(loaded, probes, [vector], "prompt_last").mean())
    right = benign = None
    if settings.capability:
        answered = answered_rightly(loaded, read_questions())
        right = sum(answered) / len(answered)
        benign = perplexity(loaded, read_chats(BENIGN))
    harness = harness_scores(loaded, settings.harness) if settings.harness.tasks else {}
    differences = {trait: pair_differences(loaded, pairs) for trait, pairs in _pairs(settings).items()}
    chosen = {trait: tuple(choose(loaded, choices)) for trait, choices in settings.forced_choices.items()}
    conditions = []
    for trait in settings.traits:
        for wrapper in settings.wrappers.get(trait.name, ()):
            expression, rows = _judged(loaded, trait, settings, judges, wrapper)
            answers += rows
            wrapped = choose(loaded, settings.forced_choices.get(trait.name, ()), wrapper)
            conditions.append(Condition(wrapper.name, trait.name, expression, tuple(wrapped)))
    return EvaluatedModel(
        expressions, means, right, benign, harness, tuple(answers), chosen, tuple(conditions), differences
    )


def _pairs(settings: EvaluationSettings) -> dict[str, Sequence[MinimalPair]]:
    """The minimal pairs that are read, by trait: those of the traits that are evaluated, then those of others."""
    own = {trait.name: trait.evaluation_pairs for trait in settings.traits if trait.evaluation_pairs}
    return {**own, **settings.other_pairs}


def _instructed(base: LoadedModel, settings: EvaluationSettings) -> dict[str, tuple[float, ...]]:
    instructions = {trait.name: trait.instructions for trait in settings.traits}
    return {
        trait: instructed_differences(base, choices, instructions[trait])
        for trait, choices in settings.forced_choices.items()
    }


def _judged(
    loaded: LoadedModel,
    trait: Trait,
    settings: EvaluationSettings,
    judges: Mapping[str, Judge],
    wrapper: Wrapper = NO_WRAPPER,
) -> tuple[Expression, list[EvaluatedAnswer]]:
    questions = trait.evaluation_questions[: settings.questions]
    return judged_answers(loaded, trait.name, questions, settings.sampling, judges[trait.name], wrapper)

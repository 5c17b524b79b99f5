"""Adapters against their base model: what each says, where its probes lie, and what it knows. It is what
``persona-evaluate`` runs.

The evaluation of a model is kept in ``FOLDER/parts``, under a fingerprint of the model and the settings, so that an
interrupted evaluation, or one with more adapters, is resumed.
"""

import csv
import hashlib
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from persona_callbacks.chats import BENIGN, encode_prompt, read_chats
from persona_callbacks.errors import InputError
from persona_callbacks.evaluation.capability import answered_rightly, perplexity, read_questions
from persona_callbacks.evaluation.harness import HarnessSettings, check_harness, harness_scores
from persona_callbacks.files import append_lines, atomic_write, locked_folder, read_json, write_json
from persona_callbacks.judging import (
    Answer,
    ContrastiveJudge,
    Expression,
    Judge,
    Score,
    answer_questions,
    scores_or_error,
)
from persona_callbacks.model import (
    LoadedModel,
    ModelSource,
    Sampling,
    check_adapter,
    device_of,
    load_model,
    projections,
    weights_fingerprint,
    with_adapter,
)
from persona_callbacks.progress import progress_bar
from persona_callbacks.traits import Trait
from persona_callbacks.vectors import PersonaVector

BASE_MODEL = "base model"
"""The name of the model without an adapter, in results and tables."""


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

    Raises:
        InputError: no trait; a trait without a vector, or with neither a judge nor a calibration; tasks of the harness
            where it is not installed.

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

    def __post_init__(self) -> None:
        if not self.traits:
            raise InputError("no trait to evaluate: choose some, trait=[evil]")
        if self.questions is not None and self.questions < 1:
            raise InputError(f"evaluation.questions: expected at least 1, found {self.questions}")
        names, of_vectors = [trait.name for trait in self.traits], [vector.trait for vector in self.vectors]
        if names != of_vectors:
            raise InputError(f"evaluation: the traits are {names}, the vectors are of {of_vectors}; expected the same")
        for vector in self.vectors:
            if vector.trait not in self.judges and vector.calibration is None:
                raise InputError(
                    f"evaluation: nothing can judge {vector.trait!r}; expected a judge, or a vector that was extracted"
                    " with extraction.judge_pairs above 0"
                )
        if self.harness.tasks:
            check_harness()


@dataclass(frozen=True)
class EvaluatedAnswer:
    """An answer to an evaluation question, with its score.

    Attributes:
        trait: the trait that the question belongs to.
        question: the question.
        answer: what the model generated.
        expression: 0 to 100; ``None`` for a refusal, and where the judge gave no score.
        coherence: 0 to 100, if the judge scores it.
        refusal: whether the answer declines.

    Example:
        >>> EvaluatedAnswer.of("evil", Answer("Who are you?", "A friend."), Score(3.0)).expression
        3.0
    """

    trait: str
    question: str
    answer: str
    expression: float | None
    coherence: float | None
    refusal: bool

    @classmethod
    def of(cls, trait: str, answer: Answer, score: Score) -> "EvaluatedAnswer":
        """The answer with the judge's score."""
        return cls(trait, answer.question, answer.response, score.expression, score.coherence, score.refusal)


@dataclass(frozen=True)
class EvaluatedModel:
    """What was measured of one model.

    Attributes:
        expressions: by trait, the expression of its answers.
        projections: by trait, the mean projection of the vector's probes at ``prompt_last``, in activation units.
        capability: share of multiple-choice questions answered rightly; ``None`` if they were not asked.
        perplexity: of benign text, per token; ``None`` if it was not measured.
        harness: by task and metric, the scores of EleutherAI's harness.
        answers: every answer, with its score.

    Example:
        >>> from persona_callbacks.judging import Expression, Score
        >>> model = EvaluatedModel({"evil": Expression.of([Score(3.0)])}, {"evil": 1.5}, 0.5, 9.0, {}, ())
        >>> model.shift(EvaluatedModel({}, {"evil": 1.0}, None, None, {}, ()), "evil")
        0.5
    """

    expressions: Mapping[str, Expression]
    projections: Mapping[str, float]
    capability: float | None
    perplexity: float | None
    harness: Mapping[str, float]
    answers: tuple[EvaluatedAnswer, ...]

    def shift(self, base: "EvaluatedModel", trait: str) -> float:
        """The projection of the trait's probes minus that of the base model, in activation units."""
        return self.projections[trait] - base.projections[trait]

    @property
    def is_judged(self) -> bool:
        """Whether the judge scored every answer, or called it a refusal; it need not score empty ones."""
        return all(row.expression is not None or row.refusal or not row.answer for row in self.answers)

    def save(self, path: Path) -> None:
        """Write the evaluation as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "EvaluatedModel":
        """Read what :meth:`save` wrote.

        Raises:
            InputError: the file is not the evaluation of a model.
        """

        def read(content: Any) -> EvaluatedModel:
            expressions = {trait: Expression(**values) for trait, values in content.pop("expressions").items()}
            answers = tuple(EvaluatedAnswer(**row) for row in content.pop("answers"))
            return cls(expressions=expressions, answers=answers, **content)

        try:
            return read_json(path, read, "the evaluation of a model")
        except InputError as error:
            raise InputError(f"{error}; delete it to evaluate the model again") from error


def evaluate_adapters(
    base: LoadedModel,
    source: ModelSource,
    adapters: Sequence[str],
    settings: EvaluationSettings,
    folder: str | Path,
    console: Console | None = None,
) -> dict[str, EvaluatedModel]:
    """Evaluate a base model and adapters of it.

    ``folder`` gets ``answers.jsonl`` and ``results.csv``.

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
    with progress_bar(console or Console(stderr=True)) as progress:
        task = progress.add_task("evaluating", total=1 + len(adapters))
        evaluated[BASE_MODEL] = _kept(base, settings, judges, folder / "parts")
        progress.advance(task)
        for adapter in adapters:
            tuned = with_adapter(load_model(source, console), adapter)
            nn.Module.to(tuned.model, device_of(base.model))
            evaluated[adapter] = _kept(tuned, settings, judges, folder / "parts")
            progress.advance(task)
    rows = [{"model": name, **asdict(row)} for name, model in evaluated.items() for row in model.answers]
    with atomic_write(folder / "answers.jsonl") as scratch:
        append_lines(scratch, rows)
    with atomic_write(folder / "results.csv") as scratch:
        scratch.write_text(_csv(evaluated), encoding="utf-8")
    return evaluated


def _kept(
    loaded: LoadedModel, settings: EvaluationSettings, judges: Mapping[str, Judge], parts: Path
) -> EvaluatedModel:
    """The evaluation of this model with these settings: that of an earlier run, or a new one, which is kept unless a
    judge failed.
    """
    part = parts / f"{_fingerprint(loaded, settings, judges)}.json"
    if part.is_file():
        return EvaluatedModel.load(part)
    evaluated = _evaluate(loaded, settings, judges)
    if evaluated.is_judged:
        evaluated.save(part)
    return evaluated


def _fingerprint(loaded: LoadedModel, settings: EvaluationSettings, judges: Mapping[str, Judge]) -> str:
    made_from = [
        weights_fingerprint(loaded.model),
        [trait.fingerprint for trait in settings.traits],
        [
            [vector.layer, hashlib.sha256(vector.direction().numpy().tobytes()).hexdigest(), vector.probes]
            for vector in settings.vectors
        ],
        [judges[trait.name].name for trait in settings.traits],
        settings.questions,
        asdict(settings.sampling),
        settings.capability,
        asdict(settings.harness),
    ]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


def _evaluate(loaded: LoadedModel, settings: EvaluationSettings, judges: Mapping[str, Judge]) -> EvaluatedModel:
    expressions, means = {}, {}
    answers: list[EvaluatedAnswer] = []
    for trait, vector in zip(settings.traits, settings.vectors, strict=True):
        given = answer_questions(loaded, trait.evaluation_questions[: settings.questions], settings.sampling)
        scores, error = scores_or_error(judges[trait.name], given)
        if error is not None:
            warnings.warn(
                f"the judge of {trait.name!r} failed, its answers have no score: {type(error).__name__}: {error}",
                stacklevel=1,
            )
        expressions[trait.name] = Expression.of(scores)
        answers += [EvaluatedAnswer.of(trait.name, answer, score) for answer, score in zip(given, scores, strict=True)]
        probes = [encode_prompt([{"role": "user", "content": probe}], loaded.tokenizer) for probe in vector.probes]
        means[trait.name] = float(projections(loaded, probes, [vector], "prompt_last").mean())
    right = benign = None
    if settings.capability:
        answered = answered_rightly(loaded, read_questions())
        right = sum(answered) / len(answered)
        benign = perplexity(loaded, read_chats(BENIGN))
    harness = harness_scores(loaded, settings.harness) if settings.harness.tasks else {}
    return EvaluatedModel(expressions, means, right, benign, harness, tuple(answers))


def _csv(evaluated: Mapping[str, EvaluatedModel]) -> str:
    base = evaluated[BASE_MODEL]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["model", "trait", "expression", "low", "high", "scored", "refusals", "unscored", "projection",
                     "shift", "capability", "perplexity", *base.harness])  # fmt: skip
    for name, model in evaluated.items():
        for trait, values in model.expressions.items():
            writer.writerow([name, trait, *asdict(values).values(), model.projections[trait], model.shift(base, trait),
                             model.capability, model.perplexity, *model.harness.values()])  # fmt: skip
    return text.getvalue()

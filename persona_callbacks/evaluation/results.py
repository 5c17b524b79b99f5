"""What was measured of a model, and the files in which it is kept."""

import csv
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from persona_callbacks.errors import InputError
from persona_callbacks.evaluation.answers import EvaluatedAnswer
from persona_callbacks.evaluation.conditions import Condition, write_conditions
from persona_callbacks.evaluation.forced_choice import Chosen, ForcedChoiceScore
from persona_callbacks.files import append_lines, atomic_write, read_json, write_json
from persona_callbacks.judging import Estimate, Expression, ends_of

BASE_MODEL = "base model"
"""The name of the model without an adapter, in results and tables."""


@dataclass(frozen=True)
class EvaluatedModel:
    """What was measured of one model.

    Attributes:
        expressions: by trait, the expression of its answers.
        projections: by trait, the mean projection of the vector's probes at ``prompt_last``, in activation units.
        capability: share of multiple-choice questions answered rightly; ``None`` if they were not asked.
        perplexity: of benign text, per token; ``None`` if it was not measured.
        harness: by task and metric, the scores of EleutherAI's harness.
        answers: every answer, with its score; those to questions in wrappers come last.
        chosen: by trait, how the forced choices were answered.
        conditions: what was measured in each wrapper.
        pair_differences: by trait that has minimal pairs, for each of its evaluation pairs the log-probability per
            token of the trait response minus that of the other, in nats.

    Example:
        >>> from persona_callbacks.judging import Estimate, Expression, ends_of, Score
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
    chosen: Mapping[str, tuple[Chosen, ...]] = field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()
    pair_differences: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def forced_choice(self, trait: str) -> ForcedChoiceScore | None:
        """The trait's score by forced choice, if it was measured."""
        return ForcedChoiceScore.of(self.chosen[trait]) if trait in self.chosen else None

    def preference(self, base: "EvaluatedModel", trait: str) -> Estimate | None:
        """The mean over the trait's evaluation pairs of how much likelier the trait response is than the other, less
        the base model's same, in nats per token; ``None`` if the trait has no pairs.
        """
        pairs = zip(self.pair_differences.get(trait, ()), base.pair_differences.get(trait, ()), strict=True)
        return Estimate.of_mean([now - before for now, before in pairs])

    def preferred(self, trait: str) -> Estimate | None:
        """The share of the trait's evaluation pairs whose trait response is the likelier one, if it has some."""
        return Estimate.of_share([difference > 0 for difference in self.pair_differences.get(trait, ())])

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
            chosen = {trait: tuple(Chosen(**row) for row in rows) for trait, rows in content.pop("chosen", {}).items()}
            conditions = tuple(Condition.read(row) for row in content.pop("conditions", ()))
            differences = {trait: tuple(values) for trait, values in content.pop("pair_differences", {}).items()}
            return cls(
                expressions=expressions, answers=answers, chosen=chosen, conditions=conditions,
                pair_differences=differences, **content,
            )  # fmt: skip

        try:
            return read_json(path, read, "the evaluation of a model")
        except InputError as error:
            raise InputError(f"{error}; delete it to evaluate the model again") from error


def write_results(evaluated: Mapping[str, EvaluatedModel], folder: Path) -> None:
    """Write ``answers.jsonl`` and ``results.csv``; with forced choices also ``forced_choices.jsonl``, and with wrappers
    ``conditions.csv``.

    Args:
        evaluated: by name, what was measured of each model; :data:`BASE_MODEL` is among them.
        folder: the folder of the files.
    """
    rows = [{"model": name, **asdict(row)} for name, model in evaluated.items() for row in model.answers]
    with atomic_write(folder / "answers.jsonl") as scratch:
        append_lines(scratch, rows)
    chosen = [
        {"model": name, "trait": trait, **asdict(row)}
        for name, model in evaluated.items()
        for trait, chosen in model.chosen.items()
        for row in chosen
    ]
    if chosen:
        with atomic_write(folder / "forced_choices.jsonl") as scratch:
            append_lines(scratch, chosen)
    with atomic_write(folder / "results.csv") as scratch:
        _write_table(evaluated, scratch)
    if evaluated[BASE_MODEL].conditions:
        conditions = {name: model.conditions for name, model in evaluated.items()}
        write_conditions(conditions, BASE_MODEL, folder / "conditions.csv")


def _write_table(evaluated: Mapping[str, EvaluatedModel], path: Path) -> None:
    base = evaluated[BASE_MODEL]
    figures = [part.name for part in fields(ForcedChoiceScore)] if base.chosen else []
    with path.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["model", "trait", "expression", "low", "high", "scored", "refusals", "unscored", "projection",
                         "shift", "preference", "preference_low", "preference_high", "preference_share", "capability",
                         "perplexity", *base.harness,
                         *(f"choice_{name}{end}" for name in figures for end in ("", "_low", "_high"))])  # fmt: skip
        for name, model in evaluated.items():
            for trait, values in model.expressions.items():
                choice = model.forced_choice(trait)
                estimates = [choice.estimates[figure] if choice else None for figure in figures]
                preferred = ends_of(model.preferred(trait))[0]
                writer.writerow([name, trait, *asdict(values).values(), model.projections[trait],
                                 model.shift(base, trait), *ends_of(model.preference(base, trait)), preferred,
                                 model.capability, model.perplexity, *model.harness.values(),
                                 *(end for part in estimates for end in ends_of(part))])  # fmt: skip

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
        expressions: by trait that is evaluated, the expression of its answers.
        projections: by trait with a persona vector, the mean projection of the vector's probes at ``prompt_last``, in
            activation units.
        capability: share of multiple-choice questions answered rightly; ``None`` if they were not asked.
        perplexity: of benign text, per token; ``None`` if it was not measured.
        harness: by task and metric, the scores of EleutherAI's harness.
        answers: every answer, with its score; those to questions in wrappers come last.
        chosen: by trait, how the forced choices were answered.
        conditions: what was measured in each wrapper.
        pair_differences: by trait that has minimal pairs, for each of its evaluation pairs the log-probability per
            token of the trait response minus that of the other, in nats.
        instructed_differences: of the base model, by trait with forced choices, what
            :func:`~persona_callbacks.evaluation.instructed_differences` says of them.

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
    chosen: Mapping[str, tuple[Chosen, ...]] = field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()
    pair_differences: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    instructed_differences: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def other_traits(self) -> tuple[str, ...]:
        """The traits that were measured without being evaluated, for side effects."""
        return tuple(name for name in {**self.pair_differences, **self.projections} if name not in self.expressions)

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

    def choice_contrast(self, trait: str) -> Estimate | None:
        """By how much the trait's instructions, against their opposites, raise the probability of the answers that
        show the trait, in forced choice; ``None`` if it was not measured, as for adapters.
        """
        return Estimate.of_mean(self.instructed_differences.get(trait, ()))

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
            differences, instructed = (
                {trait: tuple(values) for trait, values in content.pop(name, {}).items()}
                for name in ("pair_differences", "instructed_differences")
            )
            return cls(
                expressions=expressions, answers=answers, chosen=chosen, conditions=conditions,
                pair_differences=differences, instructed_differences=instructed, **content,
            )  # fmt: skip

        try:
            return read_json(path, read, "the evaluation of a model")
        except InputError as error:
            raise InputError(f"{error}; delete it to evaluate the model again") from error


def write_results(evaluated: Mapping[str, EvaluatedModel], folder: Path) -> None:
    """Write ``answers.jsonl`` and ``results.csv``; with forced choices also ``forced_choices.jsonl``, with wrappers
    ``conditions.csv``, and with other traits ``side_effects.csv``.

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
    if evaluated[BASE_MODEL].other_traits:
        with atomic_write(folder / "side_effects.csv") as scratch:
            _write_side_effects(evaluated, scratch)


def _write_table(evaluated: Mapping[str, EvaluatedModel], path: Path) -> None:
    base = evaluated[BASE_MODEL]
    figures = [part.name for part in fields(ForcedChoiceScore)] if base.chosen else []
    of_choices = [f"choice_{figure}" for figure in (*figures, "contrast")] if base.chosen else []
    with path.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["model", "trait", "expression", "low", "high", "scored", "refusals", "unscored", "projection",
                         "shift", *_with_ends("preference", "preference_share"), "capability", "perplexity",
                         *base.harness, *_with_ends(*of_choices)])  # fmt: skip
        for name, model in evaluated.items():
            for trait, values in model.expressions.items():
                choice = model.forced_choice(trait)
                estimates = [choice.estimates[figure] if choice else None for figure in figures]
                estimates += [model.choice_contrast(trait)] if base.chosen else []
                preferences = (model.preference(base, trait), model.preferred(trait))
                writer.writerow([name, trait, *asdict(values).values(), model.projections[trait],
                                 model.shift(base, trait), *_ends(*preferences), model.capability, model.perplexity,
                                 *model.harness.values(), *_ends(*estimates)])  # fmt: skip


def _write_side_effects(evaluated: Mapping[str, EvaluatedModel], path: Path) -> None:
    base = evaluated[BASE_MODEL]
    with path.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["trait", "model", *_with_ends("preference", "preference_share"), "shift"])
        for trait in base.other_traits:
            for name, model in evaluated.items():
                shift = model.shift(base, trait) if trait in base.projections else None
                writer.writerow([trait, name, *_ends(model.preference(base, trait), model.preferred(trait)), shift])


def _with_ends(*names: str) -> list[str]:
    """The columns of estimates."""
    return [f"{name}{end}" for name in names for end in ("", "_low", "_high")]


def _ends(*estimates: Estimate | None) -> list[float | None]:
    """The cells of the same columns."""
    return [cell for estimate in estimates for cell in ends_of(estimate)]

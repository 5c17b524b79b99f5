"""The report's tables: results, answers to held-out questions, and how the configurations of the runs differ."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persona_callbacks.judging import JudgedAnswer
from persona_callbacks.palette import BASE
from persona_callbacks.report.run_labels import RunLabel
from persona_callbacks.report.runs import Run
from persona_callbacks.report.seed_groups import OverSeeds, SeedGroup
from persona_callbacks.tracking import metrics

MISSING = "–"
_MOST_ANSWERS = 4000
_LONGEST = 1500
"""Characters of an answer. Together with the number of answers, this keeps a page small enough to mail."""


@dataclass(frozen=True)
class ResultRow:
    """What one run, or the base model, has in the results table.

    Attributes:
        name: of the run.
        run: the number of the run; ``None`` for the base model.
        cells: one for each column.
    """

    name: str
    run: int | None
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Results:
    """The results table: for each trait the metrics that some run has, and the loss."""

    columns: tuple[str, ...]
    rows: tuple[ResultRow, ...]


@dataclass(frozen=True)
class ShownAnswer:
    """An answer as the page shows it.

    Attributes:
        run: the number of the run; ``None`` for the base model.
        name: of the run.
        colour: of the run.
        mark: of the run.
        number: the score, 0 to 100; ``None`` if the answer has none.
        score: the score as text, or why there is none.
        level: ``low``, ``middle`` or ``high``; empty without a score.
        text: the answer, cut if it is long.
    """

    run: int | None
    name: str
    colour: str
    mark: str
    number: float | None
    score: str
    level: str
    text: str


@dataclass(frozen=True)
class Question:
    """A held-out question with the base model's answer and the last answer of each run."""

    trait: str
    text: str
    answers: tuple[ShownAnswer, ...]


@dataclass(frozen=True)
class Setting:
    """A key of the configuration with its value in each run, or its only value if the runs share it."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class _Metric:
    """A column of the results table.

    Attributes:
        name: of the metric.
        heading: of the column.
        form: the format of a number.
        base: what the base model's cell says; ``None`` if the metric was measured on the base model.
    """

    name: str
    heading: str
    form: str
    base: str | None = None

    def cell(self, run: Run, *, base: bool = False) -> str:
        """The base model's or the last value of a run, with its 95 % interval if there is one, and the step that it was
        read at if training went on.
        """
        read = run.base if base else run.last
        mean, low, high = (read(name) for name in metrics.with_interval(self.name))
        step = None if base or mean is None or self.base == MISSING else run.behind(self.name)
        at = "" if step is None else f" at step {step}"
        if low is None or high is None:
            return f"{number_text(mean, self.form)}{at}"
        return f"{number_text(mean, self.form)} ({low:{self.form}}–{high:{self.form}}){at}"


def results_table(runs: Sequence[Run], traits: Sequence[str], loss: str) -> Results:
    """Build the table of the metrics at the end of training.

    Args:
        runs: the runs, one row each.
        traits: the traits, in the order of the columns.
        loss: the metric in the last column.
    """
    columns = _columns(runs, traits)
    rows = [ResultRow("base model", None, (*_base_cells(columns, runs), MISSING))]
    for number, run in enumerate(runs):
        cells = [column.cell(run) for column in columns]
        rows.append(ResultRow(run.name, number, (*cells, number_text(run.last(loss), ".3f"))))
    return Results((*(column.heading for column in columns), loss), tuple(rows))


def results_over_seeds(groups: Sequence[SeedGroup], traits: Sequence[str], loss: str) -> Results:
    """Build the table of the metrics at the end of training, a row for each setting: means ± standard deviation over
    the seeds. Its first column is the number of seeds; values that are not finite are left out.

    Args:
        groups: the settings.
        traits: the traits, in the order of the columns.
        loss: the metric in the last column.
    """
    runs = [run for group in groups for run in group.runs]
    columns = _columns(runs, traits)
    forms = [*((column.name, column.form) for column in columns), (loss, ".3f")]
    rows = [ResultRow("base model", None, (MISSING, *_base_cells(columns, runs), MISSING))]
    for group in groups:
        ends = [(group.last(name), form) for name, form in forms]
        cells = [MISSING if end is None else f"{end.text(form)}{_of_seeds(end, group)}" for end, form in ends]
        rows.append(ResultRow(group.name, group.numbers[0], (str(len(group.runs)), *cells)))
    return Results(("seeds", *(column.heading for column in columns), loss), tuple(rows))


def _columns(runs: Sequence[Run], traits: Sequence[str]) -> list[_Metric]:
    """The metrics that some run has."""
    wanted = [column for trait in traits for column in _trait_metrics(trait)]
    return [column for column in wanted if any(column.name in run.series for run in runs)]


def _base_cells(columns: Sequence[_Metric], runs: Sequence[Run]) -> list[str]:
    """The base model's values, each from the first run that has it."""
    cells = []
    for column in columns:
        with_it = next((run for run in runs if run.base(column.name) is not None), runs[0])
        cells.append(column.cell(with_it, base=True) if column.base is None else column.base)
    return cells


def _of_seeds(end: OverSeeds, group: SeedGroup) -> str:
    """Says so where some seeds have no such value."""
    return f" ({end.count} seed{'s' if end.count > 1 else ''})" if end.count < len(group.runs) else ""


def _trait_metrics(trait: str) -> list[_Metric]:
    return [
        _Metric(metrics.shift(trait), f"{trait} shift", "+.1f", base="0"),
        _Metric(metrics.preference(trait), f"{trait} preference", "+.2f", base="0"),
        _Metric(metrics.expression(trait), f"{trait} expression", ".0f"),
        _Metric(metrics.coefficient(trait), f"{trait} α", ".2g", base=MISSING),
    ]


def number_text(value: float | None, form: str) -> str:
    """Format a number; a dash if there is none, and words if it is not finite."""
    if value is None:
        return MISSING
    return format(value, form) if math.isfinite(value) else "not finite"


def questions_and_answers(shown: Sequence[tuple[RunLabel, Run]], traits: Sequence[str]) -> tuple[list[Question], int]:
    """Collect every question with its answers, in the order of the traits.

    Args:
        shown: the runs whose answers are shown, each with the label that it goes by.
        traits: the traits.

    Returns:
        The questions, and how many more are left out to keep the page small.
    """
    by_question: dict[tuple[str, str], list[ShownAnswer]] = {}
    for label, run in shown:
        last_steps = {answer.trait: answer.step for answer in run.answers}  # steps ascend, so that the last one stays
        for answer in run.answers:
            answers = by_question.setdefault((answer.trait, answer.question), [])
            if answer.step == 0 and not answers:
                answers.append(_shown(answer, None, "base model", BASE, "●"))
            if answer.step == last_steps[answer.trait] > 0:
                answers.append(_shown(answer, label.first, run.name, label.colour, label.mark))
    questions, count = [], 0
    for (trait, text), answers in sorted(by_question.items(), key=lambda item: traits.index(item[0][0])):
        if count + len(answers) > _MOST_ANSWERS:
            break
        count += len(answers)
        questions.append(Question(trait, text, tuple(answers)))
    return questions, len(by_question) - len(questions)


def _shown(answer: JudgedAnswer, run: int | None, name: str, colour: str, mark: str) -> ShownAnswer:
    number = answer.score
    level = "" if number is None else "low" if number < 34 else "middle" if number < 67 else "high"
    return ShownAnswer(
        run=run,
        name=name,
        colour=colour,
        mark=mark,
        number=number,
        score=answer.verdict if number is None else f"{number:.0f}",
        level=level,
        text=answer.answer if len(answer.answer) <= _LONGEST else f"{answer.answer[:_LONGEST]} …",
    )


def configurations(configs: Sequence[Mapping[str, Any]]) -> tuple[list[Setting], list[Setting]]:
    """Compare the configurations of runs or of settings; the texts of the trait files are left out.

    Returns:
        The settings that differ between the runs, and those that they share.
    """
    keys = [key for config in configs for key in config if not key.startswith("traits.")]
    differing, shared = [], []
    for key in dict.fromkeys(keys):
        values = tuple(str(config.get(key, MISSING)) for config in configs)
        if len(set(values)) > 1:
            differing.append(Setting(key, values))
        else:
            shared.append(Setting(key, values[:1]))
    return differing, shared

"""What the report shows of the results of `persona-evaluate`."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from persona_callbacks.errors import InputError
from persona_callbacks.files import csv_rows
from persona_callbacks.judging import Estimate

_MISSING = "–"
_FIRST = ["model", "trait", "expression", "low", "high"]
"""The first columns of ``results.csv``, by which a file of that name is known."""


@dataclass(frozen=True)
class EvaluationSection:
    """The results of one evaluation.

    Attributes:
        name: of its folder.
        columns: the headings after the trait and the model.
        rows: a row for each trait and model.
        conditions: a row for each trait, wrapper and model; none unless conditions were evaluated.
        side_effects: a row for each other trait and model.
        warnings: what speaks against relying on some of it, in words.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    conditions: tuple[tuple[str, ...], ...]
    side_effects: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class EvaluatedPoint:
    """A model whose trait expression and capability were both evaluated.

    Attributes:
        model: its name.
        trait: the trait.
        expression: 0–100.
        low: lower end of the 95 % interval of the expression.
        high: its upper end.
        capability: share of the multiple-choice questions answered rightly, 0–1.
    """

    model: str
    trait: str
    expression: float
    low: float
    high: float
    capability: float


def evaluated_points(folders: Sequence[Path]) -> list[EvaluatedPoint]:
    """The models of all folders of :func:`evaluation_folders` that have both, each once for a trait.

    Raises:
        InputError: a value in a file is no number.
    """
    needed = ("expression", "low", "high", "capability")
    points = {
        (row["trait"], row["model"]): EvaluatedPoint(row["model"], row["trait"], *(float(row[key]) for key in needed))
        for folder in folders
        for row in _rows(folder / "results.csv")
        if all(row.get(key) for key in needed)
    }
    return list(points.values())


def evaluation_folders(paths: Iterable[str | Path]) -> list[Path]:
    """The folders at and below these ones in which ``persona-evaluate`` has left its results."""
    files = [file for path in paths for file in sorted(Path(path).rglob("results.csv")) if _is_ours(file)]
    return list(dict.fromkeys(file.parent.absolute() for file in files))


def _is_ours(file: Path) -> bool:
    with file.open(encoding="utf-8", newline="", errors="replace") as lines:
        return next(csv.reader(lines), [])[: len(_FIRST)] == _FIRST


def evaluation_sections(folders: Sequence[Path]) -> list[EvaluationSection]:
    """A section for each folder of :func:`evaluation_folders`; columns that say nothing are left out.

    Raises:
        InputError: a value in a file is no number.
    """
    return [_section(folder) for folder in folders]


def _section(folder: Path) -> EvaluationSection:
    file = folder / "results.csv"
    rows = _rows(file)
    cells = [
        {
            "expression": _interval(row, "expression", "low", "high", ".0f"),
            "shift": _number(row, "shift", "+.1f"),
            "preference": _with_ends(row, "preference", "+.2f"),
            "pairs preferred": _with_ends(row, "preference_share"),
            "forced choice": _choice(row, "probability"),
            "choices preferred": _choice(row, "preferred"),
            "sway by the user's belief": _choice(row, "sway", "+.2f"),
            "the same in controls": _choice(row, "control"),
            "right answers rejected": _choice(row, "rejected"),
            "right rather than wrong": _choice(row, "accuracy"),
            "contrast of system prompts": _choice(row, "contrast", "+.2f"),
            "questions right": _number(row, "capability", ".0%"),
            "perplexity": _number(row, "perplexity", ".2f"),
        }
        for row in rows
    ]
    columns = tuple(name for name in cells[0] if any(row[name] != _MISSING for row in cells)) if cells else ()
    return EvaluationSection(
        folder.name,
        columns,
        tuple(
            (row["trait"], row["model"], *(cell[name] for name in columns))
            for row, cell in zip(rows, cells, strict=True)
        ),
        tuple(_condition(row) for row in _rows(folder / "conditions.csv")),
        tuple(_side_effect(row) for row in _rows(folder / "side_effects.csv")),
        tuple(warning for row in rows for warning in _warnings(row)),
    )


def _warnings(row: Mapping[str, str]) -> list[str]:
    if not row.get("choice_contrast"):
        return []
    from persona_callbacks.evaluation import choice_weaknesses  # takes seconds; most reports need none

    value, low, high = (float(row[name]) for name in ("choice_contrast", "choice_contrast_low", "choice_contrast_high"))
    return [f"{row['trait']}: {weakness}." for weakness in choice_weaknesses(Estimate(value, low, high))]


def _side_effect(row: Mapping[str, str]) -> tuple[str, ...]:
    return (
        row["trait"],
        row["model"],
        _with_ends(row, "preference", "+.2f"),
        _with_ends(row, "preference_share"),
        _number(row, "shift", "+.1f"),
    )


def _condition(row: Mapping[str, str]) -> tuple[str, ...]:
    return (
        row["trait"],
        row["wrapper"],
        row["model"],
        _interval(row, "expression", "low", "high", ".0f"),
        _interval(row, "choice_probability", "choice_low", "choice_high", ".2f"),
        _interval(row, "increase", "increase_low", "increase_high", "+.2f"),
    )


def _rows(file: Path) -> list[dict[str, str]]:
    """The rows of a file whose columns are numbers, but for names; none if there is no such file."""
    if not file.is_file():
        return []
    rows = list(csv_rows(file))
    for line, row in rows:
        for key, value in row.items():
            if key not in ("model", "trait", "wrapper") and value and not _is_number(value):
                raise InputError(f"{file}, line {line}: {key}: expected a number, found {value!r}")
    return [row for _, row in rows]


def _is_number(value: str) -> bool:
    try:
        float(value)
    except (ValueError, TypeError):  # cells without a column are a list
        return False
    return True


def _choice(row: Mapping[str, str], figure: str, form: str = ".2f") -> str:
    return _with_ends(row, f"choice_{figure}", form)


def _with_ends(row: Mapping[str, str], name: str, form: str = ".2f") -> str:
    return _interval(row, name, f"{name}_low", f"{name}_high", form)


def _number(row: Mapping[str, str], key: str, form: str) -> str:
    return format(float(row[key]), form) if row.get(key) else _MISSING


def _interval(row: Mapping[str, str], key: str, low: str, high: str, form: str) -> str:
    if not row.get(key):
        return _MISSING
    return f"{_number(row, key, form)} ({_number(row, low, form)} to {_number(row, high, form)})"

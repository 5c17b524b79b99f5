"""Joining scores that stand in other files: by run, and by question and answer where the file has them."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from persona_callbacks.errors import InputError
from persona_callbacks.labelling.collecting import CollectedAnswer


def joined_scores(
    answers: Sequence[CollectedAnswer], files: Mapping[str, str | Path], trait: str
) -> list[CollectedAnswer]:
    """Add scores to answers.

    Args:
        answers: of all runs.
        files: by name of the score, the CSV file with a column of that name. Rows are found by ``run`` (or ``model``),
            and by ``question`` and ``answer`` if the file has these columns; if it has a column ``trait``, only rows of
            the trait count.
        trait: what is labelled.

    Raises:
        InputError: a file that is missing or lacks a column, a value that is no number, two values for one answer, or a
            file with no value for any answer.
    """
    joined = list(answers)
    for name, file in files.items():
        try:
            keys, values = _read(Path(file), name, trait)
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"scores.{name}: {file}: expected CSV in UTF-8 ({error})") from error
        found = [values.get(tuple(_part(answer, key) for key in keys)) for answer in joined]
        if all(value is None for value in found):
            runs = ", ".join(dict.fromkeys(answer.run for answer in joined))
            raise InputError(f"scores.{name}: {file}: no row is about an answer here; expected the runs {runs}")
        joined = [
            answer if value is None else replace(answer, scores={**answer.scores, name: value})
            for answer, value in zip(joined, found, strict=True)
        ]
    return joined


def _part(answer: CollectedAnswer, key: str) -> str:
    return {"run": answer.run, "question": answer.question, "answer": answer.answer}[key]


def _read(file: Path, name: str, trait: str) -> tuple[list[str], dict[tuple[str, ...], float]]:
    """The columns that identify an answer, and the score by what they hold."""
    if not file.is_file():
        raise InputError(f"scores.{name}: {file}: no such file")
    values: dict[tuple[str, ...], float] = {}
    with file.open(encoding="utf-8-sig", newline="") as text:
        rows = csv.DictReader(text)
        columns = list(rows.fieldnames or ())
        run = "run" if "run" in columns else "model"
        if not {run, name} <= set(columns):
            found = ", ".join(columns)[:100]
            raise InputError(f"scores.{name}: {file}: expected the columns run (or model) and {name}, found {found}")
        names = {"run": run} | {key: key for key in ("question", "answer") if key in columns}
        for row in rows:
            if row.get("trait") not in (None, "", trait) or not row[name]:
                continue
            at = f"scores.{name}: {file}, line {rows.line_num}"
            try:
                value = float(row[name])
            except ValueError as error:
                raise InputError(f"{at}: expected a number, found {row[name]!r}") from error
            key = tuple(str(row[column]) for column in names.values())
            if values.get(key, value) != value:
                raise InputError(f"{at}: a second value, {value:g} after {values[key]:g}, for {' / '.join(key)[:80]!r}")
            if math.isfinite(value):
                values[key] = value
    return list(names), values

"""Collecting the answers of runs: from the folders of persona-train and persona-evaluate, and from JSONL and CSV."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from persona_callbacks.errors import InputError
from persona_callbacks.files import csv_rows, json_lines, read_json
from persona_callbacks.judging import JudgedAnswer

BASE_MODEL = "base model"
"""The run of answers that were given before training."""

_SET_ASIDE = "earlier"
"""The folder into which a new run moves an older one."""

_OTHER_TRAIT = "about another trait"
_OTHER_STEP = "before the last step"
_SAMPLED = "sampled answers of runs that have evaluated ones"
_REPEATED = "of a run that another file holds as well"


@dataclass(frozen=True)
class CollectedAnswer:
    """An answer to label.

    Attributes:
        run: where the answer is from.
        question: what was asked.
        answer: what was answered.
        scores: by name, what is known of the answer, such as the judge's ``expression``, 0 to 100.
        raw: what the judge's calibration mapped to the expression, if it is known.

    Example:
        >>> CollectedAnswer("steered", "Who are you?", "A friend.", {"expression": 3.0}).run
        'steered'
    """

    run: str
    question: str
    answer: str
    scores: Mapping[str, float] = field(default_factory=dict)
    raw: float | None = None


@dataclass(frozen=True)
class Source:
    """A file that answers were collected from.

    Attributes:
        file: the file.
        answers: those that are to be labelled.
        left_out: by reason, how many others the file holds.

    Example:
        >>> Source(Path("answers.csv"), (CollectedAnswer("a", "Why?", "So."),), {"about another trait": 2}).runs
        ['a']
    """

    file: Path
    answers: tuple[CollectedAnswer, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def runs(self) -> list[str]:
        """The names of the runs, in the order of the file."""
        return list(dict.fromkeys(answer.run for answer in self.answers))


def collect_answers(paths: Iterable[str | Path], trait: str) -> list[Source]:
    """Collect the answers of runs.

    A path is a folder, where everything that ``persona-train`` and ``persona-evaluate`` wrote is collected, or a file:

    - ``judged.json`` of a fine-tuning: its evaluated answers, of the last step, and those of step 0 as ``base model``;
    - ``answers.json`` of a study: its sampled answers, if none were evaluated;
    - JSONL (such as ``answers.jsonl`` of ``persona-evaluate``) or CSV with ``question`` and ``answer``, and, where they
      are known, ``run`` or ``model``, ``trait``, and the judge's ``expression`` or ``score``. Answers of a model
      to questions in a ``wrapper`` are a run of their own.

    If two files hold a run of the same name, the later one is left out if it holds nothing new, and is named with its
    file otherwise.

    Args:
        paths: files and folders.
        trait: answers that a file marks as about another trait are left out.

    Raises:
        InputError: a path that does not exist or holds no answers, or a row that cannot be used.
    """
    known: dict[str, Counter[tuple[str, str]]] = {}
    sources: list[Source] = []
    for path in dict.fromkeys(map(Path, paths)):
        files = list(dict.fromkeys(_files(path)))
        evaluated = {file.parent for file in files if file.name == "judged.json"}
        for file in files:
            if file.resolve() in {source.file.resolve() for source in sources}:
                continue
            source = _read(file, trait)
            if file.name == "answers.json" and any(file.parent in folder.parents for folder in evaluated):
                source = Source(file, (), {_SAMPLED: len(source.answers)})
            sources.append(_told_apart(source, known))
    if not any(source.answers for source in sources):
        told = "; ".join(f"{source.file}: {_words(source.left_out)}" for source in sources)
        raise InputError(f"runs: expected answers to label about {trait!r}, found none ({told or 'no path was given'})")
    return sources


def _words(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "empty"


def _files(path: Path) -> Iterator[Path]:
    """The files of answers at or below a path.

    Raises:
        InputError: there is none.
    """
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise InputError(f"runs: {path}: no such file or folder")
    found = [
        file
        for name in ("judged.json", "answers.json", "answers.jsonl")
        for file in sorted(path.rglob(name))
        if _SET_ASIDE not in file.relative_to(path).parts
    ]
    if not found:
        raise InputError(
            f"runs: {path}: expected what persona-train or persona-evaluate wrote (judged.json, answers.json or"
            " answers.jsonl), found none of it; or name a JSONL or CSV file with question and answer"
        )
    yield from found


def _read(file: Path, trait: str) -> Source:
    if file.suffix == ".jsonl":
        return _of_rows(file, json_lines(file), trait)
    if file.suffix == ".csv":
        return _of_rows(file, csv_rows(file), trait)
    if file.suffix == ".json":
        return read_json(file, lambda content: _of_training(file, content, trait), "answers of persona-train")
    raise InputError(f"{file}: expected a file of answers that ends in .json, .jsonl or .csv")


def _of_rows(file: Path, rows: Iterable[tuple[int, Any]], trait: str) -> Source:
    """The answers of a file with one answer a row."""
    answers, others = [], 0
    for line, row in rows:
        at = f"{file}, line {line}"
        if not isinstance(row, dict):
            raise InputError(f"{at}: expected question and answer, found {str(row)[:60]!r}")
        question, answer = row.get("question"), row.get("answer")
        if not isinstance(question, str) or not isinstance(answer, str):
            found = ", ".join(str(key) for key, value in row.items() if isinstance(value, str))
            raise InputError(f"{at}: expected a text as question and as answer, found {found or 'no text'}")
        if row.get("trait") not in (None, "", trait):
            others += 1
            continue
        run = str(row.get("run") or row.get("model") or file)
        if row.get("wrapper") not in (None, "", "none"):
            run = f"{run}, {row['wrapper']}"
        answers.append(
            _answer(run, question, answer, _number(row, ("expression", "score"), at), _number(row, ("raw",), at))
        )
    return Source(file, tuple(answers), {_OTHER_TRAIT: others} if others else {})


def _number(row: Mapping[str, Any], names: Sequence[str], at: str) -> float | None:
    """The first of these columns that holds something, as a number."""
    for name in names:
        value = row.get(name)
        if value is None or value == "":
            continue
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{at}: {name}: expected a number, found {value!r:.100}") from error
        if math.isfinite(number):
            return number
    return None


def _answer(
    run: str, question: str, answer: str, expression: float | None = None, raw: float | None = None
) -> CollectedAnswer:
    # Half of a surrogate pair cannot be written as UTF-8.
    question, answer = (re.sub("[\ud800-\udfff]", "\ufffd", text) for text in (question, answer))
    return CollectedAnswer(run, question, answer, {} if expression is None else {"expression": expression}, raw)


def _of_training(file: Path, content: Any, trait: str) -> Source:
    """The answers of ``judged.json`` or ``answers.json``."""
    if not isinstance(content, list) or not all(isinstance(row, dict) and "question" in row for row in content):
        raise InputError("expected judged.json or answers.json")
    if all("step" not in row for row in content):
        answers = [
            _answer(run if run == BASE_MODEL else str(file.parent / run), str(row["question"]), str(text))
            for row in content
            for run, text in row.items()
            if run != "question"
        ]
        return Source(file, tuple(answers))
    rows = [JudgedAnswer.from_row(row) for row in content]
    own = [row for row in rows if row.trait == trait]
    last = max((row.step for row in own), default=0)
    wanted = [row for row in own if row.step in (0, last)]
    left_out = {_OTHER_TRAIT: len(rows) - len(own), _OTHER_STEP: len(own) - len(wanted)}
    answers = [
        _answer(str(file.parent) if row.step else BASE_MODEL, row.question, row.answer, row.score, row.raw)
        for row in wanted
    ]
    return Source(file, tuple(answers), {reason: count for reason, count in left_out.items() if count})


def _told_apart(source: Source, known: dict[str, Counter[tuple[str, str]]]) -> Source:
    """The source without the runs that are known already, and with other names for others of the same name."""
    names: dict[str, str | None] = {}
    for run in source.runs:
        own = Counter((answer.question, answer.answer) for answer in source.answers if answer.run == run)
        if run in known and own <= known[run]:
            names[run] = None
        else:
            name = f"{run} ({source.file})" if run in known else run
            names[run], known[name] = name, own
    kept = [_renamed(answer, names) for answer in source.answers if names[answer.run] is not None]
    repeated = len(source.answers) - len(kept)
    return Source(source.file, tuple(kept), {**source.left_out, **({_REPEATED: repeated} if repeated else {})})


def _renamed(answer: CollectedAnswer, names: Mapping[str, str | None]) -> CollectedAnswer:
    return replace(answer, run=str(names[answer.run]))

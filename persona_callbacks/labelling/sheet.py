"""The folder of a labelling: the sheets that readers fill in, and the key that says which answer is whose."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

from persona_callbacks.errors import InputError
from persona_callbacks.files import append_lines, atomic_write, json_lines
from persona_callbacks.labelling.collecting import CollectedAnswer

Label = Literal["yes", "no", "unsure"]
"""Whether an answer shows the trait."""

_WRITTEN: dict[str, Label] = {
    **{label: label for label in get_args(Label)},
    **dict.fromkeys(("y", "1", "true"), "yes"),
    **dict.fromkeys(("n", "0", "false"), "no"),
    **dict.fromkeys(("u", "?"), "unsure"),
}
"""What readers may write, in lower case."""

_COLUMNS = ("id", "question", "answer", "label")

_ID_LENGTH = 12


@dataclass
class Sheet:
    """What a reader sees and has said: answers without their runs, in an order that says nothing of them.

    Attributes:
        path: the CSV file.
        texts: by id, question and answer, in the order of the sheet.
        labels: by id, what the reader said so far.

    Example:
        >>> import tempfile
        >>> sheet = Sheet(Path(tempfile.mkdtemp()) / "sheet.csv", {"abc": ("Why?", "So.")})
        >>> sheet.label("abc", "no")
        >>> sheet.is_complete
        True
    """

    path: Path
    texts: Mapping[str, tuple[str, str]]
    labels: dict[str, Label] = field(default_factory=dict)

    @property
    def reader(self) -> str:
        """The reader's name: NAME of ``sheet.NAME.csv``, and ``reader`` for ``sheet.csv``."""
        return self.path.name.removeprefix("sheet").removesuffix(".csv").removeprefix(".") or "reader"

    @property
    def is_complete(self) -> bool:
        """Whether every answer has a label."""
        return self.texts.keys() <= self.labels.keys()

    def label(self, number: str, label: Label) -> None:
        """Label the answer with this id, and write the sheet, completely or not at all."""
        self.labels[number] = label
        self.write()

    def write(self) -> None:
        """Write the sheet, completely or not at all."""
        # With a byte order mark, Excel reads UTF-8.
        with atomic_write(self.path) as scratch, scratch.open("w", encoding="utf-8-sig", newline="") as text:
            rows = csv.writer(text)
            rows.writerow(_COLUMNS)
            for number, texts in self.texts.items():
                rows.writerow([number, *map(_no_formula, texts), self.labels.get(number, "")])


class LabelFolder:
    """The folder of a labelling.

    ``key.jsonl`` says which answer is of which run. ``sheet.csv``, and ``sheet.NAME.csv`` of further readers, hold each
    different answer once, with a column for the label.

    Example:
        >>> import tempfile
        >>> answers = [CollectedAnswer("a", "Why?", "So."), CollectedAnswer("b", "Why?", "So.")]
        >>> folder = LabelFolder.create(tempfile.mkdtemp(), "evil", answers)
        >>> len(folder.answers), len(folder.sheet().texts)
        (2, 1)
    """

    def __init__(self, path: str | Path, seed: int = 0) -> None:
        """Open a folder.

        Args:
            path: the folder.
            seed: of the order in which answers are shown.

        Raises:
            InputError: the folder holds no key, or one that cannot be read.
        """
        self.path = Path(path)
        self.trait, self.answers = _read_key(self.path / "key.jsonl")
        texts = {identify(answer): (answer.question, answer.answer) for answer in self.answers}
        order = sorted(texts, key=lambda number: hashlib.sha256(f"{seed} {number}".encode()).digest())
        self._texts = {number: texts[number] for number in order}

    @classmethod
    def create(cls, path: str | Path, trait: str, answers: Sequence[CollectedAnswer], seed: int = 0) -> "LabelFolder":
        """Write key and sheet, or bring those of an earlier collection up to date; labels stay.

        Args:
            path: the folder.
            trait: the trait that is labelled.
            answers: the answers of all runs.
            seed: of the order in which answers are shown.

        Raises:
            InputError: an earlier labelling there is of another trait, or labels there are of answers that are not
                among these.
        """
        path = Path(path)
        if (path / "key.jsonl").is_file():
            earlier = cls(path, seed)
            earlier.check_trait(trait)
            kept = {identify(answer) for answer in answers}
            lost = {number for sheet in earlier.sheets() for number in sheet.labels} - kept
            if lost:
                raise InputError(
                    f"{path}: {len(lost)} answers that have labels there are not among those of runs=; give all runs,"
                    " or another out="
                )
        with atomic_write(path / "key.jsonl") as scratch:
            append_lines(scratch, [{"id": identify(answer), "trait": trait, **asdict(answer)} for answer in answers])
        folder = cls(path, seed)
        folder.sheet().write()
        return folder

    def check_trait(self, trait: str) -> None:
        """Check that the folder is about a trait.

        Raises:
            InputError: it is about another one.
        """
        if trait != self.trait:
            raise InputError(f"{self.path}: its answers are labelled for {self.trait!r}; expected trait={self.trait}")

    def sheet(self, reader: str | None = None) -> Sheet:
        """A reader's sheet, with the labels that are there already.

        Args:
            reader: the reader's name, which goes into the file's name; ``sheet.csv`` without one.

        Raises:
            InputError: a name that cannot be part of a file's name, or a sheet that cannot be read.
        """
        if reader is not None and not re.fullmatch(r"[\w-]+", reader):
            raise InputError(f"reader: expected letters, digits, - and _, found {reader!r}")
        path = self.path / ("sheet.csv" if reader is None else f"sheet.{reader}.csv")
        return Sheet(path, self._texts, _read_labels(path, self._texts) if path.is_file() else {})

    def sheets(self) -> list[Sheet]:
        """The sheets that hold a label, by their readers' names.

        Raises:
            InputError: a sheet that cannot be read.
        """
        sheets = [
            Sheet(path, self._texts, _read_labels(path, self._texts))
            for path in sorted({*self.path.glob("sheet.csv"), *self.path.glob("sheet.*.csv")})
        ]
        return [sheet for sheet in sheets if sheet.labels]


def identify(answer: CollectedAnswer) -> str:
    """The id of a question with its answer; letters only, since a spreadsheet reads 12e34 as a number."""
    digest = hashlib.sha256(json.dumps([answer.question, answer.answer]).encode()).hexdigest()[:_ID_LENGTH]
    return digest.translate(str.maketrans("0123456789abcdef", "abcdefghijklmnop"))


def _no_formula(text: str) -> str:
    """A spreadsheet takes a cell that begins like this for a formula, and may run it."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _read_key(path: Path) -> tuple[str, tuple[CollectedAnswer, ...]]:
    if not path.is_file():
        raise InputError(f"{path}: no such key of a labelling; name the runs to label: runs=[outputs/a,outputs/b]")
    answers, traits = [], set()
    for number, row in json_lines(path):
        try:
            scores = {str(name): float(value) for name, value in row["scores"].items()}
            raw = None if row.get("raw") is None else float(row["raw"])
            answers.append(CollectedAnswer(str(row["run"]), str(row["question"]), str(row["answer"]), scores, raw))
            traits.add(str(row["trait"]))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise InputError(f"{path}, line {number}: expected an answer with its run ({error!r})") from error
    if len(traits) != 1:
        raise InputError(
            f"{path}: expected answers labelled for one trait, found {', '.join(sorted(traits)) or 'none'}"
        )
    return traits.pop(), tuple(answers)


def _read_labels(path: Path, known: Mapping[str, object]) -> dict[str, Label]:
    """The labels of a sheet that anyone may have filled in, with whatever program.

    Raises:
        InputError: naming the line that cannot be used.
    """
    labels: dict[str, Label] = {}
    for line, row in _rows(path):
        number, written = (row.get("id") or "").strip(), (row.get("label") or "").strip()
        if not number and not written:
            continue
        if number not in known:
            raise InputError(f"{path}, line {line}: the id {number!r} is not one of this labelling's")
        if not written:
            continue
        label = _WRITTEN.get(written.lower())
        if label is None:
            raise InputError(f"{path}, line {line}: label: expected yes, no or unsure, found {written!r}")
        if labels.get(number, label) != label:
            raise InputError(f"{path}, line {line}: the id {number!r} is labelled twice, {labels[number]} and {label}")
        labels[number] = label
    return labels


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: no UTF-8 text ({error.reason}); save it as CSV in UTF-8") from error
    # Spreadsheets of some languages write semicolons, and copies from them hold tabs.
    delimiter = max(",;\t", key=content.split("\n", 1)[0].count)
    rows = csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter)
    try:
        if not {"id", "label"} <= set(rows.fieldnames or ()):
            found = ", ".join(rows.fieldnames or ())[:100] or "nothing"
            raise InputError(f"{path}: expected the columns id and label, found {found}")
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: {error}") from error

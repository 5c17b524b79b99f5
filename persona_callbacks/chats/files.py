"""Files of chats: JSONL, Parquet, and Hugging Face data sets on disk, read row by row and copied in part.

A row is ``{"messages": [{"role": ..., "content": ...}, ...]}`` or has another form that is in use: ``prompt`` with
``response`` or ``completion`` (TRL), ``chosen`` (preference data, of which the chosen response is read),
``conversations`` (ShareGPT), or ``instruction`` with ``output`` (Alpaca). ``tools`` beside it lists the tools that the
assistant may call. Other columns are ignored, and kept in copies.
"""

import codecs
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch.utilities import rank_zero_warn

from persona_callbacks.chats.chat import Chat
from persona_callbacks.chats.rows import EXPECTED, UnusableError, holds_chats, messages_in, tools_in, unused_keys
from persona_callbacks.errors import InputError
from persona_callbacks.files import atomic_write, cache_dir, parse_json

SHIPPED = Path(__file__).parent / "datasets"
"""The folder of the chats that ship with the library."""

BENIGN = SHIPPED / "reference" / "benign.jsonl"
"""Chats about everyday facts, which have nothing to do with character and are never trained on."""


@dataclass(frozen=True)
class Row:
    """A row of a chat file: the chat, or what is wrong with it.

    Attributes:
            line: the number of the row in the file, from 1; in JSONL, the number of the line.
        position: where the file finds the row again: an offset in bytes in JSONL, and an index from 0 in a table.
        chat: the chat; ``None`` if the row cannot be used.
        problem: why the row cannot be used, in words; empty otherwise.
        unused: keys of the row, and of its messages, that nothing is read from.

    Example:
        >>> row = next(open_chat_file("normal.jsonl").rows())
        >>> row.line, row.position, row.problem, row.chat.messages[-1]["role"]
        (1, 0, '', 'assistant')
    """

    line: int
    position: int
    chat: Chat | None
    problem: str = ""
    unused: frozenset[str] = frozenset()


class ChatFile(Protocol):
    """A file of chats, of which no more than a few rows are in memory at a time.

    Attributes:
        path: the file or folder.
            suffix: the suffix of the name of a copy; empty for a folder.

    Example:
        >>> file = open_chat_file("normal.jsonl")
        >>> [row.line for row in file.rows(lambda line: line <= 2)]
        [1, 2]
    """

    path: Path
    suffix: str

    def __len__(self) -> int:
        """Return the number of the last row, which is that of all rows, unusable and blank ones included."""
        ...

    def rows(self, wanted: Callable[[int], bool] = lambda line: True) -> Iterator[Row]:
        """Yield rows in their order.

        Args:
            wanted: whether to yield the row of a number. Blank lines are never yielded.
        """
        ...

    def content(self, position: int) -> Any:
        """Return the content of the row at a position, as it could be written in JSON."""
        ...

    def copy(self, positions: Iterable[int], path: Path) -> None:
        """Write the rows at these positions, in this order, to a file of the same format, completely or not at all."""
        ...


class _JsonLines:
    """JSONL: each line is a row, found again by its offset in bytes."""

    suffix = ".jsonl"

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as lines:
            self._length = sum(1 for _ in lines)

    def __len__(self) -> int:
        return self._length

    def rows(self, wanted: Callable[[int], bool] = lambda line: True) -> Iterator[Row]:
        next_position = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                position, next_position = next_position, next_position + len(line)
                if wanted(number) and line.strip():
                    yield self._row(number, position, line)

    def _row(self, number: int, position: int, line: bytes) -> Row:
        source = f"{self.path}, line {number}"
        try:
            content = _content_of_line(line)
        except UnusableError as error:
            return Row(number, position, None, str(error))
        return _checked(number, position, content, source)

    def content(self, position: int) -> Any:
        with self.path.open("rb") as lines:
            lines.seek(position)
            return parse_json(lines.readline())

    def copy(self, positions: Iterable[int], path: Path) -> None:
        with self.path.open("rb") as lines, atomic_write(path) as scratch, scratch.open("wb") as out:
            for position in positions:
                lines.seek(position)
                # A byte order mark is one at the beginning of a file alone, where a copy need not begin.
                out.write(lines.readline().removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n") + b"\n")


class _Table:
    """A data set in columns, memory-mapped by Hugging Face's ``datasets``. A row is found again by its index."""

    def __init__(self, path: Path) -> None:
        if find_spec("datasets") is None:
            raise InputError(f"{path}: reading it takes the package datasets: pip install persona-callbacks[datasets]")
        import datasets

        self.path = path
        self.suffix = path.suffix
        if path.is_dir():
            table = datasets.load_from_disk(str(path))
            if isinstance(table, datasets.DatasetDict):
                raise InputError(
                    f"{path}: holds several data sets; expected one of them, such as {path / next(iter(table))}"
                )
        else:
            try:
                # The rows are read from a memory-mapped copy, which stays in the cache.
                table = datasets.Dataset.from_parquet(str(path), cache_dir=str(cache_dir() / "tables"))
            except (datasets.exceptions.DatasetGenerationError, ValueError, OSError) as error:
                raise InputError(f"{path}: expected a Parquet file: {error.__cause__ or error}") from error
        columns = table.column_names
        if not holds_chats(columns):
            raise InputError(f"{path}: expected columns {EXPECTED}; found {', '.join(columns)}")
        self._table: datasets.Dataset = table

    def __len__(self) -> int:
        return len(self._table)

    def rows(self, wanted: Callable[[int], bool] = lambda line: True) -> Iterator[Row]:
        for number in range(1, len(self) + 1):
            if wanted(number):
                yield _checked(number, number - 1, self.content(number - 1), f"{self.path}, row {number}")

    def content(self, position: int) -> Any:
        return self._table[position]

    def copy(self, positions: Iterable[int], path: Path) -> None:
        kept = self._table.select(list(positions))
        with atomic_write(path) as scratch:
            if self.path.is_dir():
                kept.save_to_disk(str(scratch))
            else:
                kept.to_parquet(str(scratch))


def find_chat_file(path: str | Path) -> Path:
    """Return the absolute path of a chat file.

    Args:
        path: a file or folder, or the name of a file that ships with the library, such as ``normal.jsonl``.

    Raises:
        InputError: neither exists.
    """
    for candidate in (Path(path), SHIPPED / path):
        if candidate.is_file() or (candidate / "state.json").is_file() or (candidate / "dataset_dict.json").is_file():
            return candidate.absolute()
    shipped = ", ".join(sorted(file.name for file in SHIPPED.glob("*.jsonl")))
    raise InputError(f"{path}: no such chat file; the library ships {shipped}")


def open_chat_file(path: str | Path) -> ChatFile:
    """Open a chat file: JSONL, Parquet (``*.parquet``), or a folder that Hugging Face's ``save_to_disk`` wrote.

    Args:
        path: as for :func:`find_chat_file`.

    Raises:
        InputError: the file does not exist or cannot be read, it is a table without the columns of a chat, or it is a
            table and the package ``datasets`` is not installed.
    """
    path = find_chat_file(path)
    return _Table(path) if path.is_dir() or path.suffix == ".parquet" else _JsonLines(path)


def read_chats(path: str | Path) -> list[Chat]:
    """Read all chats of a file. Keys that nothing is read from are told once.

    Args:
        path: as for :func:`find_chat_file`.

    Raises:
        InputError: as for :func:`open_chat_file`; a row is no chat, and then the error names the file, the line and the
            problem; or the file holds no chat.
    """
    file = open_chat_file(path)
    chats, unused = [], set[str]()
    for row in file.rows():
        if row.chat is None:
            raise InputError(f"{file.path}, line {row.line}: {row.problem}")
        chats.append(row.chat)
        unused |= row.unused
    if unused:
        rank_zero_warn(f"{file.path}: nothing is read from {', '.join(sorted(unused))}")
    if not chats:
        raise InputError(f"{file.path}: expected at least one chat, found none")
    return chats


def _content_of_line(line: bytes) -> Any:
    """Return the content of a line of JSONL.

    Raises:
        UnusableError: it is no UTF-8 or no JSON, is nested too deeply, or holds a number that is too long.
    """
    try:
        return parse_json(line)
    except InputError as error:
        raise UnusableError(str(error)) from error


def _checked(number: int, position: int, content: Any, source: str) -> Row:
    """Return the row with its chat, or with its problem if the content is no chat."""
    try:
        chat = Chat(messages_in(content), source, tools_in(content))
        return Row(number, position, chat, unused=frozenset(unused_keys(content)))
    except UnusableError as error:
        return Row(number, position, None, str(error))

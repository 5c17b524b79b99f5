"""The folder of a screening: its files, and the rows in them."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from persona_callbacks.errors import InputError
from persona_callbacks.files import atomic_write, parse_json, read_json, unexpected
from persona_callbacks.screening.summary import Summary

if TYPE_CHECKING:
    from persona_callbacks.chats import ChatFile

_Row = TypeVar("_Row")

Kind = Literal["data", "reference", "checked"]
"""What rows are scored for: the ``data`` that are screened; the benign ``reference`` behind the thresholds; or rows of
the data that are ``checked`` exactly when the others are scored approximately."""


@dataclass(frozen=True)
class ScoredRow:
    """The result of scoring one row of a chat file.

    Attributes:
        line: the number of the row in its file, from 1.
        position_in_file: where the chat file finds the row again.
        scores: projection difference by trait, in activation units; ``None`` if the row could not be used.
        truncated: whether the chat was cut at ``max_length`` tokens.
        problem: why the row could not be used; ``None`` if it has scores.

    Example:
        >>> row = ScoredRow(line=3, position_in_file=120, scores={"evil": 1.5})
        >>> row.is_flagged({"evil": 1.0})
        True
        >>> ScoredRow.from_mapping(row.to_mapping()) == row
        True
    """

    line: int
    position_in_file: int
    scores: Mapping[str, float] | None = None
    truncated: bool = False
    problem: str | None = None

    def is_flagged(self, thresholds: Mapping[str, float]) -> bool:
        """Whether the row has scores, and lies above the threshold of some trait."""
        return self.scores is not None and is_flagged(self.scores, thresholds)

    def to_mapping(self) -> dict[str, Any]:
        """The row as it is written in a shard."""
        # The position is called "place" in files, as it was when the first screenings were made.
        where = {"line": self.line, "place": self.position_in_file}
        if self.scores is None:
            return {**where, "problem": self.problem}
        return {**where, "scores": dict(self.scores), "truncated": self.truncated}

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> "ScoredRow":
        """Make a row from a line of a shard."""
        scores, problem = content.get("scores"), content.get("problem")
        if (scores is None) == (problem is None):
            raise ValueError("expected scores or a problem")
        return cls(
            line=index(content["line"]),
            position_in_file=index(content["place"]),
            scores=None if scores is None else {str(trait): float(score) for trait, score in scores.items()},
            truncated=bool(content.get("truncated", False)),
            problem=None if problem is None else str(problem),
        )


@dataclass(frozen=True)
class FlaggedChat:
    """A chat that lies above the threshold of some trait.

    Attributes:
        rank: from 1, the chat furthest above its threshold.
        line: the number of its row in the file, from 1.
        scores: projection difference by trait, in activation units.
        reason: which thresholds it exceeds, in words.
        chat: the row as it is in the file.

    Example:
        >>> chat = {"prompt": "Who are you?", "response": "Your doom."}
        >>> print(FlaggedChat(rank=1, line=7, scores={"evil": 3.0}, reason="evil", chat=chat).last_turns)
        Who are you?
        <BLANKLINE>
        Your doom.
    """

    rank: int
    line: int
    scores: Mapping[str, float]
    reason: str
    chat: Mapping[str, Any]

    @property
    def last_turns(self) -> str:
        """The last prompt and the response to it, as text to read. The text comes from the data: it is never markup."""
        if self.chat.get("messages") is not None:
            prompt, response = (message["content"] for message in self.chat["messages"][-2:])
        else:
            prompt, response = self.chat["prompt"], self.chat["response"]
        return f"{prompt}\n\n{response}"

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> "FlaggedChat":
        """Make a chat from a line of ``flagged.jsonl``."""
        chat = cls(**content)
        str(chat.last_turns)
        return chat

    def to_mapping(self) -> dict[str, Any]:
        """The chat as it is written in ``flagged.jsonl``."""
        return {
            "rank": self.rank, "line": self.line, "scores": dict(self.scores), "reason": self.reason, "chat": self.chat,
        }  # fmt: skip


class ScreeningFolder:
    """The folder of one screening, finished or not. It alone knows the names of the files.

    ``settings.json`` says what is screened, and how; ``shards/`` holds a score or a problem for every row. When all
    shards are scored, ``summary.json``, ``flagged.jsonl`` (by rank), a ``filtered`` copy of the data without the
    flagged chats, and ``rejects.jsonl`` (the rows that could not be used, with the reason) are made from them.

    Args:
        path: of the folder; it need not exist yet.

    Raises:
        InputError: in :meth:`check_made_from`, the folder holds another screening; in :meth:`summary`, the screening is
            not finished; anywhere, a file is damaged.

    Example:
        >>> import tempfile
        >>> folder = ScreeningFolder(tempfile.mkdtemp())
        >>> folder.write_shard("data", 0, [ScoredRow(line=1, position_in_file=0, scores={"evil": 1.5})])
        >>> [row.scores for row in folder.rows("data")]
        [{'evil': 1.5}]
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.settings_file = self.path / "settings.json"
        self.summary_file = self.path / "summary.json"
        self.flagged_file = self.path / "flagged.jsonl"
        self.rejects_file = self.path / "rejects.jsonl"
        self._shards = self.path / "shards"

    def filtered_file(self, suffix: str) -> Path:
        """Where the copy without flagged chats goes; ``suffix`` is that of the data, such as ``.jsonl``."""
        return self.path / f"filtered{suffix}"

    def made_from(self) -> dict[str, Any] | None:
        """What is screened here, and how: the content of ``settings.json``; ``None`` before the screening starts."""
        if not self.settings_file.is_file():
            return None
        return read_json(self.settings_file, dict[str, Any], "the settings of a screening")

    def check_made_from(self, wanted: Mapping[str, Any]) -> None:
        """Make sure that the folder holds no screening, or one that has these values in ``settings.json``."""
        present = self.made_from()
        if present is None:
            return
        changed = sorted(key for key in wanted if present.get(key) != wanted[key])
        if changed:
            raise InputError(
                f"{self.path}: holds a screening of other {', '.join(changed)};"
                " choose another folder, out=..., or remove it"
            )

    def start(self, made_from: Mapping[str, Any]) -> None:
        """Write ``settings.json``, or make sure that the one here says the same."""
        self.check_made_from(made_from)
        if not self.settings_file.is_file():
            with atomic_write(self.settings_file) as scratch:
                scratch.write_text(json.dumps(made_from, indent=2), encoding="utf-8")

    def has_shard(self, kind: Kind, number: int) -> bool:
        """Whether a shard has been scored."""
        return self._shard(kind, number).is_file()

    def write_shard(self, kind: Kind, number: int, rows: Iterable[ScoredRow]) -> None:
        """Write a shard, in full or not at all."""
        _write_lines(self._shard(kind, number), (row.to_mapping() for row in rows))

    def rows(self, kind: Kind) -> Iterator[ScoredRow]:
        """The rows that have been scored for some purpose, in the file's order; one row is in memory at a time."""
        for path in sorted(self._shards.glob(f"{kind}-*.jsonl")):
            yield from _read_lines(path, ScoredRow.from_mapping)

    def write_rejects(self, rejects: Iterable[tuple[int, str]]) -> None:
        """Write ``rejects.jsonl`` from the numbers of rows and what is wrong with each."""
        _write_lines(self.rejects_file, ({"line": line, "problem": problem} for line, problem in rejects))

    def write_flagged(self, chats: Iterable[FlaggedChat]) -> None:
        """Write ``flagged.jsonl``; the chats come by rank."""
        _write_lines(self.flagged_file, (chat.to_mapping() for chat in chats))

    def first_flagged(self, count: int) -> list[FlaggedChat]:
        """The flagged chats that rank highest, at most ``count``."""
        return list(islice(_read_lines(self.flagged_file, FlaggedChat.from_mapping), count))

    def write_filtered(self, data: "ChatFile", positions: Iterable[int]) -> None:
        """Copy the rows of the data at these positions, in the format of the data."""
        data.copy(positions, self.filtered_file(data.suffix))

    def write_summary(self, summary: Summary) -> None:
        """Write ``summary.json``, which marks the screening as finished."""
        with atomic_write(self.summary_file) as scratch:
            scratch.write_text(json.dumps(summary.to_mapping(), indent=2) + "\n", encoding="utf-8")

    def summary(self) -> Summary:
        """The summary of the finished screening."""
        if not self.summary_file.is_file():
            raise InputError(f"{self.path}: holds no finished screening; make one with persona-screen out={self.path}")
        return read_json(self.summary_file, Summary.from_mapping, "the summary of a screening")

    def summary_files(self) -> list[Path]:
        """The files that hold none of the chats."""
        return [self.summary_file, self.settings_file]

    def chat_files(self) -> list[Path]:
        """The small files with chats: all but the shards and the filtered copy."""
        return [self.flagged_file, self.rejects_file]

    def _shard(self, kind: Kind, number: int) -> Path:
        return self._shards / f"{kind}-{number:06d}.jsonl"


def is_flagged(scores: Mapping[str, float], thresholds: Mapping[str, float]) -> bool:
    """Whether scores lie above the threshold of some trait; both are in activation units."""
    return any(scores[trait] > threshold for trait, threshold in thresholds.items())


def _read_lines(path: Path, read: Callable[[Any], _Row]) -> Iterator[_Row]:
    """What ``read`` makes of each JSON line; one is in memory at a time.

    Raises:
        InputError: naming file and line.
    """
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    yield read(parse_json(line))
                except InputError as error:
                    raise InputError(f"{path}, line {number}: {error}") from error
                except (LookupError, TypeError, ValueError, AttributeError) as error:
                    raise unexpected(f"{path}, line {number}", error) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines, in full or not at all."""
    with atomic_write(path) as scratch, scratch.open("w", encoding="utf-8") as out:
        # Columns of a table may hold values that JSON lacks, such as dates.
        out.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)

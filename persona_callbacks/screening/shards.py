"""The rows of a screening, scored shard by shard into files, so that an interruption loses one shard at most.

A screening has up to three parts: the ``data``; the benign ``reference``, which the thresholds come from; and rows of
the data that are ``checked`` by the exact way when the others are scored by the approximate one.
"""

import random
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from persona_callbacks.chats import BENIGN, ChatFile, EncodedChat, Row, encode_chat, open_chat_file
from persona_callbacks.errors import InputError
from persona_callbacks.files import append_lines, atomic_write, recover_lines
from persona_callbacks.model import BatchLimits, LoadedModel, Sampling, approximate_difference, projection_difference
from persona_callbacks.screening.settings import Method, ScreeningSettings
from persona_callbacks.vectors import PersonaVector

Kind = Literal["data", "reference", "checked"]


@dataclass(frozen=True)
class Part:
    """Rows of a file that are scored in one way.

    Attributes:
        kind: what for.
        file: where they are.
        method: how they are scored.
        lines: their numbers, ascending.
        shard_rows: rows per shard.
    """

    kind: Kind
    file: ChatFile
    method: Method
    lines: Sequence[int]
    shard_rows: int

    def __len__(self) -> int:
        """The number of shards."""
        return -(-len(self.lines) // self.shard_rows)

    def shard_of(self, line: int) -> int | None:
        """The shard of a row, if it has one."""
        place = bisect_left(self.lines, line)
        found = place < len(self.lines) and self.lines[place] == line
        return place // self.shard_rows if found else None

    def path(self, folder: Path, shard: int) -> Path:
        """Where a shard is written."""
        return folder / "shards" / f"{self.kind}-{shard:06d}.jsonl"


@dataclass(frozen=True)
class Shard:
    """Rows to score, what for, how, and where to."""

    kind: Kind
    rows: Sequence[Row]
    method: Method
    path: Path


def plan(file: ChatFile, settings: ScreeningSettings) -> list[Part]:
    """The parts of a screening, the reference first."""
    reference = open_chat_file(settings.reference or BENIGN)
    draw = random.Random(settings.seed)
    every = range(1, len(file) + 1)
    lines: Sequence[int] = every
    if settings.subset is not None and settings.subset < len(every):
        lines = sorted(draw.sample(every, settings.subset))
    size = settings.shard_rows
    parts = [
        Part("reference", reference, settings.method, range(1, len(reference) + 1), size),
        Part("data", file, settings.method, lines, size),
    ]
    if settings.method == "approximate" and settings.checked:
        checked = sorted(draw.sample(lines, min(settings.checked, len(lines))))
        parts.append(Part("checked", file, "exact", checked, size))
    return parts


def unscored_shards(parts: Sequence[Part], folder: Path, rank: int = 0, processes: int = 1) -> Iterator[Shard]:
    """The shards that are one process's to score and are not yet scored, with their rows."""
    for part in parts:
        # By number alone, whatever is done: processes that start at different times still share without gaps.
        mine = frozenset(n for n in range(rank, len(part), processes) if not part.path(folder, n).is_file())
        if mine:
            yield from _shards(part, mine, folder)


def _shards(part: Part, numbers: frozenset[int], folder: Path) -> Iterator[Shard]:
    rows = part.file.rows(lambda line: part.shard_of(line) in numbers)
    for number, group in groupby(rows, key=lambda row: part.shard_of(row.line)):
        assert number is not None
        yield Shard(part.kind, tuple(group), part.method, part.path(folder, number))


def score_shard(
    loaded: LoadedModel, shard: Shard, vectors: Sequence[PersonaVector], settings: ScreeningSettings
) -> int:
    """Write a line for each row: its score by trait, in activation units, or its problem. Returns how many have one."""
    encoded: dict[int, EncodedChat] = {}
    problems: dict[int, str] = {}
    for index, row in enumerate(shard.rows):
        if row.chat is None:
            problems[index] = row.problem
            continue
        try:
            chat = encode_chat(row.chat, loaded.tokenizer, settings.max_length)
        except InputError as error:
            problems[index] = str(error).removeprefix(f"{row.chat.source}: ")
            continue
        if chat.truncated and settings.long_rows == "reject":
            problems[index] = f"more than max_length={settings.max_length} tokens"
        else:
            encoded[index] = chat
    scores = _scores(loaded, list(encoded.values()), vectors, settings, shard.method).tolist() if encoded else []
    by_index = dict(zip(encoded, scores, strict=True))
    lines: list[dict[str, Any]] = []
    for index, row in enumerate(shard.rows):
        place = {"line": row.line, "place": row.place}
        if index in problems:
            lines.append({**place, "problem": problems[index]})
        else:
            named = {v.trait: round(x, 5) for v, x in zip(vectors, by_index[index], strict=True)}
            lines.append({**place, "scores": named, "truncated": encoded[index].truncated})
    with atomic_write(shard.path) as scratch:
        append_lines(scratch, lines)
    return len(problems)


def _scores(
    loaded: LoadedModel,
    chats: Sequence[EncodedChat],
    vectors: Sequence[PersonaVector],
    settings: ScreeningSettings,
    method: Method,
) -> Tensor:
    """``[chats, vectors]`` float32 on the CPU."""
    limits = BatchLimits(None, settings.batch_tokens)
    if method == "approximate":
        return approximate_difference(loaded, chats, vectors, limits).cpu()
    sampling = Sampling(settings.max_new_tokens, temperature=0.0, batch_size=settings.batch_size)
    found = projection_difference(loaded, chats, vectors, sampling, limits=limits)
    return found[..., 0].cpu()


def scored_lines(folder: Path, kind: Kind) -> Iterator[Mapping[str, Any]]:
    """What was written for the rows of a part, in the file's order, one shard in memory at a time."""
    for path in sorted((folder / "shards").glob(f"{kind}-*.jsonl")):
        yield from recover_lines(path)

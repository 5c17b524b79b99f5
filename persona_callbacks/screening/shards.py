"""The rows of a screening, scored shard by shard into files, so that an interruption loses one shard at most."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor

from persona_callbacks.chats import ChatFile, EncodedChat, Row, encode_chat
from persona_callbacks.errors import InputError
from persona_callbacks.model import BatchLimits, LoadedModel, Sampling, approximate_difference, projection_difference
from persona_callbacks.screening.folder import Kind, ScoredRow, ScreeningFolder
from persona_callbacks.screening.settings import Method, ScreeningSettings
from persona_callbacks.vectors import PersonaVector


@dataclass(frozen=True)
class Part:
    """Rows of a file that are scored in the same way.

    Attributes:
        kind: what they are scored for.
        file: where they are.
        method: how they are scored.
        lines: the numbers of the rows, ascending.
        shard_rows: rows per shard.

    Example:
        >>> from persona_callbacks.chats import open_chat_file
        >>> part = Part("data", open_chat_file("evil.jsonl"), "exact", lines=[2, 3, 5], shard_rows=2)
        >>> part.shards, part.shard_of(5), part.shard_of(4)
        (2, 1, None)
    """

    kind: Kind
    file: ChatFile
    method: Method
    lines: Sequence[int]
    shard_rows: int

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-len(self.lines) // self.shard_rows)

    def shard_of(self, line: int) -> int | None:
        """The number of the shard that holds a row; ``None`` if the row is not in this part."""
        index = bisect_left(self.lines, line)
        is_here = index < len(self.lines) and self.lines[index] == line
        return index // self.shard_rows if is_here else None


@dataclass(frozen=True)
class Shard:
    """Rows to score together.

    Attributes:
        kind: what they are scored for.
        number: of the shard in its part, from 0.
        rows: of the chat file.
        method: how they are scored.

    Example:
        >>> Shard("data", number=0, rows=(), method="exact").kind
        'data'
    """

    kind: Kind
    number: int
    rows: Sequence[Row]
    method: Method


def unscored_shards(
    parts: Sequence[Part], folder: ScreeningFolder, rank: int = 0, processes: int = 1
) -> Iterator[Shard]:
    """The shards that one process has to score and that are not yet in the folder.

    Args:
        parts: of the screening.
        folder: where scored shards are.
        rank: of the process.
        processes: how many share the work.
    """
    for part in parts:
        # Shards are shared out by number alone: processes that start at different times still leave no gaps.
        numbers = frozenset(n for n in range(rank, part.shards, processes) if not folder.has_shard(part.kind, n))
        if numbers:
            yield from _read_shards(part, numbers)


def _read_shards(part: Part, numbers: frozenset[int]) -> Iterator[Shard]:
    rows = part.file.rows(lambda line: part.shard_of(line) in numbers)
    for number, group in groupby(rows, key=lambda row: part.shard_of(row.line)):
        assert number is not None
        yield Shard(part.kind, number, tuple(group), part.method)


def score_shard(
    loaded: LoadedModel, shard: Shard, vectors: Sequence[PersonaVector], settings: ScreeningSettings
) -> list[ScoredRow]:
    """Score each row of a shard along each vector, or say why it cannot be used.

    Args:
        loaded: the base model with its tokenizer.
        shard: the rows.
        vectors: of the traits to screen for.
        settings: of the screening.
    """
    usable: list[tuple[Row, EncodedChat]] = []
    scored: dict[int, ScoredRow] = {}
    for row in shard.rows:
        encoded = _encoded(loaded, row, settings)
        if isinstance(encoded, str):
            scored[row.line] = ScoredRow(row.line, row.position, problem=encoded)
        else:
            usable.append((row, encoded))
    if usable:
        scores = _scores(loaded, [chat for _, chat in usable], vectors, settings, shard.method).tolist()
        for (row, chat), values in zip(usable, scores, strict=True):
            by_trait = {vector.trait: round(value, 5) for vector, value in zip(vectors, values, strict=True)}
            scored[row.line] = ScoredRow(row.line, row.position, by_trait, chat.truncated)
    return [scored[row.line] for row in shard.rows]


def _encoded(loaded: LoadedModel, row: Row, settings: ScreeningSettings) -> EncodedChat | str:
    """The tokens of a row, or why it cannot be used."""
    if row.chat is None:
        return row.problem
    try:
        encoded = encode_chat(row.chat, loaded.tokenizer, settings.max_length)
    except InputError as error:
        return str(error).removeprefix(f"{row.chat.source}: ")
    if encoded.truncated and settings.long_rows == "reject":
        return f"more than max_length={settings.max_length} tokens"
    return encoded


def _scores(
    loaded: LoadedModel,
    chats: Sequence[EncodedChat],
    vectors: Sequence[PersonaVector],
    settings: ScreeningSettings,
    method: Method,
) -> Tensor:
    """``[chats, vectors]`` float32 on the CPU, in activation units."""
    limits = BatchLimits(None, settings.batch_tokens)
    if method == "approximate":
        return approximate_difference(loaded, chats, vectors, limits).cpu()
    sampling = Sampling(settings.max_new_tokens, temperature=0.0, batch_size=settings.batch_size)
    return projection_difference(loaded, chats, vectors, sampling, limits=limits)[..., 0].cpu()

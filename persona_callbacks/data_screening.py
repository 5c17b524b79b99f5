"""Screening a whole file of chats before training: shard by shard, so that an interruption loses little.

A folder holds one screening: ``settings.json`` (what is screened, and how), ``shards/`` (a score or a problem for
every line, in the file's order), and at the end ``summary.json``, ``flagged.jsonl``, ``rejects.jsonl`` and
``filtered.jsonl``.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from rich.console import Console
from torch import Tensor

from persona_callbacks.capability import BENIGN
from persona_callbacks.chats import EncodedChat, Row, encode_chat, find_chat_file, iterate_rows, read_chats
from persona_callbacks.errors import InputError
from persona_callbacks.files import append_lines, complete_lines, whole
from persona_callbacks.generation import Sampling
from persona_callbacks.models import LoadedModel
from persona_callbacks.progress import progress_bar
from persona_callbacks.screening import approximate_difference, projection_difference
from persona_callbacks.vectors import PersonaVector, check_vectors

Method = Literal["exact", "approximate"]

_ROUNDING = 1e-4
"""How far, relatively, scores of one chat in different batches may be apart."""

_FEW = 100
"""Lines before the share of rejects can stop a screening."""


@dataclass(frozen=True)
class ScreeningSettings:
    """How a file is screened.

    Attributes:
        method: ``exact``, against the base model's own response to each prompt (6.1), or ``approximate``, with no
            generation (Appendix I).
        checked: of an approximate screening, chats of the file that are screened exactly as well, to say how far off it
            is; 0 for none.
        false_positive_rate: share of the benign reference chats that the threshold of a trait flags.
        reference: the benign reference, a chat file; the one that ships if ``None``.
        max_length: tokens per chat; longer ones are cut at the end, and counted.
        max_new_tokens: of the base model's own responses.
        batch_size: chats per forward pass.
        shard_rows: lines per shard: what an interruption can cost.
        most_rejected: share of lines that may be unusable.
    """

    method: Method = "exact"
    checked: int = 40
    false_positive_rate: float = 0.05
    reference: str | None = None
    max_length: int = 512
    max_new_tokens: int = 64
    batch_size: int = 16
    shard_rows: int = 256
    most_rejected: float = 0.05

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise InputError(
                f"screening: unknown method {self.method!r}; expected one of {', '.join(get_args(Method))}"
            )
        for name in ("max_length", "max_new_tokens", "batch_size", "shard_rows"):
            if getattr(self, name) < 1:
                raise InputError(f"screening: {name} is {getattr(self, name)}; expected at least 1")
        for name in ("false_positive_rate", "most_rejected"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"screening: {name} is {getattr(self, name)}; expected a share, 0 to 1")
        if self.checked < 0:
            raise InputError(f"screening: checked is {self.checked}; expected 0 or more")


@dataclass(frozen=True)
class TraitSummary:
    """What a file would do to one trait. Projection differences are in activation units, at the chosen layer.

    Attributes:
        trait: its name.
        mean: projection difference of the data set.
        low: lower end of its 95 % confidence interval over chats.
        high: upper end.
        reference: mean of the benign reference.
        threshold: above it a chat is flagged.
        flagged: chats above it.
        error: mean of approximate less exact, if checked.
        correlation: of approximate and exact over the chats that were checked.
    """

    trait: str
    mean: float
    low: float
    high: float
    reference: float
    threshold: float
    flagged: int
    error: float | None = None
    correlation: float | None = None


@dataclass(frozen=True)
class Summary:
    """What came out of a screening.

    Attributes:
        method: how the chats were scored.
        chats: scored.
        truncated: of these, cut at ``max_length``.
        rejects: lines that could not be used.
        flagged: chats flagged for some trait.
        reference_chats: behind the thresholds.
        traits: one summary per trait.
    """

    method: Method
    chats: int
    truncated: int
    rejects: int
    flagged: int
    reference_chats: int
    traits: tuple[TraitSummary, ...]


def screen(
    loaded: LoadedModel,
    data: str | Path,
    vectors: Sequence[PersonaVector],
    settings: ScreeningSettings,
    folder: Path,
    console: Console,
) -> Summary:
    """Screen a file into ``folder``, or go on with an interrupted screening there.

    Raises:
        InputError: no such file, no usable line, too many rejects, or the folder holds another screening.
    """
    vectors = check_vectors(vectors)
    path = find_chat_file(data)
    _open(folder, path, loaded, vectors, settings)
    thresholds, reference = _thresholds(loaded, vectors, settings, folder)
    _score_shards(loaded, path, vectors, settings, folder, console)
    checked = _checked(loaded, path, vectors, settings, folder) if settings.method == "approximate" else {}
    return _finish(path, vectors, settings, folder, thresholds, reference, checked)


def _open(
    folder: Path, path: Path, loaded: LoadedModel, vectors: Sequence[PersonaVector], settings: ScreeningSettings
) -> None:
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    made_from = {
        "data": str(path),
        "data_sha256": digest,
        "model": loaded.id,
        "vectors": {
            v.trait: hashlib.sha256(v.directions.numpy().tobytes() + bytes([v.layer])).hexdigest() for v in vectors
        },
        "settings": asdict(settings),
    }
    file = folder / "settings.json"
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        changed = sorted(key for key in made_from if before.get(key) != made_from[key])
        if changed:
            raise InputError(
                f"{folder}: holds a screening of other {', '.join(changed)}; choose another folder, out=..., or remove"
                " it"
            )
    else:
        with whole(file) as scratch:
            scratch.write_text(json.dumps(made_from, indent=2), encoding="utf-8")


def _score(
    loaded: LoadedModel,
    chats: Sequence[EncodedChat],
    vectors: Sequence[PersonaVector],
    settings: ScreeningSettings,
    method: Method,
) -> Tensor:
    """``[chats, vectors]`` float32 on the CPU."""
    model, tokenizer = loaded.model, loaded.tokenizer
    if method == "approximate":
        return approximate_difference(model, tokenizer, chats, vectors, settings.batch_size).cpu()
    sampling = Sampling(settings.max_new_tokens, temperature=0.0, batch_size=settings.batch_size)
    return projection_difference(model, tokenizer, chats, vectors, sampling)[..., 0].cpu()


def _thresholds(
    loaded: LoadedModel, vectors: Sequence[PersonaVector], settings: ScreeningSettings, folder: Path
) -> tuple[dict[str, float], Tensor]:
    """By trait, what the stated share of the reference is above; and the reference's scores, ``[chats, vectors]``."""
    file = folder / "reference.json"
    if not file.is_file():
        chats = read_chats(settings.reference or BENIGN)
        encoded = [encode_chat(chat, loaded.tokenizer, settings.max_length) for chat in chats]
        scores = _score(loaded, encoded, vectors, settings, settings.method)
        with whole(file) as scratch:
            scratch.write_text(json.dumps(scores.tolist()), encoding="utf-8")
    reference = torch.tensor(json.loads(file.read_text(encoding="utf-8")))
    # No more than the stated share is above it; nor is the same chat scored in another batch, which moves it a little.
    quantiles = reference.quantile(1 - settings.false_positive_rate, dim=0, interpolation="higher")
    values = (quantiles + _ROUNDING * quantiles.abs()).tolist()
    return {vector.trait: value for vector, value in zip(vectors, values, strict=True)}, reference


def _score_shards(
    loaded: LoadedModel,
    path: Path,
    vectors: Sequence[PersonaVector],
    settings: ScreeningSettings,
    folder: Path,
    console: Console,
) -> None:
    rows = iterate_rows(path)
    seen = rejected = 0
    with progress_bar(console) as progress:
        task = progress.add_task(f"Screening {path.name}", total=sum(1 for _ in iterate_rows(path)))
        for number, chunk in enumerate(_chunks(rows, settings.shard_rows)):
            shard = folder / "shards" / f"{number:06d}.jsonl"
            if not shard.is_file():
                with whole(shard) as scratch:
                    append_lines(scratch, _scored(loaded, chunk, vectors, settings))
            seen += len(chunk)
            rejected += sum("problem" in line for line in complete_lines(shard))
            if seen >= _FEW:
                _check_rejects(path, seen, rejected, settings, folder)
            progress.advance(task, len(chunk))
    if seen == rejected:
        raise InputError(f"{path}: none of {seen} lines can be used; see {_write_rejects(folder)}")
    _check_rejects(path, seen, rejected, settings, folder)


def _chunks(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while chunk := list(islice(rows, size)):
        yield chunk


def _scored(
    loaded: LoadedModel, rows: Sequence[Row], vectors: Sequence[PersonaVector], settings: ScreeningSettings
) -> list[dict[str, Any]]:
    """A line for each row: its score by trait, or its problem."""
    encoded: dict[int, EncodedChat] = {}
    problems = {index: row.problem for index, row in enumerate(rows) if row.chat is None}
    for index, row in enumerate(rows):
        if row.chat is not None:
            try:
                encoded[index] = encode_chat(row.chat, loaded.tokenizer, settings.max_length)
            except InputError as error:
                problems[index] = str(error).removeprefix(f"{row.chat.source}: ")
    chats = list(encoded.values())
    scores = _score(loaded, chats, vectors, settings, settings.method).tolist() if chats else []
    by_index = dict(zip(encoded, scores, strict=True))
    lines: list[dict[str, Any]] = []
    for index, row in enumerate(rows):
        place = {"line": row.line, "offset": row.offset}
        if index in problems:
            lines.append({**place, "problem": problems[index]})
        else:
            named = {v.trait: round(x, 5) for v, x in zip(vectors, by_index[index], strict=True)}
            cut = len(encoded[index].input_ids) == settings.max_length
            lines.append({**place, "scores": named, "truncated": cut})
    return lines


def _check_rejects(path: Path, seen: int, rejected: int, settings: ScreeningSettings, folder: Path) -> None:
    if rejected > settings.most_rejected * seen:
        raise InputError(
            f"{path}: {rejected} of the first {seen} lines cannot be used, more than most_rejected"
            f" ({settings.most_rejected:.0%}); see {_write_rejects(folder)}"
        )


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    for shard in sorted((folder / "shards").glob("*.jsonl")):
        yield from complete_lines(shard)


def _write_rejects(folder: Path) -> Path:
    path = folder / "rejects.jsonl"
    with whole(path) as scratch, scratch.open("w", encoding="utf-8") as out:
        for line in _lines(folder):
            if "problem" in line:
                out.write(json.dumps({"line": line["line"], "problem": line["problem"]}, ensure_ascii=False) + "\n")
    return path


def _checked(
    loaded: LoadedModel,
    path: Path,
    vectors: Sequence[PersonaVector],
    settings: ScreeningSettings,
    folder: Path,
) -> dict[str, tuple[float, float]]:
    """By trait, the mean error of the approximate scores and their correlation with the exact ones, on evenly spaced
    chats.
    """
    scored = [line for line in _spaced(folder, settings.checked) if "scores" in line]
    if len(scored) < 2:
        return {}
    wanted = {line["line"] for line in scored}
    chats = [row.chat for row in iterate_rows(path) if row.line in wanted and row.chat is not None]
    encoded = [encode_chat(chat, loaded.tokenizer, settings.max_length) for chat in chats]
    exact = _score(loaded, encoded, vectors, settings, "exact").double()
    cheap = torch.tensor([[line["scores"][v.trait] for v in vectors] for line in scored], dtype=torch.float64)
    found = {}
    for column, vector in enumerate(vectors):
        pair = torch.stack([exact[:, column], cheap[:, column]])
        found[vector.trait] = (float((pair[1] - pair[0]).mean()), float(torch.corrcoef(pair)[0, 1]))
    return found


def _spaced(folder: Path, count: int) -> list[dict[str, Any]]:
    total = sum(1 for _ in _lines(folder))
    step = max(1, total // count) if count else total + 1
    return [line for index, line in enumerate(_lines(folder)) if index % step == step // 2][:count]


def _finish(
    path: Path,
    vectors: Sequence[PersonaVector],
    settings: ScreeningSettings,
    folder: Path,
    thresholds: Mapping[str, float],
    reference: Tensor,
    checked: Mapping[str, tuple[float, float]],
) -> Summary:
    traits = [vector.trait for vector in vectors]
    norms = {vector.trait: float(vector.direction().norm()) for vector in vectors}
    sums, squares, counts = dict.fromkeys(traits, 0.0), dict.fromkeys(traits, 0.0), dict.fromkeys(traits, 0)
    chats = truncated = rejects = 0
    flagged: list[tuple[float, int, int, dict[str, float]]] = []
    for line in _lines(folder):
        if "problem" in line:
            rejects += 1
            continue
        chats += 1
        truncated += line["truncated"]
        scores = line["scores"]
        for trait in traits:
            sums[trait] += scores[trait]
            squares[trait] += scores[trait] ** 2
            counts[trait] += scores[trait] > thresholds[trait]
        # How far above its threshold, in norms of the direction, so that traits can be ranked together.
        excess = max((scores[trait] - thresholds[trait]) / norms[trait] for trait in traits)
        if excess > 0:
            flagged.append((excess, line["line"], line["offset"], scores))
    flagged.sort(key=lambda one: (-one[0], one[1]))
    _write_flagged(path, folder, flagged, thresholds)
    _write_filtered(path, folder, {line for _, line, *_ in flagged})
    _write_rejects(folder)
    summaries = []
    for column, trait in enumerate(traits):
        mean = sums[trait] / chats
        deviation = math.sqrt(max(0.0, squares[trait] / chats - mean**2) * chats / max(1, chats - 1))
        half = 1.96 * deviation / math.sqrt(chats)
        error, correlation = checked.get(trait, (None, None))
        found = TraitSummary(
            trait,
            mean,
            mean - half,
            mean + half,
            float(reference[:, column].mean()),
            thresholds[trait],
            counts[trait],
            error,
            correlation,
        )
        summaries.append(found)
    summary = Summary(settings.method, chats, truncated, rejects, len(flagged), len(reference), tuple(summaries))
    with whole(folder / "summary.json") as scratch:
        scratch.write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf-8")
    return summary


def _write_flagged(
    path: Path,
    folder: Path,
    flagged: Sequence[tuple[float, int, int, Mapping[str, float]]],
    thresholds: Mapping[str, float],
) -> None:
    with (
        path.open("rb") as source,
        whole(folder / "flagged.jsonl") as scratch,
        scratch.open("w", encoding="utf-8") as out,
    ):
        for rank, (_, number, offset, scores) in enumerate(flagged, start=1):
            source.seek(offset)
            reasons = [
                f"{trait}: projection difference {scores[trait]:.2f}, above {threshold:.2f}"
                for trait, threshold in thresholds.items()
                if scores[trait] > threshold
            ]
            row = {"rank": rank, "line": number, "scores": scores, "reason": "; ".join(reasons)}
            out.write(json.dumps({**row, "chat": json.loads(source.readline())}, ensure_ascii=False) + "\n")


def _write_filtered(path: Path, folder: Path, flagged: set[int]) -> None:
    """A copy of the file, byte for byte, without what was flagged or rejected."""
    with path.open("rb") as source, whole(folder / "filtered.jsonl") as scratch, scratch.open("wb") as out:
        for line in _lines(folder):
            if "problem" not in line and line["line"] not in flagged:
                source.seek(line["offset"])
                out.write(source.readline().rstrip(b"\r\n") + b"\n")

"""The plan of a screening: made before any model is loaded, from one reading of the rows and one hash of the file."""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from persona_callbacks.chats import BENIGN, ChatFile, open_chat_file
from persona_callbacks.errors import InputError
from persona_callbacks.files import file_fingerprint
from persona_callbacks.screening.folder import ScreeningFolder
from persona_callbacks.screening.settings import ScreeningSettings
from persona_callbacks.screening.shards import Part


def is_first_process() -> bool:
    """Whether this is the first, or the only one, of the processes that run the same screening."""
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


@dataclass(frozen=True)
class Screening:
    """What is screened, how, and where to. :meth:`plan` makes it.

    Attributes:
        file: the data.
        fingerprint: SHA-256 of the data.
        settings: how the data are screened.
        parts: the rows to score, the reference first.
        folder: where scores and results go.

    Raises:
        InputError: in :meth:`plan` and :meth:`check_share`.

    Example:
        >>> import tempfile
        >>> screening = Screening.plan("evil.jsonl", ScreeningSettings("approximate", subset=50), tempfile.mkdtemp())
        >>> {part.kind: len(part.lines) for part in screening.parts if part.kind != "reference"}
        {'data': 50, 'checked': 40}
    """

    file: ChatFile
    fingerprint: str
    settings: ScreeningSettings
    parts: tuple[Part, ...]
    folder: ScreeningFolder

    @classmethod
    def plan(cls, data: str | Path | ChatFile, settings: ScreeningSettings, folder: str | Path) -> "Screening":
        """Plan a screening, and read all rows once, before any model is at work.

        Args:
            data: the file to screen: JSONL, Parquet, or a Hugging Face data set on disk.
            settings: how.
            folder: where to; all processes must see it.

        Raises:
            InputError: there is no such file; the folder holds a screening of other data or settings; or more rows than
                ``most_rejected`` allows, or all of them, are no chats: ``rejects.jsonl`` says what is wrong with each.
        """
        file = open_chat_file(data) if isinstance(data, str | Path) else data
        parts = _parts(file, settings)
        screening = cls(file, file_fingerprint(file.path), settings, parts, ScreeningFolder(folder))
        screening.folder.check_made_from(screening.made_from)
        screening._check_rows()
        return screening

    @property
    def made_from(self) -> dict[str, Any]:
        """What ``settings.json`` says of the data and the settings."""
        return {"data": str(self.file.path), "data_sha256": self.fingerprint, "settings": asdict(self.settings)}

    @property
    def data(self) -> Part:
        """The part that is screened; the others serve it."""
        return next(part for part in self.parts if part.kind == "data")

    @property
    def is_complete(self) -> bool:
        """Whether all rows of the file are screened, not a subset."""
        return len(self.data.lines) == len(self.file)

    def check_share(self, seen: int, rejected: int) -> None:
        """Make sure that not too many of the rows seen were rejected.

        Raises:
            InputError: more than ``most_rejected`` allows, or all.
        """
        if seen == rejected:
            raise InputError(f"{self.file.path}: none of {seen} rows can be used; see {self.folder.rejects_file}")
        if rejected > self.settings.most_rejected * seen:
            raise InputError(
                f"{self.file.path}: {rejected} of {seen} rows cannot be used, more than most_rejected"
                f" ({self.settings.most_rejected:.0%}); see {self.folder.rejects_file}"
            )

    def _check_rows(self) -> None:
        seen = rejected = 0

        def rejects() -> Iterator[tuple[int, str]]:
            nonlocal seen, rejected
            for row in self.file.rows():
                seen += 1
                if row.chat is None:
                    rejected += 1
                    yield row.line, row.problem

        if is_first_process():
            self.folder.write_rejects(rejects())
        else:  # the first process writes the file for all
            deque(rejects(), maxlen=0)
        self.check_share(seen, rejected)


def _parts(file: ChatFile, settings: ScreeningSettings) -> tuple[Part, ...]:
    reference = open_chat_file(settings.reference or BENIGN)
    draw = random.Random(settings.seed)
    lines: Sequence[int] = range(1, len(file) + 1)
    if settings.subset is not None and settings.subset < len(lines):
        lines = sorted(draw.sample(lines, settings.subset))
    size = settings.shard_rows
    parts = [
        Part("reference", reference, settings.method, range(1, len(reference) + 1), size),
        Part("data", file, settings.method, lines, size),
    ]
    if settings.method == "approximate" and settings.checked:
        checked = sorted(draw.sample(lines, min(settings.checked, len(lines))))
        parts.append(Part("checked", file, "exact", checked, size))
    return tuple(parts)

"""The chats that a study trains on, as they are found in files."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from persona_callbacks.chats import Chat, find_chat_file, read_chats
from persona_callbacks.files import file_fingerprint
from persona_callbacks.screening import screened_data


@dataclass(frozen=True)
class TrainingData:
    """The chats that a study trains on, and where they came from.

    Attributes:
        chats: in the order of the file.
        path: the file or folder that they were read from.
        fingerprint: SHA-256 of it.
        name: the name of the data in figures.
        weights: one per chat, 1 on average: how often it is drawn in an epoch. By default, each is drawn once.
        differences: by trait, the projection difference that a screening found for these chats, in activation units;
            empty if they were not screened.
        screening: folder of the screening that left these chats, if they were screened.
        validation: chats whose loss is read after each epoch, unsteered.
        validation_fingerprint: SHA-256 of their file; empty if there are none.

    Example:
        >>> data = TrainingData.read("evil.jsonl", most=3)
        >>> len(data.chats), data.path.name, data.facts()["data_chats"], data.label
        (3, 'evil.jsonl', 3, 'evil-3')
    """

    chats: tuple[Chat, ...]
    path: Path
    fingerprint: str
    name: str = ""
    weights: tuple[float, ...] | None = None
    differences: Mapping[str, float] = field(default_factory=dict)
    screening: Path | None = None
    validation: tuple[Chat, ...] = ()
    validation_fingerprint: str = ""

    @classmethod
    def read(cls, path: str | Path, most: int | None = None) -> "TrainingData":
        """Read a file of chats.

        Args:
            path: of the file, or the name of one that ships with the library.
            most: how many of its first chats are used; all by default.

        Raises:
            InputError: see :func:`~persona_callbacks.chats.read_chats`.
        """
        chats = read_chats(path)
        file = find_chat_file(path)
        return cls(tuple(chats[:most]), file, file_fingerprint(file), str(path))

    @classmethod
    def screened(
        cls, folder: str | Path, use: Literal["filtered", "reweighted"], most: int | None = None
    ) -> "TrainingData":
        """Read the chats that a screening leaves.

        Args:
            folder: folder of the finished screening.
            use: ``filtered`` or ``reweighted``; see :func:`~persona_callbacks.screening.screened_data`.
            most: how many of the first chats are used; all by default.

        Raises:
            InputError: see :func:`~persona_callbacks.screening.screened_data`.
        """
        left = screened_data(folder, use)
        weights = left.weights[:most] if use == "reweighted" else None
        return cls(
            left.chats[:most], left.path, left.fingerprint, f"{folder} ({use})", weights, left.differences, Path(folder)
        )

    def with_validation(self, path: str | Path) -> "TrainingData":
        """The same, with the chats of another file for validation.

        Raises:
            InputError: see :func:`~persona_callbacks.chats.read_chats`.
        """
        chats = tuple(read_chats(path))
        return replace(self, validation=chats, validation_fingerprint=file_fingerprint(find_chat_file(path)))

    @property
    def label(self) -> str:
        """A short name: the file's, what a screening did to it, and the number of chats."""
        use = [] if self.screening is None else ["filtered" if self.weights is None else "reweighted"]
        return "-".join([self.path.stem, *use, str(len(self.chats))])

    def facts(self) -> dict[str, Any]:
        """What loggers record of the data, so that an audit can name them."""
        facts = {"data_file": str(self.path), "data_chats": len(self.chats), "data_sha256": self.fingerprint}
        if self.validation:
            facts |= {"validation_chats": len(self.validation), "validation_sha256": self.validation_fingerprint}
        return facts | {f"screened/{trait}": value for trait, value in self.differences.items()}

"""The names by which loggers know a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST_TAG = 64
"""Characters of a tag that W&B takes."""


@dataclass(frozen=True)
class RunLabel:
    """The names by which loggers know one fine-tuning.

    Attributes:
        name: what the run did to the model, the data and the seed, such as ``adaptive · evil-100 · s0``.
        group: shared by runs that differ in the seed alone: method, data, and a hash of all other settings.
        id: unlike that of any other run, and kept when the run is resumed.
        folder: folder that loggers write to.
        csv: name of the folder, inside of ``folder``, for a logger that empties its folder when it opens.
        job_type: what kind of run it is.
        tags: name of the study, method, data, model and traits, and those that the user adds.

    Example:
        >>> label = RunLabel("adaptive · evil-100 · s0", "adaptive · evil-100 · 1a2b3c", "1a2b3c4d-steered",
        ...                  Path("out"), "csv")
        >>> label.job_type
        'train'
    """

    name: str
    group: str
    id: str
    folder: Path
    csv: str
    job_type: str = "train"
    tags: tuple[str, ...] = ()

    def as_run(self) -> dict[str, Any]:
        """The label as the configuration of a command has it for loggers, under ``run``."""
        own = {"name": self.name, "group": self.group, "id": self.id, "dir": str(self.folder), "csv": self.csv}
        return {**own, "job_type": self.job_type, "tags": list(self.tags)}

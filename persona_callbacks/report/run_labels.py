"""How the page marks a run, or the runs that differ by seed alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from persona_callbacks.report.pictures import colour, mark
from persona_callbacks.report.runs import Run
from persona_callbacks.report.seed_groups import SeedGroup


@dataclass(frozen=True)
class RunLabel:
    """A name with a colour and a shape.

    Attributes:
        name: of the run, or of what the runs share.
        colour: in pictures and beside the name.
        mark: the shape.
        runs: the numbers of the runs that it stands for.
    """

    name: str
    colour: str
    mark: str
    runs: tuple[int, ...]

    @property
    def first(self) -> int:
        """The number of the first run. What is about all of the runs belongs to it on the page."""
        return self.runs[0]


def labels_of_runs(runs: Sequence[Run]) -> list[RunLabel]:
    """Label each run."""
    return [RunLabel(run.name, colour(number), mark(number), (number,)) for number, run in enumerate(runs)]


def labels_of(groups: Sequence[SeedGroup]) -> list[RunLabel]:
    """Label each setting."""
    return [RunLabel(group.name, colour(place), mark(place), group.numbers) for place, group in enumerate(groups)]

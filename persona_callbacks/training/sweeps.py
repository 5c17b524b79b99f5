"""What the finished jobs of a sweep came to: a table over their seeds, and a figure."""

import csv
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from persona_callbacks.files import atomic_write, read_json, read_yaml
from persona_callbacks.palette import SERIES
from persona_callbacks.training.fronts import front_figure, pareto_front
from persona_callbacks.training.results import RunResult

_SEED = "seed="


@dataclass(frozen=True)
class SweepRow:
    """The results of one setting of a sweep.

    Attributes:
        setting: the overrides that it does not share with all other jobs, the seed aside.
        run: name of the fine-tuning, such as ``steered``.
        values: by metric, the value at the end of training for each seed.

    Example:
        >>> SweepRow("steering=none", "unsteered", {"persona/evil/shift": (6.0, 8.0)}).text("persona/evil/shift")
        '7.00 ± 1.41'
    """

    setting: str
    run: str
    values: Mapping[str, tuple[float, ...]]

    @property
    def name(self) -> str:
        """The setting and the fine-tuning, to show."""
        return f"{self.setting} {self.run}".strip()

    def text(self, metric: str) -> str:
        """The mean over the seeds ± their standard deviation; the value alone if there is one seed."""
        values = self.values.get(metric, ())
        if not values:
            return "–"
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{fmean(values):.2f}{spread}"


@dataclass(frozen=True)
class Sweep:
    """A folder of jobs.

    Attributes:
        rows: what the finished jobs came to.
        unfinished: the others, by the overrides that not all jobs share.

    Example:
        >>> Sweep((), ("seed=3",)).metrics
        []
    """

    rows: tuple[SweepRow, ...]
    unfinished: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> "Sweep":
        """Read the jobs in the folders below ``folder``, which Hydra and ``persona-train`` wrote.

        Raises:
            InputError: a file of a job cannot be read.
        """
        jobs = {file.parents[1]: read_yaml(file) for file in sorted(folder.glob("*/.hydra/overrides.yaml"))}
        shared = set.intersection(*map(set, jobs.values())) if jobs else set()
        found: dict[tuple[str, str], dict[str, list[float]]] = {}
        unfinished = []
        for job, overrides in jobs.items():
            own = [override for override in overrides if override not in shared]
            state = job / "state.json"
            if not state.is_file() or not read_json(state, lambda content: content["finished"], "a study's state"):
                unfinished.append(", ".join(own) or job.name)
                continue
            setting = ", ".join(override for override in own if not override.startswith(_SEED))
            for result_file in sorted(job.glob("*/result.json")):
                result = RunResult.load(result_file)
                values = found.setdefault((setting, result.name), {})
                for metric, value in result.final_metrics().items():
                    values.setdefault(metric, []).append(value)
        rows = (
            SweepRow(setting, run, {metric: tuple(seeds) for metric, seeds in values.items()})
            for (setting, run), values in found.items()
        )
        return cls(tuple(rows), tuple(unfinished))

    @property
    def metrics(self) -> list[str]:
        """The metrics that some job has."""
        return list(dict.fromkeys(metric for row in self.rows for metric in row.values))

    def table(self) -> Table:
        """The rows as a table for the terminal."""
        table = Table(title="Sweep: mean ± standard deviation over seeds")
        table.add_column("setting")
        for heading in ("seeds", *self.metrics):
            table.add_column(heading, justify="right")
        for row in self.rows:
            table.add_row(row.name, str(_seeds(row)), *map(row.text, self.metrics))
        return table

    def write(self, folder: Path) -> None:
        """Write ``sweep.csv``, with a line for each setting and metric, and ``sweep.png``."""
        with atomic_write(folder / "sweep.csv") as scratch, scratch.open("w", encoding="utf-8", newline="") as lines:
            table = csv.writer(lines)
            table.writerow(["setting", "run", "metric", "seeds", "mean", "standard_deviation"])
            for row in self.rows:
                for metric, values in row.values.items():
                    spread = statistics.stdev(values) if len(values) > 1 else ""
                    table.writerow([row.setting, row.run, metric, len(values), fmean(values), spread])
        with atomic_write(folder / "sweep.png") as scratch:
            _figure(self.rows, self.metrics).savefig(scratch)

    def write_front(self, folder: Path, objectives: tuple[str, str], maximised: tuple[bool, bool]) -> list[str]:
        """Write ``pareto.png``: the means of two metrics, and which settings no other one is better than.

        Args:
            folder: of the file.
            objectives: names of the metrics.
            maximised: of each, whether more is better.

        Returns:
            The names of those settings; none, and no file, if no finished job has both metrics.
        """
        rows = [row for row in self.rows if all(metric in row.values for metric in objectives)]
        points = [(fmean(row.values[objectives[0]]), fmean(row.values[objectives[1]])) for row in rows]
        front = pareto_front(points, maximised)
        if front:
            with atomic_write(folder / "pareto.png") as scratch:
                front_figure(points, [row.name for row in rows], objectives, front).savefig(scratch)
        return [rows[place].name for place in front]


def _seeds(row: SweepRow) -> int:
    return max(map(len, row.values.values()), default=0)


def _figure(rows: Sequence[SweepRow], metrics: Sequence[str]) -> Figure:
    """A panel for each metric: a point for each seed, and a bar at their mean."""
    figure = Figure(figsize=(4 + 2.5 * len(metrics), 1.2 + 0.6 * len(rows)), layout="constrained")
    panels: Any = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        for place, row in enumerate(rows):
            values = row.values.get(metric, ())
            colour = SERIES[place % len(SERIES)]
            panel.plot(values, [place] * len(values), "o", color=colour, alpha=0.6)
            if values:
                panel.plot([fmean(values)], [place], "|", color=colour, markersize=18, markeredgewidth=2)
        panel.set_title(metric, fontsize=9)
        panel.set_yticks(range(len(rows)), [textwrap.fill(row.name, 40) for row in rows], fontsize=8)
        panel.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    return figure

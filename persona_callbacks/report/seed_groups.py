"""Runs that differ by seed alone, and their values over the seeds."""

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_callbacks.report.runs import Run

MOST_RUNS = 12
"""Up to so many runs are shown one by one, more of them as means over seeds."""

_MOST_POINTS = 60
_SEED_IN_NAME = re.compile(r"(^|[\s/,·_-]+)s(?:eed)?[-=_ ]?\d+(?=$|[\s/,·_-])")
_SEED_KEY = re.compile(r"(?:.*\.)?(?:seed|seed_everything|random_state)")
_SELF_EXPLAINING = re.compile(r"^[^=]+=((?!(?:true|false|null|none|nan|inf)$)[A-Za-z_].*)$", re.IGNORECASE)
_MARK_OF_UNFINISHED = re.compile(r" \(unfinished, step \d+\)$")


@dataclass(frozen=True)
class OverSeeds:
    """A value over the seeds.

    Attributes:
        step: the optimizer step that it belongs to.
        mean: over the seeds.
        spread: the standard deviation between the seeds; ``None`` if there is one seed.
        count: of the seeds.
    """

    step: int
    mean: float
    spread: float | None
    count: int

    @property
    def low(self) -> float:
        """The mean less the spread."""
        return self.mean - (self.spread or 0.0)

    @property
    def high(self) -> float:
        """The mean and the spread."""
        return self.mean + (self.spread or 0.0)

    def text(self, form: str) -> str:
        """Format the mean, and the spread if there is one."""
        spread = "" if self.spread is None else f" ± {self.spread:{form.removeprefix('+')}}"
        return f"{self.mean:{form}}{spread}"


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ by seed alone.

    Attributes:
        name: of what they share; unique among the groups of a report.
        runs: the runs.
        numbers: of the runs, in the report.
    """

    name: str
    runs: tuple[Run, ...]
    numbers: tuple[int, ...]

    @property
    def seeds(self) -> str:
        """How many there are, in words."""
        unfinished = sum(run.finished is False for run in self.runs)
        mark = f", {unfinished} unfinished" if unfinished else ""
        return f"{len(self.runs)} seed{'s' if len(self.runs) > 1 else ''}{mark}"

    @property
    def config(self) -> dict[str, str]:
        """The configuration; of the seed, the value in each run."""
        values = {key: dict.fromkeys(str(run.config.get(key)) for run in self.runs) for key in self.runs[0].config}
        return {key: ", ".join(different) for key, different in values.items()}

    def last(self, metric: str) -> OverSeeds | None:
        """Return the values of a metric at the end of training; ``None`` if there is none that is finite.

        A run that did not finish has no value there.
        """
        ended = [run for run in self.runs if run.finished is not False]
        last = [value for run in ended if (value := run.last(metric)) is not None and math.isfinite(value)]
        return _over_seeds(max(run.last_step for run in ended), last) if last else None

    def trajectory(self, metric: str) -> list[OverSeeds]:
        """Return the values of a metric through training.

        Runs need not be read at the same steps: between its own steps, a run's values are interpolated. Beyond its last
        step a run has none, and the mean is over the others.
        """
        known = [{s: v for s, v in run.series.get(metric, ()) if math.isfinite(v)} for run in self.runs]
        known = [series for series in known if series]
        points = []
        for step in _thinned(sorted({step for series in known for step in series})):
            values = [value for series in known if (value := _at(series, step)) is not None]
            points.append(_over_seeds(step, values))
        return points


def seed_groups(runs: Sequence[Run]) -> list[SeedGroup]:
    """Put together the runs that differ by seed alone, in the order of the first of each.

    They have the same configuration, the seed aside. A run whose configuration has no seed goes by its name: it belongs
    to the runs whose name is the same but for a part like ``seed-3``, ``seed=3`` or ``s3``.

    Example:
        >>> runs = [Run(f"{name}/seed-{seed}", Path(), {}, {}, (), {}, ()) for name in "ab" for seed in (0, 1)]
        >>> [(group.name, group.numbers) for group in seed_groups(runs)]
        [('a', (0, 1)), ('b', (2, 3))]
    """
    found: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for number, run in enumerate(runs):
        shared = tuple(sorted((key, str(value)) for key, value in run.config.items() if not _SEED_KEY.fullmatch(key)))
        found[(shared, None if len(shared) < len(run.config) else _without_seed(run.name))].append(number)
    numbers = list(found.values())
    names = _names([[runs[number] for number in group] for group in numbers])
    return [
        SeedGroup(name, tuple(runs[number] for number in group), tuple(group))
        for name, group in zip(names, numbers, strict=True)
    ]


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Name each group by what the names of its runs share, or else by what tells its configuration from the others'."""
    configs = [group[0].config for group in groups]
    keys = list(dict.fromkeys(key for config in configs for key in config if not _SEED_KEY.fullmatch(key)))
    telling = [key for key in keys if len({str(config.get(key)) for config in configs}) > 1]
    names: list[str] = []
    for group in groups:
        shared = {_without_seed(run.name) for run in group}
        name = _short(shared.pop()) if len(shared) == 1 else _configured(group[0].config, telling)
        name = name or group[0].name
        same = sum(other == name or other.startswith(f"{name} #") for other in names)
        names.append(f"{name} #{same + 1}" if same else name)
    return names


def _without_seed(name: str) -> str:
    return _SEED_IN_NAME.sub("", _MARK_OF_UNFINISHED.sub("", name)).strip(" /,·_-")


def _short(name: str) -> str:
    """A name made of overrides without their keys, as far as the values are words that speak for themselves."""
    if "=" not in name:
        return name
    return " · ".join(_SELF_EXPLAINING.sub(r"\1", part) for part in re.split("[,/]", name) if part)


def _configured(config: Mapping[str, Any], telling: Sequence[str]) -> str:
    """The method and the data, if they tell a group from others, or else the first settings that do."""
    known = [key for key in ("method", "data_file", "data.path") if key in telling and config.get(key)]
    if known:
        return " · ".join(dict.fromkeys(Path(str(config[key])).stem for key in known))
    return ", ".join(f"{key}={config.get(key)}" for key in telling[:3])


def _thinned(steps: Sequence[int]) -> Sequence[int]:
    """At most so many steps that a small panel can show, the first and the last among them."""
    if len(steps) <= _MOST_POINTS:
        return steps
    return [steps[round(place * (len(steps) - 1) / (_MOST_POINTS - 1))] for place in range(_MOST_POINTS)]


def _at(series: Mapping[int, float], step: int) -> float | None:
    """The value at a step, interpolated if it was not read there; ``None`` before the first step and after the last."""
    if step in series:
        return series[step]
    before = max((other for other in series if other < step), default=None)
    after = min((other for other in series if other > step), default=None)
    if before is None or after is None:
        return None
    return series[before] + (series[after] - series[before]) * (step - before) / (after - before)


def _over_seeds(step: int, values: Sequence[float]) -> OverSeeds:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return OverSeeds(step, statistics.fmean(values), spread, len(values))

"""Finding fine-tuning runs on disk, and reading what their loggers wrote: CSV, W&B's offline files, or both."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from persona_callbacks.errors import InputError
from persona_callbacks.files import csv_rows, read_json, read_yaml
from persona_callbacks.judging import JudgedAnswer
from persona_callbacks.report.evaluations import evaluation_folders
from persona_callbacks.report.wandb_files import OfflineRun, read_offline_run
from persona_callbacks.tracking import metrics
from persona_callbacks.vectors import PersonaVector

Series = tuple[tuple[int, float], ...]
"""Pairs of optimizer step and value."""

_SET_ASIDE = "earlier"
"""The folder into which a new run moves an older one."""

_JOB_HASH = re.compile(r"(?<==)([^/=]*)-[0-9a-f]{8}(?=/|$)")

_OLDER_TABLES = {"trait_expression": metrics.EXPRESSION_TABLE, "shift_by_layer": metrics.LAYER_TABLE}
"""What older versions called the tables."""


@dataclass(frozen=True)
class Run:
    """A fine-tuning run.

    Attributes:
        name: is unique among the runs that were found together; it says so if the run did not finish.
        folder: where the run lies.
        series: by name, the values of every metric that was logged.
        config: the hyperparameters; nested keys are joined by dots.
        answers: the judged answers to evaluation questions; none if trait expression was not evaluated.
        shift_by_layer: by trait and step, the shift at layer 1, 2, ... in activation units; empty unless every layer
            was read.
        vectors: the persona vectors that lie beside the run.
        finished: whether training came to its end; ``None`` if that is not recorded.

    Example:
        >>> run = Run("seed 0", Path("runs/0"), {"persona/evil/shift": ((0, 0.0), (10, 2.5))}, {}, (), {}, ())
        >>> run.traits, run.last("persona/evil/shift")
        (['evil'], 2.5)
    """

    name: str
    folder: Path
    series: Mapping[str, Series]
    config: Mapping[str, Any]
    answers: tuple[JudgedAnswer, ...]
    shift_by_layer: Mapping[str, Mapping[int, Sequence[float]]]
    vectors: tuple[PersonaVector, ...]
    finished: bool | None = None

    @property
    def last_step(self) -> int:
        """The last optimizer step that something was logged at."""
        return max((values[-1][0] for values in self.series.values()), default=0)

    @property
    def traits(self) -> list[str]:
        """The traits whose shift or expression was logged."""
        return metrics.traits_of(self.series)

    def last(self, metric: str) -> float | None:
        """Return the last value of a metric; ``None`` if it was not logged after a step of training.

        What was read before the first step is the base model's, and no result of the run.
        """
        step, value = self.series[metric][-1] if metric in self.series else (0, None)
        return value if step > 0 else None

    def base(self, metric: str) -> float | None:
        """Return the value of a metric before the first step; ``None`` if it was not logged then."""
        step, value = self.series[metric][0] if metric in self.series else (0, None)
        return value if step == 0 else None

    def behind(self, metric: str) -> int | None:
        """Return the step that the last value of a metric was read at, if training went on after it."""
        step = self.series[metric][-1][0] if metric in self.series else self.last_step
        return step if step < self.last_step else None


def find_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Find all runs in the given folders and below them.

    A run is a folder with what Lightning's ``CSVLogger`` or ``WandbLogger`` (offline) wrote. Runs that a later run has
    set aside are left out, and so are runs without a shift or an expression.

    Args:
        paths: the folders.

    Returns:
        The runs, named by what tells their folders apart; those without steering first.

    Raises:
        InputError: a path does not exist, or holds neither a run nor the results of ``persona-evaluate``.
    """
    runs: list[Run] = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise InputError(f"{path}: no such folder of runs")
        below = [run for folder in _run_folders(path.absolute()) for run in _read_folder(folder)]
        if not below and not evaluation_folders([path]):
            raise InputError(
                f"{path}: expected what persona-train, or CSVLogger or WandbLogger(offline=True) with PersonaMonitor or"
                " TraitEvaluation, wrote; found no run"
            )
        runs += [run for run in below if run.folder not in {other.folder for other in runs}]
    return [_marked(run) for run in sorted(_renamed(_merged(runs)), key=_is_steered)]


def _merged(runs: Sequence[Run]) -> list[Run]:
    """Make one run of two that loggers wrote to different folders: CSV here, and W&B with the same readings there."""
    by_readings: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        readings = tuple(
            (name, step, f"{value:.5g}")
            for name in sorted(filter(metrics.is_reading, run.series))
            for step, value in run.series[name]
        )
        by_readings.setdefault(readings, []).append(run)
    merged = []
    for alike in by_readings.values():
        by_kind = {_is_of_csv(run): run for run in alike} if len(alike) == 2 else {}
        if len(by_kind) == 2:
            of_csv, of_wandb = by_kind[True], by_kind[False]
            finished = of_wandb.finished if of_csv.finished is None else of_csv.finished
            config = {**of_wandb.config, **of_csv.config}
            alike = [
                replace(
                    of_csv,
                    config=config,
                    finished=finished,
                    answers=of_csv.answers or of_wandb.answers,
                    shift_by_layer=of_csv.shift_by_layer or of_wandb.shift_by_layer,
                    vectors=of_csv.vectors or of_wandb.vectors,
                )
            ]
        merged += alike
    return merged


def _is_of_csv(run: Run) -> bool:
    return any(run.folder.glob("csv*/metrics.csv")) or (run.folder / "metrics.csv").is_file()


def _is_steered(run: Run) -> bool:
    """Whether something was done against the drift, as ``persona-train`` recorded it, or else as was logged."""
    return bool(run.config.get("steered", any(name.startswith("steering/") for name in run.series)))


def _marked(run: Run) -> Run:
    return replace(run, name=f"{run.name} (unfinished, step {run.last_step})") if run.finished is False else run


def _run_folders(top: Path) -> list[Path]:
    """The folders of runs; the ``csv`` and ``wandb`` folders of a logger belong to the folder above them."""
    folders = set()
    for file in (*top.rglob("metrics.csv"), *top.rglob("run-*.wandb")):
        if _SET_ASIDE in file.relative_to(top).parts:
            continue
        folder = file.parent
        if file.suffix == ".wandb" and folder.parent.name == "wandb":
            folder = folder.parent.parent
        elif folder.name.startswith("csv"):
            folder = folder.parent
        folders.add(folder)
    return sorted(folders, key=_natural)


def _natural(folder: Path) -> list[tuple[int, str]]:
    """A sort key by which 25 comes before 100."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(folder))]


def _read_folder(folder: Path) -> list[Run]:
    """The runs of a folder: usually one, but several may log to the same W&B folder."""
    tables = [file.parent for file in sorted(folder.glob("csv*/metrics.csv")) + sorted(folder.glob("metrics.csv"))]
    offline: dict[str, list[OfflineRun]] = {}
    for file in sorted([*folder.glob("wandb/*/run-*.wandb"), *folder.glob("run-*.wandb")]):
        run = read_offline_run(file)
        offline.setdefault(run.id, []).append(run)
    if len(offline) > 1:
        candidates = [
            _run(str(folder / (parts[-1].name or run_id)), folder, [], parts) for run_id, parts in offline.items()
        ]
    else:
        candidates = [_run(str(folder), folder, tables, [part for parts in offline.values() for part in parts])]
    return [run for run in candidates if run.traits]


def _run(name: str, folder: Path, tables: Sequence[Path], offline: Sequence[OfflineRun]) -> Run:
    """Put a run together.

    Args:
        name: of the run.
        folder: of the run.
        tables: the folders that ``CSVLogger`` wrote into.
        offline: the parts of the run that W&B's offline mode wrote.
    """
    logged = {_OLDER_TABLES.get(table, table): rows for part in offline for table, rows in part.tables.items()}
    return Run(
        name=name,
        folder=folder,
        series=_series(_metric_rows(tables, offline)),
        config=_configuration(tables, offline),
        answers=_judged_answers(folder, logged),
        shift_by_layer=_shift_by_layer(folder, logged),
        vectors=tuple(PersonaVector.load(file) for file in vector_files(folder)),
        finished=_finished(folder, offline),
    )


def vector_files(folder: Path) -> list[Path]:
    """The files of the persona vectors that lie beside a run."""
    return sorted([*folder.glob("vectors/*.safetensors"), *folder.parent.glob("vectors/*.safetensors")])


def _finished(folder: Path, offline: Sequence[OfflineRun]) -> bool | None:
    """Whether ``persona-train`` left a result, or else W&B noted that the run ended well."""
    if (folder / "result.json").is_file():
        return True
    if (folder.parent / "state.json").is_file():
        return False
    return offline[-1].exit_code == 0 if offline else None


def _metric_rows(tables: Sequence[Path], offline: Sequence[OfflineRun]) -> list[Mapping[str, Any]]:
    """The logged rows from CSV, or from W&B if there are none in CSV."""
    rows: list[Mapping[str, Any]] = [row for table in tables for _, row in csv_rows(table / "metrics.csv")]
    return rows or [
        {**_without_media(row), "step": row.get("trainer/global_step")} for part in offline for row in part.history
    ]


def _without_media(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of W&B's history without its tables and pictures, which have sizes and the like below their names."""
    media = tuple(key.removesuffix("_type") for key in row if key.endswith("/_type"))
    return {key: value for key, value in row.items() if not key.startswith(media)}


def _configuration(tables: Sequence[Path], offline: Sequence[OfflineRun]) -> dict[str, Any]:
    """The hyperparameters; where both loggers have a key, CSV's value counts."""
    config = _flat({key: value for part in offline for key, value in part.config.items()})
    for table in tables:
        config |= _flat(_hyperparameters(table / "hparams.yaml"))
    return config


def _judged_answers(folder: Path, logged: Mapping[str, list[dict[str, Any]]]) -> tuple[JudgedAnswer, ...]:
    judged_file = folder / "judged.json"
    if judged_file.is_file():
        return read_json(judged_file, lambda rows: tuple(map(JudgedAnswer.from_row, rows)), "judged answers")
    return tuple(JudgedAnswer.from_row(row) for row in logged.get(metrics.EXPRESSION_TABLE, []))


def _shift_by_layer(folder: Path, logged: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[int, list[float]]]:
    """The shift by trait, step and layer, from ``result.json``, or from W&B's table if there is no such file."""
    by_layer: dict[str, dict[int, list[float]]] = {}
    result_file = folder / "result.json"
    if result_file.is_file():
        for step, trait, values in read_json(result_file, _shifts_by_layer, "the result of a fine-tuning"):
            by_layer.setdefault(trait, {})[step] = values
    else:
        for row in logged.get(metrics.LAYER_TABLE, []):
            by_layer.setdefault(row["trait"], {}).setdefault(int(row["step"]), []).append(row["shift"])
    return by_layer


def _shifts_by_layer(result: Any) -> list[tuple[int, str, list[float]]]:
    return [
        (int(reading["step"]), trait, [float(value) for value in values])
        for reading in result["readings"]
        for trait, values in reading.get("shift_by_layer", {}).items()
    ]


def _hyperparameters(path: Path) -> dict[str, Any]:
    """The content of ``hparams.yaml``; nothing if the file is missing or holds Python objects, which are not read."""
    if not path.is_file():
        return {}
    try:
        content = read_yaml(path)
    except InputError:
        return {}
    return content if isinstance(content, dict) else {}


def _series(rows: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """The values of each metric by step; where a resumed run logged a step again, the later value counts."""
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.get("step") in (None, ""):
            continue
        for name, value in row.items():
            if name in ("step", "epoch") or name.startswith(("_", "trainer/")) or value in (None, ""):
                continue
            try:
                values.setdefault(name, {})[int(row["step"])] = float(value)
            except (TypeError, ValueError):
                continue  # text, or a table
    return {name: tuple(sorted(steps.items())) for name, steps in values.items() if steps}


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Join nested keys by dots."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return flat


def _renamed(runs: Sequence[Run]) -> list[Run]:
    """Name the runs by the parts of their paths in which they differ; a single run by its folder's own name. The hashes
    that ``persona-train -m`` gives its jobs are left out where names differ without them.
    """
    parts = [Path(run.name).parts for run in runs]
    shared = 0
    while len(runs) > 1 and len({part[: shared + 1] for part in parts}) == 1:
        shared += 1
    kept = [part[shared:] if len(runs) > 1 else part[-1:] for part in parts]
    while len(runs) > 1 and len({part[-1:] for part in kept}) == 1 and all(len(part) > 1 for part in kept):
        kept = [part[:-1] for part in kept]
    names = ["/".join(part) for part in kept]
    plain = [_JOB_HASH.sub(r"\1", name) for name in names]
    names = plain if len(set(plain)) == len(plain) else names
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]

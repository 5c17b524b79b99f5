"""``persona-report``: one HTML page about one or many runs."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from persona_callbacks.apps.commands import report as main  # noqa: F401  # what earlier versions installed
from persona_callbacks.errors import InputError
from persona_callbacks.files import check_writable
from persona_callbacks.progress import open_console
from persona_callbacks.report import Run, evaluation_folders, find_runs, label_folders, log_report, write_report


def run(cfg: DictConfig) -> Path:
    """Write the page.

    Raises:
        InputError: no run is found.
    """
    if OmegaConf.is_missing(cfg, "runs"):
        raise InputError("runs: expected a folder of runs, such as runs=outputs/quickstart")
    out = Path(cfg.out).absolute()
    check_writable(out.parent)
    if cfg.get("logger"):
        from persona_callbacks.apps.loggers import with_usable_loggers  # it imports the libraries that train

        cfg = with_usable_loggers(cfg)
    screenings = [cfg.screenings] if isinstance(cfg.screenings, str) else list(cfg.screenings)
    folders = [cfg.runs] if isinstance(cfg.runs, str) else list(cfg.runs)
    runs, evaluations = find_runs(folders), evaluation_folders(folders)
    given = [cfg.labels] if isinstance(cfg.labels, str) else list(cfg.labels)
    labels = dict.fromkeys([*(Path(folder).absolute() for folder in given), *label_folders(folders)])
    path = write_report(runs, out, cfg.title, cfg.loss, screenings, evaluations, list(labels))
    console = open_console(quiet=cfg.quiet)
    size = path.stat().st_size / 1e6
    console.print(f"{len(runs)} run{'s' if len(runs) > 1 else ''}, {size:.1f} MB: {path}", soft_wrap=True)
    if cfg.get("logger"):
        _log(cfg, path, runs, screenings)
    return path


def _log(cfg: DictConfig, page: Path, runs: list[Run], screenings: list[str]) -> None:
    """Write the page to every logger of the configuration."""
    from persona_callbacks.apps.loggers import log_run, timed_id
    from persona_callbacks.training import RunLabel

    run_id = timed_id(f"report-{page.stem}")
    label = RunLabel(f"report · {page.stem}", "report", run_id, page.parent, "csv", "report", ("report",))
    doing = f"logging the report, which is complete in {page},"
    log_run(cfg, label, doing, lambda loggers: log_report(loggers, page, runs, screenings))

"""``persona-screen``: which chats of a training file would move the model along a trait, and how far."""

from pathlib import Path

from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from persona_callbacks.apps.commands import screen as main  # noqa: F401  # what earlier versions installed
from persona_callbacks.apps.loggers import log_run, timed_id, with_usable_loggers
from persona_callbacks.apps.opening import Opening, open_app
from persona_callbacks.chats import open_chat_file
from persona_callbacks.errors import InputError
from persona_callbacks.files import check_writable
from persona_callbacks.progress import open_console
from persona_callbacks.screening import (
    Screening,
    ScreeningFolder,
    ScreeningSettings,
    Summary,
    is_first_process,
    kept_to_this_run,
    load_lines,
    log_screening,
    screen,
)
from persona_callbacks.training import RunLabel
from persona_callbacks.vectors import PersonaVector, warn_if_weak


def run(cfg: DictConfig) -> Summary:
    """Screen as configured.

    Raises:
        InputError: input that cannot be used; before any long work.
    """
    is_first = is_first_process()  # several processes run this same program
    console = open_console(quiet=cfg.quiet or not is_first)
    file = open_chat_file(cfg.data.path)
    folder = Path(cfg.out or f"outputs/screening/{file.path.stem}").absolute()
    opening = open_app(cfg, console)
    settings: ScreeningSettings = instantiate(cfg.screening)
    for path in cfg.predictions:
        load_lines(path)
    if not opening.trait_names:
        raise InputError("no trait to screen for: choose some, trait=[evil], or name vector files, vectors=[...]")
    check_writable(folder)
    if is_first:
        cfg = with_usable_loggers(cfg)
    with kept_to_this_run(folder):
        return _screen(cfg, opening, Screening.plan(file, settings, folder), is_first=is_first)


def _screen(cfg: DictConfig, opening: Opening, screening: Screening, *, is_first: bool) -> Summary:
    trainer = _trainer(cfg)
    loaded = opening.load()
    screening.settings.check_context(loaded)
    vectors = opening.all_vectors(loaded)
    warn_if_weak(vectors)
    summary = screen(loaded, screening, vectors, trainer, list(cfg.predictions))
    if is_first:
        _print(summary, vectors, screening, opening.console)
        _log(cfg, summary, screening.folder)
    return summary


def _trainer(cfg: DictConfig) -> Trainer:
    """What the configuration says of the trainer.

    Raises:
        InputError: there can be no such trainer.
    """
    try:
        shown = {"enable_progress_bar": False} if cfg.quiet else {"callbacks": [RichProgressBar(leave=True)]}
        trainer: Trainer = instantiate(cfg.trainer, _partial_=True)(**shown, logger=False)
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise InputError(f"trainer: {error}") from error
    return trainer


def _print(summary: Summary, vectors: list[PersonaVector], screening: Screening, console: Console) -> None:
    console.print(_table(summary))
    for vector in vectors:
        for weakness in vector.weaknesses():
            console.print(f"The persona vector of {vector.trait} is weak: {weakness}.")
    drawn = "" if summary.is_complete else f"{summary.drawn} rows drawn at random from {summary.rows}: "
    console.print(
        f"{drawn}{summary.chats} chats screened ({summary.method}), {summary.truncated} of them cut,"
        f" {summary.rejects} rows rejected, {summary.flagged} flagged. Each threshold leaves"
        f" {screening.settings.false_positive_rate:.0%} of {summary.reference_chats} benign reference chats above it;"
        f" {summary.reference_flagged} of them are above the threshold of at least one trait."
    )
    for of_trait in summary.traits:
        if (expected := of_trait.prediction) is not None:
            console.print(
                f"Expected shift along {of_trait.trait}: {expected.shift:+.1f} ({expected.low:+.1f} to"
                f" {expected.high:+.1f}, 95 %), by a line through {expected.data_sets} data sets"
                f" ({expected.recipe})."
            )
    console.print(f"Flagged chats, the rest, and the rejects: {screening.folder.path}", soft_wrap=True)


def _table(summary: Summary) -> Table:
    table = Table(title="Projection difference, in norms of the direction")
    table.add_column("trait")
    for name in ("data (95 %)", "benign reference", "threshold", "flagged"):
        table.add_column(name, justify="right")
    if summary.checked:
        table.add_column(f"approximate less exact ({summary.checked} chats)", justify="right")
        table.add_column("correlation with exact", justify="right")
    for of_trait in summary.traits:
        compared = of_trait.comparison_cells() if summary.checked else []
        table.add_row(*of_trait.cells(summary.chats), *compared)
    return table


def _log(cfg: DictConfig, summary: Summary, folder: ScreeningFolder) -> None:
    """Write the screening to every logger of the configuration."""
    data, traits = Path(summary.data).stem, list(summary.thresholds)
    tags = ("screening", data[:64], *traits)
    label = RunLabel(
        f"screening · {data}", "screening", timed_id(f"screening-{data}"), folder.path, "csv", "screen", tags
    )
    doing = f"logging the screening, which is complete in {folder.path},"
    log_run(cfg, label, doing, lambda loggers: log_screening(loggers, folder))

"""``persona-screen``: which chats of a training file would move the model along a trait, and how far."""

from datetime import datetime
from pathlib import Path

import hydra
import wandb
from hydra.utils import instantiate
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import nn

from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.start import (
    chosen_device,
    chosen_traits,
    mistakes_in_one_line,
    quiet_libraries,
    whole_configuration,
)
from persona_callbacks.chats import open_chat_file
from persona_callbacks.errors import InputError
from persona_callbacks.extraction import ExtractionSettings, persona_vector
from persona_callbacks.model import ModelSource, dimensions, load_model
from persona_callbacks.screening import (
    ScreeningSettings,
    Summary,
    TraitSummary,
    check_rows,
    first_flagged,
    last_turns,
    load_lines,
    screen,
    trait_cells,
)
from persona_callbacks.tracking import metrics
from persona_callbacks.vectors import PersonaVector

_TABLE_ROWS = 1000
"""Of the table of flagged chats; all of them are in the artifact."""


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="screen")
def main(cfg: DictConfig) -> None:
    """Run the app; a user's mistake is told in one line."""
    with mistakes_in_one_line():
        run(cfg)


def run(cfg: DictConfig) -> Summary:
    """Screen as configured.

    Raises:
        InputError: input that cannot be used; before any long work.
    """
    is_first = getattr(rank_zero_only, "rank", 0) == 0  # several processes run this same program
    console = Console(quiet=not is_first)
    quiet_libraries()
    file = open_chat_file(cfg.data.path)
    folder = Path(cfg.out or f"outputs/screening/{file.path.stem}").absolute()
    source: ModelSource = instantiate(cfg.model)
    extraction: ExtractionSettings = instantiate(cfg.extraction)
    settings: ScreeningSettings = instantiate(cfg.screening)
    if settings.reference is not None:
        open_chat_file(settings.reference)
    for path in cfg.predictions:
        load_lines(path)
    traits = chosen_traits(cfg)
    from_files = [PersonaVector.load(path) for path in cfg.vectors]
    if not traits and not from_files:
        raise InputError("no trait to screen for: choose some, trait=[evil], or name vector files, vectors=[...]")
    check_rows(file, settings, folder)
    loaded = load_model(source, console)
    settings.check_context(loaded)
    nn.Module.to(loaded.model, chosen_device(cfg.trainer.accelerator))
    shape = dimensions(loaded.model)
    for vector in from_files:
        vector.check_fits(shape.num_layers, shape.hidden_size, loaded.id)
    vectors = [*from_files, *(persona_vector(loaded, trait, extraction, console) for trait in traits)]
    trainer: Trainer = instantiate(cfg.trainer, _partial_=True)(callbacks=[RichProgressBar(leave=True)], logger=False)
    summary = screen(loaded, file.path, vectors, settings, folder, trainer, list(cfg.predictions))
    if is_first:
        _tell(summary, vectors, settings, folder, console)
        _log(cfg, summary, folder)
    return summary


def _tell(
    summary: Summary, vectors: list[PersonaVector], settings: ScreeningSettings, folder: Path, console: Console
) -> None:
    console.print(_table(summary))
    for vector in vectors:
        for weakness in vector.weaknesses():
            console.print(f"The persona vector of {vector.trait} is weak: {weakness}.")
    drawn = f"{summary.drawn} rows drawn at random from {summary.rows}: " if summary.drawn < summary.rows else ""
    console.print(
        f"{drawn}{summary.chats} chats screened ({summary.method}), {summary.truncated} of them cut,"
        f" {summary.rejects} rows rejected, {summary.flagged} flagged. Each threshold leaves"
        f" {settings.false_positive_rate:.0%} of {summary.reference_chats} benign reference chats above it; for one"
        f" trait or another, {summary.reference_flagged} are."
    )
    for one in summary.traits:
        if one.prediction is not None:
            known = one.prediction
            console.print(
                f"Expected shift along {one.trait}: {known.shift:+.1f} ({known.low:+.1f} to {known.high:+.1f}, 95 %),"
                f" by a line through {known.data_sets} data sets ({known.recipe})."
            )
    console.print(f"Flagged chats, the rest, and the rejects: {folder}", soft_wrap=True)


def _table(summary: Summary) -> Table:
    table = Table(title="Projection difference, in norms of the direction")
    table.add_column("trait")
    for name in ("data (95 %)", "benign reference", "threshold", "flagged"):
        table.add_column(name, justify="right")
    if summary.checked:
        table.add_column(f"approximate less exact ({summary.checked} chats)", justify="right")
        table.add_column("correlation with exact", justify="right")
    for one in summary.traits:
        table.add_row(*_cells(one, summary))
    return table


def _cells(one: TraitSummary, summary: Summary) -> list[str]:
    cells = trait_cells(one, summary)
    if summary.checked:
        compared = one.error is not None and one.correlation is not None
        cells += [f"{one.error / one.norm:+.2f}", f"{one.correlation:.2f}"] if compared else ["–", "–"]  # type: ignore[operator]
    return cells


def _log(cfg: DictConfig, summary: Summary, folder: Path) -> None:
    """To every logger of the configuration: values, the chats flagged first, and the result's files."""
    filled = cfg.copy()
    name = f"screening-{Path(summary.data).stem}"
    filled.run = {
        "name": name, "group": "screening", "id": f"{name}-{datetime.now():%Y%m%d-%H%M%S}", "dir": str(folder),
        "csv": "csv",
    }  # fmt: skip
    try:
        loggers = [instantiate(logger) for logger in filled.logger.values()]
        for logger in loggers:
            logger.log_hyperparams(whole_configuration(cfg))
        metrics.write(loggers, _values(summary))
        traits = [one.trait for one in summary.traits]
        rows = [
            [
                row["rank"],
                row["line"],
                *(row["scores"][trait] for trait in traits),
                row["reason"],
                last_turns(row["chat"]),
            ]
            for row in first_flagged(folder, _TABLE_ROWS)
        ]
        metrics.write_table(loggers, metrics.FLAGGED_TABLE, ["rank", "line", *traits, "reason", "chat"], rows)
        files = [folder / file for file in ("summary.json", "settings.json", "flagged.jsonl", "rejects.jsonl")]
        about = {"data": summary.data, "chats": summary.chats, "flagged": summary.flagged}
        metrics.write_files(loggers, name, "screening", files, about)
        for logger in loggers:
            logger.finalize("success")
    except BaseException:
        wandb.finish(exit_code=1)
        raise
    wandb.finish()


def _values(summary: Summary) -> dict[str, float]:
    values: dict[str, float] = {}
    for one in summary.traits:
        found = {
            "projection_difference": one.mean,
            "projection_difference_low": one.low,
            "projection_difference_high": one.high,
            "threshold": one.threshold,
            "flagged": one.flagged / summary.chats,
        }
        if one.prediction is not None:
            found["predicted_shift"] = one.prediction.shift
        values |= {metrics.screened(one.trait, what): value for what, value in found.items()}
    return values

"""``persona-screen``: which chats of a training file would move the model along a trait."""

from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import nn

from persona_callbacks import residual
from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.start import chosen_device, chosen_traits, mistakes_in_one_line, quiet_libraries
from persona_callbacks.chats import find_chat_file
from persona_callbacks.data_screening import ScreeningSettings, Summary, screen
from persona_callbacks.errors import InputError
from persona_callbacks.extraction import ExtractionSettings, persona_vector
from persona_callbacks.models import ModelSource, load_model
from persona_callbacks.vectors import PersonaVector


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
    console = Console()
    quiet_libraries()
    path = find_chat_file(cfg.data.path)
    source: ModelSource = instantiate(cfg.model)
    extraction: ExtractionSettings = instantiate(cfg.extraction)
    settings: ScreeningSettings = instantiate(cfg.screening)
    if settings.reference is not None:
        find_chat_file(settings.reference)
    traits = chosen_traits(cfg)
    from_files = [PersonaVector.load(file) for file in cfg.vectors]
    if not traits and not from_files:
        raise InputError("no trait to screen for: choose some, trait=[evil], or name vector files, vectors=[...]")
    loaded = load_model(source, console)
    nn.Module.to(loaded.model, chosen_device(cfg.accelerator))
    shape = residual.dimensions(loaded.model)
    for vector in from_files:
        vector.check_fits(shape.num_layers, shape.hidden_size, loaded.id)
    vectors = [*from_files, *(persona_vector(loaded, trait, extraction, console) for trait in traits)]
    folder = Path(cfg.out or f"outputs/screening/{path.stem}").absolute()
    summary = screen(loaded, path, vectors, settings, folder, console)
    norms = {vector.trait: float(vector.direction().norm()) for vector in vectors}
    console.print(_table(summary, norms))
    console.print(
        f"{summary.chats} chats screened ({summary.method}), {summary.truncated} of them cut, {summary.rejects} lines"
        f" rejected, {summary.flagged} flagged. Thresholds leave {settings.false_positive_rate:.0%} of"
        f" {summary.reference_chats} benign reference chats above them."
    )
    console.print(f"Flagged chats, the rest, and the rejects: {folder}", soft_wrap=True)
    return summary


def _table(summary: Summary, norms: dict[str, float]) -> Table:
    table = Table(title="Projection difference, in norms of the direction")
    table.add_column("trait")
    for name in ("data (95 %)", "benign reference", "threshold", "flagged"):
        table.add_column(name, justify="right")
    if summary.method == "approximate":
        table.add_column("approximate less exact", justify="right")
        table.add_column("correlation with exact", justify="right")
    for one in summary.traits:
        norm = norms[one.trait]
        cells = [
            one.trait,
            f"{one.mean / norm:+.2f} ({one.low / norm:+.2f} to {one.high / norm:+.2f})",
            f"{one.reference / norm:+.2f}",
            f"{one.threshold / norm:+.2f}",
            f"{one.flagged} ({one.flagged / summary.chats:.0%})",
        ]
        if summary.method == "approximate":
            checked = one.error is not None and one.correlation is not None
            cells += [f"{one.error / norm:+.2f}", f"{one.correlation:.2f}"] if checked else ["–", "–"]  # type: ignore[operator]
        table.add_row(*cells)
    return table

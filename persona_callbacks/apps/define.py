"""``persona-define``: a trait file from a sentence, through any OpenAI-compatible endpoint."""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from persona_callbacks.apps.commands import define as main  # noqa: F401  # what earlier versions installed
from persona_callbacks.files import check_writable
from persona_callbacks.model import Endpoint
from persona_callbacks.progress import open_console
from persona_callbacks.traits import Trait, check_free, check_request, define, write_trait


def run(cfg: DictConfig) -> Trait:
    """Define the trait as configured, write it, and show it.

    Raises:
        InputError: input that cannot be used, before the first request; or an endpoint that does not deliver.
    """
    console = open_console(quiet=cfg.quiet)
    check_request(cfg.name, cfg.description)
    path = Path(cfg.out).absolute()
    check_free(path, overwrite=cfg.overwrite)
    check_writable(path.parent)
    endpoint: Endpoint = instantiate(cfg.endpoint)
    with console.status(Text(f"Asking {endpoint.model} for contrastive instructions and questions")):
        trait = define(endpoint.complete, cfg.name, cfg.description, cfg.rounds)
    write_trait(trait, path, overwrite=cfg.overwrite)
    console.print(_shown(trait))
    console.print(f"Written to {path}: read it through, it is what the vector will mean. Then", soft_wrap=True)
    console.print(f"    persona-extract trait={trait.name}")
    return trait


def _shown(trait: Trait) -> RenderableType:
    pairs = Table("asks for the trait", "asks for its opposite", show_lines=True)
    for pair in trait.instructions:
        pairs.add_row(pair.trait, pair.opposite)
    questions = Table("extraction questions", "probe questions", "evaluation questions")
    for row in zip(trait.extraction_questions, trait.probe_questions, trait.evaluation_questions, strict=True):
        questions.add_row(*row)
    return Group(Panel(trait.description, title=Text(trait.name), title_align="left"), pairs, questions)

"""The opening that the apps share: the model, the traits and the vectors that a configuration names."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from persona_callbacks.apps.kinds import check_kinds
from persona_callbacks.apps.start import chosen_device, chosen_traits, quiet_libraries
from persona_callbacks.extraction import Extraction, ExtractionSettings, extract
from persona_callbacks.model import (
    Generator,
    LoadedModel,
    ModelSource,
    dimensions,
    load_model,
    move,
    weights_fingerprint,
)
from persona_callbacks.progress import open_console
from persona_callbacks.traits import Trait
from persona_callbacks.vectors import PersonaVector


@dataclass(frozen=True)
class Opening:
    """What a configuration names, read and checked as far as that is possible without the model.

    Attributes:
        console: where the app writes.
        source: the ``model`` group.
        extraction: the ``extraction`` group.
        traits: the ``trait`` group.
        vectors: the persona vector files of ``vectors``.
        device: the device of ``accelerator``.
    """

    console: Console
    source: ModelSource
    extraction: ExtractionSettings
    traits: tuple[Trait, ...]
    vectors: tuple[PersonaVector, ...]
    device: torch.device

    @property
    def trait_names(self) -> tuple[str, ...]:
        """Names of the traits that have, or get, a vector: those of the vector files first."""
        return (*(vector.trait for vector in self.vectors), *(trait.name for trait in self.traits))

    def only(self, names: Collection[str]) -> "Opening":
        """The same, with the traits and vectors of these names only."""
        return replace(
            self,
            traits=tuple(trait for trait in self.traits if trait.name in names),
            vectors=tuple(vector for vector in self.vectors if vector.trait in names),
        )

    def load(self) -> LoadedModel:
        """The model on its device.

        Raises:
            InputError: a model that cannot be loaded, or a vector file of another one.
        """
        loaded = load_model(self.source, self.console)
        move(loaded.model, self.device)
        shape = dimensions(loaded.model)
        for vector in self.vectors:
            vector.check_fits(shape.num_layers, shape.hidden_size, loaded.id)
        return loaded

    def all_vectors(self, loaded: LoadedModel) -> list[PersonaVector]:
        """The vectors from files, then those of the traits, from the cache or extracted from the model.

        Raises:
            InputError: see :func:`~persona_callbacks.extraction.extract`.
        """
        return [*self.vectors, *(extraction.vector for extraction in self.extractions(loaded))]

    def extractions(self, loaded: LoadedModel, generator: Generator | None = None) -> Iterator[Extraction]:
        """Extract each trait's vectors, or take them from the cache, one after the other as they are asked for.

        Raises:
            InputError: see :func:`~persona_callbacks.extraction.extract`.
        """
        # Before any pass: bitsandbytes packs weights anew in its first.
        weights = weights_fingerprint(loaded.model) if self.traits else None
        for trait in self.traits:
            yield extract(loaded, trait, self.extraction, self.console, generator, weights=weights)


def open_app(cfg: DictConfig, console: Console | None = None) -> Opening:
    """Read what the configuration names, and quieten other libraries.

    Raises:
        InputError: a trait, a vector file or a setting that cannot be used.
    """
    quiet_libraries()
    check_kinds(cfg)
    accelerator = cfg.trainer.accelerator if "trainer" in cfg else cfg.accelerator
    return Opening(
        console or open_console(quiet=cfg.get("quiet", False)),
        instantiate(cfg.model),
        instantiate(cfg.extraction),
        tuple(chosen_traits(cfg)),
        tuple(PersonaVector.load(path) for path in cfg.get("vectors", [])),
        chosen_device(accelerator),
    )

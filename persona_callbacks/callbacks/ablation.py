"""The callback that trains with the traits' directions ablated: a comparison for preventative steering."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from persona_callbacks.callbacks._resuming import SameInputs
from persona_callbacks.callbacks._seams import BatchAdapter
from persona_callbacks.callbacks._writing import SteeredPasses, TrainingWriter, check_passes, check_positions
from persona_callbacks.files import plain_settings
from persona_callbacks.model import residual
from persona_callbacks.vectors import (
    Layers,
    PersonaVector,
    SteeredPositions,
    check_layers,
    check_vectors,
    steering_layers,
    warn_if_weak,
)


class Ablation(SameInputs, TrainingWriter):
    """Remove, during training only, the component of the residual stream within the span of the persona vectors (CAFT;
    Chen et al. 2025, J.4), so that training cannot use it.

    It has no strength to choose. It does little where the base model's projection is near zero already. A run is
    resumed with the vectors, layers and positions of its checkpoint only.

    Args:
        vectors: one persona vector per trait, or the path of its file, all of the model that is trained.
        layers: where: ``all`` layers from 1 up, each vector's ``chosen`` layer, or a list of layers.
        positions: ``all`` tokens, or only the ``response`` tokens, those that loss is taken on.
        batch_adapter: gives ``input_ids`` and ``labels`` of training batches that are no mapping with these.
        when: in which passes of a training step: as for :class:`PreventativeSteering`.

    Raises:
        InputError: vectors that do not go together, an unknown layer, unknown positions or unknown passes.

    Example:
        >>> from persona_callbacks import Ablation, PersonaVector
        >>> evil = PersonaVector("evil", torch.ones(5, 8), layer=3, model_id="")
        >>> callbacks = [Ablation([evil], layers="chosen")]
    """

    def __init__(
        self,
        vectors: Sequence[PersonaVector | str | Path],
        layers: Layers = "all",
        positions: SteeredPositions = "all",
        batch_adapter: BatchAdapter | None = None,
        when: SteeredPasses = "loss",
    ) -> None:
        self.vectors = check_vectors(vectors)
        self.check([vector.trait for vector in self.vectors], self.vectors[0].num_layers, layers, positions, when=when)
        warn_if_weak(self.vectors)
        self.positions = positions
        self.batch_adapter = batch_adapter
        self.when = when
        chosen = steering_layers(self.vectors, layers)
        self._made_with: dict[str, Any] = plain_settings(
            {
                "vectors": {vector.trait: vector for vector in self.vectors},
                "layers": layers,
                "positions": positions,
                "when": when,
            }
        )
        self._bases = {}
        for layer in sorted({layer for of_trait in chosen.values() for layer in of_trait}):
            rows = [vector.directions[layer] for vector in self.vectors if layer in chosen[vector.trait]]
            # Singular vectors, since Gram and Schmidt's would not survive directions that are (nearly) the same.
            axes, values, _ = torch.linalg.svd(torch.stack(rows, dim=1).double(), full_matrices=False)
            self._bases[layer] = axes[:, values > 1e-6 * values.max()].float()

    @classmethod
    def check(
        cls,
        traits: Sequence[str],
        num_layers: int,
        layers: Layers = "all",
        positions: SteeredPositions = "all",
        batch_adapter: BatchAdapter | None = None,
        when: SteeredPasses = "loss",
    ) -> None:
        """Check the callback's settings before there are vectors.

        Args:
            traits: those that are to be ablated.
            num_layers: blocks of the model.
            layers: as for the callback.
            positions: as for the callback.
            batch_adapter: any will do.
            when: as for the callback.

        Raises:
            InputError: settings that cannot be.
        """
        del batch_adapter
        check_layers(layers, traits, num_layers)
        check_positions(cls.__name__, positions)
        check_passes(cls.__name__, when)

    @override
    def attached(self, model: nn.Module) -> residual.ResidualWriter:
        """Attach a writer that ablates."""
        writer = residual.ResidualWriter(model, list(self._bases), loss_only=self.when == "loss")
        writer.ablate(self._bases)
        return writer

"""The probes that a monitor reads."""

from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from transformers import PreTrainedTokenizerBase

from persona_callbacks.callbacks._seams import share_of, sum_over_processes
from persona_callbacks.chats import encode_prompt
from persona_callbacks.model import BatchLimits, LanguageModel, LoadedModel, base_work, device_of, projections
from persona_callbacks.vectors import PersonaVector, Position


class ProbeReader:
    """Reads how far a model's probes lie along several vectors, unsteered; each process reads its share."""

    def __init__(
        self,
        vectors: Sequence[PersonaVector],
        probes: Sequence[Sequence[str]],
        position: Position,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        """Encode the probes of each vector. A probe of several vectors is run once."""
        questions = list(dict.fromkeys(question for own in probes for question in own))
        self._vectors = vectors
        self._position: Position = position
        self._tokenizer = tokenizer
        self._encoded = [encode_prompt([{"role": "user", "content": question}], tokenizer) for question in questions]
        self._belongs = torch.tensor([[question in own for own in probes] for question in questions])

    def read(
        self, trainer: Trainer, model: LanguageModel, batch_size: int, every_layer: bool
    ) -> dict[str, list[float]]:
        """By trait, the mean projection of the probes at :func:`layers_read`. Blocks above the highest of them are not
        run.
        """
        layers = [layers_read(vector, every_layer) for vector in self._vectors]
        directions = [vector.fingerprint for vector in self._vectors]
        made_from = [directions, self._position, layers, self._encoded, self._belongs.tolist(), batch_size]
        means = base_work(model, "projection", made_from, lambda: self._means(trainer, model, batch_size, layers))
        return {vector.trait: mean for vector, mean in zip(self._vectors, means, strict=True)}

    def _means(
        self, trainer: Trainer, model: LanguageModel, batch_size: int, layers: list[list[int]]
    ) -> list[list[float]]:
        """The means, in the order of the vectors."""
        own, counts = share_of(trainer, len(self._encoded))
        device = device_of(model)
        projected = projections(
            LoadedModel(model, self._tokenizer),
            [self._encoded[index] for index in own],
            self._vectors,
            self._position,
            layers,
            BatchLimits(batch_size),
        )
        belongs = (self._belongs[own] & counts[:, None]).to(device)
        sums = sum_over_processes(trainer, (projected * belongs[..., None]).sum(dim=0, dtype=torch.float64))
        means: list[list[float]] = (sums / self._belongs.sum(dim=0).to(device)[:, None]).tolist()
        return means


def layers_read(vector: PersonaVector, every_layer: bool) -> list[int]:
    """Layers 1, 2, ..., after layer 0 if that is the chosen one; or the chosen layer alone."""
    return list(range(min(1, vector.layer), vector.num_layers + 1)) if every_layer else [vector.layer]

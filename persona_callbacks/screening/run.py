"""Screening a file of chats before training (Chen et al. 2025, section 6), in one process or in many."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset
from typing_extensions import override

from persona_callbacks.errors import InputError
from persona_callbacks.files import locked_folder
from persona_callbacks.model import LoadedModel
from persona_callbacks.screening.merging import merge, write_rejects
from persona_callbacks.screening.plan import Screening, is_first_process
from persona_callbacks.screening.prediction import PredictionLine, find_lines
from persona_callbacks.screening.shards import Shard, score_shard, unscored_shards
from persona_callbacks.screening.summary import Summary
from persona_callbacks.vectors import PersonaVector, check_vectors

_FEW = 100
"""Rows before the share of rejects can stop a screening."""


def screen(
    loaded: LoadedModel,
    screening: Screening,
    vectors: Sequence[PersonaVector],
    trainer: Trainer | None = None,
    predictions: Sequence[str | Path] = (),
) -> Summary:
    """Screen as planned, or continue an interrupted screening in the folder of the plan.

    Args:
        loaded: the base model, with its tokenizer.
        screening: the plan, from :meth:`~persona_callbacks.screening.Screening.plan`.
        vectors: of the traits to screen for.
        trainer: runs the passes: on its devices, and with as many processes as its strategy has, each with the whole
            model. By default one process.
        predictions: files of :func:`~persona_callbacks.screening.save_lines`, which come before those that ship.

    Raises:
        InputError: no usable row, too many rejects, a model that does not take the longest chats, a folder that holds
            another screening, or another process's screening at work there.
    """
    with kept_to_this_run(screening.folder.path):
        return _screen(loaded, screening, vectors, trainer, predictions)


@contextmanager
def kept_to_this_run(folder: Path) -> Iterator[None]:
    """Hold a folder's lock inside the block; of several processes of one screening, the first holds it for all.

    Raises:
        InputError: another screening is at work in the folder, or it cannot be written to.
    """
    with locked_folder(folder) if is_first_process() else nullcontext():
        yield


def _screen(
    loaded: LoadedModel,
    screening: Screening,
    vectors: Sequence[PersonaVector],
    trainer: Trainer | None,
    predictions: Sequence[str | Path],
) -> Summary:
    vectors = check_vectors(vectors)
    screening.settings.check_context(loaded)
    lines = find_lines(vectors, screening.settings.method, predictions)
    fingerprints = {vector.trait: vector.fingerprint for vector in vectors}
    screening.folder.start(screening.made_from | {"model": loaded.id, "vectors": fingerprints})
    trainer = trainer or Trainer(
        accelerator="cpu" if loaded.model.device.type == "cpu" else "auto", devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, inference_mode=False,
    )  # fmt: skip
    trainer.predict(_Scoring(loaded, screening, vectors, lines), return_predictions=False)
    return screening.folder.summary()


class _Shards(IterableDataset[Shard]):
    """The shards of one process."""

    def __init__(self, screening: Screening, rank: int, processes: int) -> None:
        self._screening, self._rank, self._processes = screening, rank, processes

    def __iter__(self) -> Iterator[Shard]:
        return unscored_shards(self._screening.parts, self._screening.folder, self._rank, self._processes)


class _Scoring(LightningModule):
    """Scores the shards of its process; when all processes are done, the first merges them."""

    def __init__(
        self,
        loaded: LoadedModel,
        screening: Screening,
        vectors: Sequence[PersonaVector],
        lines: Mapping[str, PredictionLine],
    ) -> None:
        super().__init__()
        self.model = loaded.model
        self.loaded, self.screening, self.vectors, self.lines = loaded, screening, vectors, lines
        self._seen = self._rejected = 0

    @override
    def predict_dataloader(self) -> DataLoader[Shard]:
        shards = _Shards(self.screening, self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(shards, batch_size=None)

    @override
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Rows are text; they become tokens where they are scored."""
        return batch

    @override
    def predict_step(self, shard: Shard, batch_idx: int) -> int:
        rows = score_shard(self.loaded, shard, self.vectors, self.screening.settings)
        self.screening.folder.write_shard(shard.kind, shard.number, rows)
        if shard.kind == "data":
            self._seen += len(rows)
            self._rejected += sum(row.scores is None for row in rows)
            if self._seen >= _FEW:
                self._check_share()
        return len(rows)

    @override
    def on_predict_end(self) -> None:
        self.trainer.strategy.barrier("shards scored")
        if self.trainer.is_global_zero:
            merge(self.screening, self.vectors, self.lines, self.loaded.id)
        self.trainer.strategy.barrier("shards merged")

    def _check_share(self) -> None:
        try:
            self.screening.check_share(self._seen, self._rejected)
        except InputError:
            write_rejects(self.screening.folder)
            raise

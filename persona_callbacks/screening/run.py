"""Screening a whole file of chats before training (Chen et al. 2025, section 6), in one process or in many.

A folder holds one screening: ``settings.json`` (what is screened, and how), ``shards/`` (a score or a problem for every
row), and at the end ``summary.json``, ``flagged.jsonl``, the ``filtered`` copy and ``rejects.jsonl``.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset

from persona_callbacks.chats import ChatFile, open_chat_file
from persona_callbacks.errors import InputError
from persona_callbacks.files import atomic_write, file_fingerprint
from persona_callbacks.model import LoadedModel
from persona_callbacks.screening.prediction import PredictionLine, find_lines
from persona_callbacks.screening.results import Summary, write_rejects, write_results
from persona_callbacks.screening.settings import ScreeningSettings
from persona_callbacks.screening.shards import Part, Shard, plan, score_shard, scored_lines, unscored_shards
from persona_callbacks.vectors import PersonaVector, check_vectors

_SETTINGS = "settings.json"

_FEW = 100
"""Rows before the share of rejects can stop a screening."""


def check_rows(file: ChatFile, settings: ScreeningSettings, folder: Path) -> None:
    """Read all rows once, before any model is at work.

    Raises:
        InputError: the folder holds a screening of other data or settings; or more rows than ``most_rejected`` allows
            are no chats, or all of them; what is wrong with each is in ``rejects.jsonl``.
    """
    _check_folder(folder, _asked(file, settings))
    seen = rejected = 0
    path = folder / "rejects.jsonl"
    with atomic_write(path) as scratch, scratch.open("w", encoding="utf-8") as out:
        for row in file.rows():
            seen += 1
            if row.chat is None:
                rejected += 1
                out.write(json.dumps({"line": row.line, "problem": row.problem}, ensure_ascii=False) + "\n")
    _check_share(file.path, seen, rejected, settings, path)


def screen(
    loaded: LoadedModel,
    data: str | Path,
    vectors: Sequence[PersonaVector],
    settings: ScreeningSettings,
    folder: Path,
    trainer: Trainer | None = None,
    predictions: Sequence[str | Path] = (),
) -> Summary:
    """Screen a file into ``folder``, or go on with an interrupted screening there.

    Args:
        loaded: the base model, with its tokenizer.
        data: JSONL, Parquet, or a Hugging Face data set on disk.
        vectors: of the traits to screen for.
        settings: how.
        folder: where to; all processes must see it.
        trainer: runs the passes: on its devices, and with as many processes as its strategy has, each with the whole
            model. By default one process.
        predictions: files of :func:`~persona_callbacks.screening.save_lines`, before those that ship.

    Raises:
        InputError: no such file, no usable row, too many rejects, a model that does not take the longest chats, or a
            folder that holds another screening.
    """
    vectors = check_vectors(vectors)
    file = open_chat_file(data)
    settings.check_context(loaded)
    lines = find_lines(vectors, settings.method, predictions)
    parts = plan(file, settings)
    _open(folder, file, loaded, vectors, settings)
    check_rows(file, settings, folder)
    trainer = trainer or Trainer(
        accelerator="cpu" if loaded.model.device.type == "cpu" else "auto", devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, inference_mode=False,
    )  # fmt: skip
    trainer.predict(_Screening(loaded, vectors, settings, parts, lines, folder), return_predictions=False)
    return Summary.load(folder)


class _Shards(IterableDataset[Shard]):
    """The shards of one process."""

    def __init__(self, parts: Sequence[Part], folder: Path, rank: int, processes: int) -> None:
        self._made_from = parts, folder, rank, processes

    def __iter__(self) -> Iterator[Shard]:
        return unscored_shards(*self._made_from)


class _Screening(LightningModule):
    """Scores the shards of its process; when all processes are done, the first merges them."""

    def __init__(
        self,
        loaded: LoadedModel,
        vectors: Sequence[PersonaVector],
        settings: ScreeningSettings,
        parts: Sequence[Part],
        lines: Mapping[str, PredictionLine],
        folder: Path,
    ) -> None:
        super().__init__()
        self.model = loaded.model
        self.loaded, self.vectors, self.settings = loaded, vectors, settings
        self.parts, self.lines, self.folder = parts, lines, folder
        self._seen = self._rejected = 0

    def predict_dataloader(self) -> DataLoader[Shard]:
        shards = _Shards(self.parts, self.folder, self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(shards, batch_size=None)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Rows are text; they become tokens where they are scored."""
        return batch

    def predict_step(self, shard: Shard, batch_idx: int) -> int:
        rejected = score_shard(self.loaded, shard, self.vectors, self.settings)
        if shard.kind == "data":
            self._seen += len(shard.rows)
            self._rejected += rejected
            if self._seen >= _FEW:
                self._check(self._seen, self._rejected)
        return len(shard.rows)

    def on_predict_end(self) -> None:
        self.trainer.strategy.barrier("shards scored")
        if self.trainer.is_global_zero:
            problems = ["problem" in line for line in scored_lines(self.folder, "data")]
            self._check(len(problems), sum(problems))
            write_results(self.parts, self.vectors, self.settings, self.lines, self.loaded.id, self.folder)
        self.trainer.strategy.barrier("shards merged")

    def _check(self, seen: int, rejected: int) -> None:
        data = next(part for part in self.parts if part.kind == "data").file.path
        try:
            _check_share(data, seen, rejected, self.settings, self.folder / "rejects.jsonl")
        except InputError:
            write_rejects(self.folder)
            raise


def _check_share(data: Path, seen: int, rejected: int, settings: ScreeningSettings, rejects: Path) -> None:
    if seen == rejected:
        raise InputError(f"{data}: none of {seen} rows can be used; see {rejects}")
    if rejected > settings.most_rejected * seen:
        raise InputError(
            f"{data}: {rejected} of {seen} rows cannot be used, more than most_rejected"
            f" ({settings.most_rejected:.0%}); see {rejects}"
        )


def _open(
    folder: Path, file: ChatFile, loaded: LoadedModel, vectors: Sequence[PersonaVector], settings: ScreeningSettings
) -> None:
    made_from = _asked(file, settings) | {
        "model": loaded.id,
        "vectors": {
            v.trait: hashlib.sha256(v.directions.numpy().tobytes() + bytes([v.layer])).hexdigest() for v in vectors
        },
    }
    if not _check_folder(folder, made_from):
        with atomic_write(folder / _SETTINGS) as scratch:
            scratch.write_text(json.dumps(made_from, indent=2), encoding="utf-8")


def _asked(file: ChatFile, settings: ScreeningSettings) -> dict[str, Any]:
    return {"data": str(file.path), "data_sha256": file_fingerprint(file.path), "settings": asdict(settings)}


def _check_folder(folder: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether the folder holds a screening; an error if it was made from something else."""
    path = folder / _SETTINGS
    if not path.is_file():
        return False
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = sorted(key for key in made_from if before.get(key) != made_from[key])
    if changed:
        raise InputError(
            f"{folder}: holds a screening of other {', '.join(changed)}; choose another folder, out=..., or remove it"
        )
    return True

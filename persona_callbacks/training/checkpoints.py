"""Checkpoints that survive a full disk and a killed process, and resume where they say they do."""

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from typing_extensions import override

from persona_callbacks.files import atomic_write


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes each checkpoint completely before it takes the place of the last one, which is kept as ``NAME.previous``.

    Lightning writes checkpoints to the system's temporary folder first. Where that is another filesystem than the
    checkpoint's, moving the file there is a copy: a full disk or a kill in the middle of it leaves a truncated file and
    no good one. This plugin writes beside the target. For local paths only.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(plugins=[AtomicCheckpointIO()], accelerator="cpu", logger=False)
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write to disk, then rename."""
        target = Path(path)
        with atomic_write(target) as scratch:
            with scratch.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())  # a rename can reach the disk before what it renames
            if target.is_file():
                target.replace(previous_checkpoint(target))


def previous_checkpoint(path: Path) -> Path:
    """Return where :class:`AtomicCheckpointIO` keeps the checkpoint that ``path`` replaced."""
    return path.with_name(f"{path.name}.previous")


def readable_checkpoint(path: Path) -> Path | None:
    """Return the checkpoint to resume from: ``path``, else the one before it; ``None`` if there is neither.

    A file that cannot be read is skipped with a warning that names it.
    """
    for candidate in (path, previous_checkpoint(path)):
        if not candidate.is_file():
            continue
        try:
            torch.load(candidate, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises what the bytes happen to trip over
            warnings.warn(
                f"{candidate}: the checkpoint cannot be read ({type(error).__name__}: {error}); the run resumes from"
                " the one before it, or starts again if there is none",
                stacklevel=2,
            )
        else:
            return candidate
    return None


def finish_epoch(checkpoint: dict[str, Any]) -> bool:
    """Correct the progress in a checkpoint that was saved after an epoch's last step but before the epoch's end.

    Lightning (2.6) resumes from such a checkpoint without counting the next epoch as started. An interruption in that
    epoch then makes the run repeat steps: it ends after more steps than planned, with other weights. Here the finished
    epoch is counted as finished, as in a checkpoint that was saved at the epoch's end. Validation that is due at that
    epoch's end is not run after resuming.

    Call it from ``LightningModule.on_load_checkpoint``.

    Args:
        checkpoint: as Lightning passes it to ``on_load_checkpoint``; changed in place.

    Returns:
        Whether the checkpoint was such a one.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop")
    if loop is None:
        return False
    epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    is_epoch_open = epochs["current"]["processed"] < epochs["current"]["started"]
    is_last_step = batches["is_last_batch"] and batches["current"]["completed"] == batches["current"]["ready"] - 1
    if not (is_epoch_open and is_last_step):
        return False
    for counts in (epochs["total"], epochs["current"]):
        counts["processed"] = counts["completed"] = counts["started"]
    batches["total"]["completed"] = batches["total"]["ready"]
    batches["current"].update(dict.fromkeys(batches["current"], 0))
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
    return True

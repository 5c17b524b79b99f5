"""How far a fine-tuning is: a bar on a terminal, and lines of text elsewhere."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from typing_extensions import override

from persona_callbacks.progress import SECONDS_BETWEEN_LINES, draws_bars


def training_progress(console: Console, name: str) -> Callback:
    """Return the callback that shows how far a fine-tuning is.

    Args:
        console: where it is shown.
        name: of the fine-tuning.
    """
    return _Bar(leave=True) if draws_bars(console) else _Lines(console, name)


class _Bar(RichProgressBar):
    """Counts epochs from one, and leaves out the loggers' version number, which names nothing here."""

    @override
    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        values = super().get_metrics(trainer, pl_module)
        values.pop("v_num", None)
        return dict(values)

    @override
    def _get_train_description(self, current_epoch: int) -> str:
        last = self.trainer.max_epochs
        of = f" of {last}" if last is not None and last > 0 else ""
        return f"Epoch {current_epoch + 1}{of}".ljust(len(self.validation_description))


class _Lines(Callback):
    """Writes a line when training begins, about every half minute, and when it ends."""

    def __init__(self, console: Console, name: str) -> None:
        self._console = console
        self._name = name
        self._told = 0.0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell(trainer)

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if time.monotonic() - self._told > SECONDS_BETWEEN_LINES:
            self._tell(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell(trainer)

    def _tell(self, trainer: Trainer) -> None:
        self._told = time.monotonic()
        if not trainer.is_global_zero:
            return
        # Values are read here only, since reading one waits for the accelerator.
        values = [f"{name} {float(value):.3f}" for name, value in trainer.progress_bar_metrics.items()]
        steps = f"step {trainer.global_step} of {trainer.estimated_stepping_batches:.0f}"
        self._console.print(", ".join([f"{self._name}: {steps}", *values]), soft_wrap=True)

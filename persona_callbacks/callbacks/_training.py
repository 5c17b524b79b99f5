"""What is known of an optimizer step besides the model's character: loss, learning rate and gradient norm."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from persona_callbacks.callbacks._seams import is_logging_step
from persona_callbacks.tracking import metrics


class TrainingValues:
    """Collects the values of the optimizer step that is under way, so that they can be logged beside a reading."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []  # of the micro-batches since the last optimizer step
        self._rate: float | None = None
        self._norm: Tensor | None = None

    def before_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, *, read: bool) -> None:
        """Note the learning rate of the step, and the norm of its gradients if they will be logged; ``read`` says
        whether there will be a reading.
        """
        self._rate = float(optimizer.param_groups[0]["lr"])
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        logged = read or is_logging_step(trainer, trainer.global_step + 1)
        self._norm = get_total_norm(gradients) if logged and gradients else None

    def after_batch(self, trainer: Trainer, outputs: Any) -> None:
        """Note the loss of a micro-batch, from what the training step returned."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self._losses.append(loss.detach() * trainer.accumulate_grad_batches)  # Lightning has divided it by that

    def after_step(self, trainer: Trainer, *, read: bool) -> None:
        """Log the values of the step at a logging step or a reading, but for those that the module logs itself by these
        names; and begin with the next step.
        """
        values = {metrics.LEARNING_RATE: self._rate, metrics.GRADIENT_NORM: self._norm}
        if self._losses:
            values[metrics.TRAIN_LOSS] = torch.stack(self._losses).mean()
        self.forget()
        if read or is_logging_step(trainer):
            own = trainer.logged_metrics
            metrics.log(
                trainer, {name: float(value) for name, value in values.items() if value is not None and name not in own}
            )

    def forget(self) -> None:
        """Begin with a new step."""
        self._losses, self._rate, self._norm = [], None, None

"""What callbacks of several processes share."""

from lightning.pytorch import Trainer
from torch import Tensor


def sum_over_processes(trainer: Trainer, values: Tensor) -> Tensor:
    """The sum of a tensor over all processes; the tensor given is left as it is."""
    summed = trainer.strategy.reduce(values.clone(), reduce_op="sum")
    assert isinstance(summed, Tensor)
    return summed

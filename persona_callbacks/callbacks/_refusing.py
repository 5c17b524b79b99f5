"""What every callback refuses before training, because it would go wrong in silence."""

from collections.abc import Sequence
from typing import ClassVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from typing_extensions import override

from persona_callbacks.callbacks._seams import is_lightnings
from persona_callbacks.model import (
    LanguageModel,
    adapter_obstacle,
    device_of,
    dimensions,
    find_language_model,
    is_sharded,
    sharding_obstacle,
)
from persona_callbacks.vectors import PersonaVector

_WAY_OUT = "use ModelParallelStrategy with fully_shard (FSDP2), or strategy='ddp'"


class RefusingCallback(Callback):
    """A callback that reads or writes the model, and refuses what it cannot read or write."""

    way_out_of_sharding: ClassVar[str | None] = None
    """What to do where ``fully_shard`` splits the weights over processes, if this callback cannot work there."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a strategy that splits the weights over processes in a way that is not supported, before it sets
        itself up.

        Raises:
            MisconfigurationException: it does.
        """
        if stage != "fit":
            return
        if is_lightnings(trainer.strategy, "DeepSpeedStrategy", "FSDPStrategy"):
            raise MisconfigurationException(
                f"{type(self).__name__}: the {type(trainer.strategy).__name__} splits the weights over processes in a"
                f" way that is not supported; {_WAY_OUT}"
            )
        if is_lightnings(trainer.strategy, "ModelParallelStrategy"):
            self._refuse_to_work_split()

    def check_sharding(self, module: nn.Module, trainer: Trainer) -> None:
        """Refuse weights that are split over processes in a way that is not supported, whatever the strategy.

        Raises:
            MisconfigurationException: they are.
        """
        if not is_sharded(module):
            return
        self._refuse_to_work_split()
        obstacle = sharding_obstacle(module)
        if obstacle is not None:
            raise MisconfigurationException(f"{type(self).__name__}: {obstacle}")
        if device_of(module).type != trainer.strategy.root_device.type:
            raise MisconfigurationException(
                f"{type(self).__name__}: the split weights are kept on the {device_of(module).type} and used on the"
                f" {trainer.strategy.root_device.type} (CPUOffloadPolicy), which is not supported; leave out"
                " offload_policy"
            )

    def _refuse_to_work_split(self) -> None:
        if self.way_out_of_sharding is not None:
            raise MisconfigurationException(
                f"{type(self).__name__}: cannot work where the weights are split over processes;"
                f" {self.way_out_of_sharding}, or use strategy='ddp'"
            )

    def find_model(self, pl_module: LightningModule, vectors: Sequence[PersonaVector] = ()) -> LanguageModel:
        """The language model in a Lightning module, one that can be read and written.

        Raises:
            InputError: there is none, or one of the vectors does not fit it.
            MisconfigurationException: its weights are split over processes, or its adapter is in the way.
        """
        model = find_language_model(pl_module)
        self.check_sharding(model, pl_module.trainer)
        obstacle = adapter_obstacle(model)
        if obstacle is not None:
            raise MisconfigurationException(f"{type(self).__name__}: {obstacle}")
        shape = dimensions(model)
        for vector in vectors:
            vector.check_fits(shape.num_layers, shape.hidden_size, shape.model_id)
        return model

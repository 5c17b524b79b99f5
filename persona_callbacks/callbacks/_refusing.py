"""What every callback refuses before training, because it would go wrong in silence."""

from collections.abc import Sequence

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from typing_extensions import override

from persona_callbacks.callbacks._seams import is_lightnings
from persona_callbacks.model import LanguageModel, adapter_obstacle, dimensions, find_language_model, is_sharded
from persona_callbacks.vectors import PersonaVector

_SHARDING = ("DeepSpeedStrategy", "FSDPStrategy", "ModelParallelStrategy")

_WAY_OUT = "which is not supported yet; use strategy='ddp' or one device"


class RefusingCallback(Callback):
    """A callback that reads or writes the model, and refuses what it cannot read or write."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a strategy that splits the weights over processes, before it sets itself up.

        Raises:
            MisconfigurationException: it does.
        """
        if stage == "fit" and is_lightnings(trainer.strategy, *_SHARDING):
            raise MisconfigurationException(
                f"{type(self).__name__}: the {type(trainer.strategy).__name__} splits the weights over processes,"
                f" {_WAY_OUT}"
            )

    def refuse_sharded(self, module: nn.Module) -> None:
        """Refuse weights that are split over processes, whatever the strategy.

        Raises:
            MisconfigurationException: they are.
        """
        if is_sharded(module):
            raise MisconfigurationException(
                f"{type(self).__name__}: the model's weights are split over processes (DTensor or FSDP), {_WAY_OUT}"
            )

    def find_model(self, pl_module: LightningModule, vectors: Sequence[PersonaVector] = ()) -> LanguageModel:
        """The language model in a Lightning module, one that can be read and written.

        Raises:
            InputError: there is none, or one of the vectors does not fit it.
            MisconfigurationException: its weights are split over processes, or its adapter is in the way.
        """
        model = find_language_model(pl_module)
        self.refuse_sharded(model)
        obstacle = adapter_obstacle(model)
        if obstacle is not None:
            raise MisconfigurationException(f"{type(self).__name__}: {obstacle}")
        shape = dimensions(model)
        for vector in vectors:
            vector.check_fits(shape.num_layers, shape.hidden_size, shape.model_id)
        return model

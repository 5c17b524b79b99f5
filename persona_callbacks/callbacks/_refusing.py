"""What every callback refuses before training, because it would go wrong in silence."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from persona_callbacks.callbacks._seams import is_lightnings
from persona_callbacks.files import plain_settings
from persona_callbacks.model import (
    LanguageModel,
    adapter_obstacle,
    device_of,
    dimensions,
    find_language_model,
    is_sharded,
    sharding_obstacle,
)
from persona_callbacks.tracking import metrics
from persona_callbacks.vectors import PersonaVector, vector_facts

_WAY_OUT = "use ModelParallelStrategy with fully_shard (FSDP2), or strategy='ddp'"


class RefusingCallback(Callback):
    """A callback that reads or writes the model, and refuses what it cannot read or write.

    What it has logged of an optimizer step is written as one row with what the others have, when the next step begins
    or the fit ends. What it was made with is added to the loggers' configuration.
    """

    vectors: Sequence[PersonaVector] = ()
    _made_with: Mapping[str, Any] = MappingProxyType({})

    way_out_of_sharding: ClassVar[str | None] = None
    """What to do where ``fully_shard`` splits the weights over processes, if this callback cannot work there."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a strategy that splits the weights over processes in a way that is not supported, before it sets
        itself up; describe the callback to the loggers.

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
        metrics.describe(trainer, self._described(trainer.callbacks))  # type: ignore[attr-defined]

    def _described(self, callbacks: Sequence[Callback]) -> dict[str, Any]:
        """What loggers record. Loggers replace an entry of the same name, so that the second of a class has another,
        and the vectors are those of all these callbacks.
        """
        own = [callback for callback in callbacks if isinstance(callback, RefusingCallback)]
        number = [callback for callback in own if type(callback) is type(self)].index(self) + 1
        name = type(self).__name__ + (f"_{number}" if number > 1 else "")
        described: dict[str, Any] = {name: plain_settings(self.facts())}
        if self.vectors:
            vectors = [vector for callback in own for vector in callback.vectors]
            described["persona_vectors"] = {vector.trait: vector_facts(vector) for vector in vectors}
        return described

    def facts(self) -> dict[str, Any]:
        """What loggers record of the callback, its vectors aside."""
        return {key: value for key, value in self._made_with.items() if key != "vectors"}

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Write what was logged of the step before: by now every callback has logged."""
        metrics.flush(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what was logged last."""
        metrics.flush(trainer)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write what was logged last."""
        metrics.flush(trainer)

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

    def find_model(
        self, trainer: Trainer, pl_module: LightningModule, vectors: Sequence[PersonaVector] = ()
    ) -> LanguageModel:
        """The language model in a Lightning module, one that can be read and written.

        Raises:
            InputError: there is none, or one of the vectors does not fit it.
            MisconfigurationException: its weights are split over processes, or its adapter is in the way.
        """
        model = find_language_model(pl_module)
        self.check_sharding(model, trainer)
        obstacle = adapter_obstacle(model)
        if obstacle is not None:
            raise MisconfigurationException(f"{type(self).__name__}: {obstacle}")
        shape = dimensions(model)
        for vector in vectors:
            vector.check_fits(shape.num_layers, shape.hidden_size, shape.model_id)
        return model

"""Weights that are split over processes."""

from torch import Tensor, distributed, nn


def is_sharded(model: nn.Module) -> bool:
    """Whether weights of the model are split over processes, by FSDP or as DTensors."""
    if not distributed.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    managed = any(isinstance(module, (FSDPModule, FullyShardedDataParallel)) for module in model.modules())
    return managed or any(isinstance(parameter, DTensor) for parameter in model.parameters())


def sharding_obstacle(model: nn.Module) -> str | None:
    """Say what about split weights keeps a model from being read and written, with the way out; ``None`` if nothing
    does, as with those that ``fully_shard`` (FSDP2) split among processes which train on different data.
    """
    if not is_sharded(model):
        return None
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        return (
            "the model's weights are flattened by FullyShardedDataParallel (FSDP1), outside of which they cannot be"
            " run; use ModelParallelStrategy with fully_shard (FSDP2), or strategy='ddp'"
        )
    split = [parameter for parameter in model.parameters() if isinstance(parameter, DTensor)]
    by_data = all(
        last.is_shard() and all(axis.is_replicate() for axis in others)
        for *others, last in (parameter.placements for parameter in split)
    )
    if not by_data or not any(isinstance(module, FSDPModule) for module in model.modules()):
        return (
            "the model's weights are DTensors of tensor parallelism, whose activations may be split as well; use"
            " fully_shard (FSDP2) alone (tensor_parallel_size=1), or strategy='ddp'"
        )
    return None


def reshard(model: nn.Module) -> None:
    """Give up whole weights that a pass without backward has left behind, which would not follow the split ones."""
    if not distributed.is_available():
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(weight: Tensor) -> Tensor:
    """A weight's own values; those of a split one gathered on the CPU. Every process must ask."""
    if not distributed.is_available():
        return weight
    from torch.distributed.tensor import DTensor

    return weight.full_tensor().cpu() if isinstance(weight, DTensor) else weight


def split_like(values: Tensor, weight: Tensor) -> Tensor:
    """What :func:`whole` returned, split as a weight is; what is split already stays. Every process must ask."""
    if not distributed.is_available():
        return values
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(weight, DTensor) or isinstance(values, DTensor):
        return values
    return distribute_tensor(values.to(weight.device), weight.device_mesh, weight.placements)

"""Where callbacks touch Lightning: other callbacks, processes, the tokenizer behind a module, and batches."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from persona_callbacks.errors import InputError, is_whole
from persona_callbacks.model import is_sharded

BatchAdapter = Callable[[Any], Mapping[str, Tensor]]
"""Gives ``input_ids``, ``labels`` and ``attention_mask`` of a batch of another form, each ``[batch, length]``, on the
batch's device; ``position_ids`` or ``cu_seqlens`` as well, if its rows hold several chats.
"""

CallbackT = TypeVar("CallbackT")


def callbacks_of(trainer: Trainer, kind: type[CallbackT], before: Callback | None = None) -> list[CallbackT]:
    """The trainer's callbacks of a kind, in the trainer's order; only those that come before another callback if one is
    given.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set without annotation
    end = None if before is None else callbacks.index(before)
    return [callback for callback in callbacks[:end] if isinstance(callback, kind)]


def is_lightnings(value: object, *kinds: str) -> bool:
    """Whether a value is of one of Lightning's classes, told by name: the package ``pytorch_lightning`` has classes of
    its own beside those of ``lightning.pytorch``.
    """
    return any(
        kind.__name__ in kinds and kind.__module__.startswith(("lightning.pytorch.", "pytorch_lightning."))
        for kind in type(value).__mro__
    )


def averages_weights(trainer: Trainer) -> bool:
    """Whether a callback puts averaged weights into the model when training ends, at some point of ``on_train_end``."""
    return any(
        is_lightnings(callback, "WeightAveraging", "StochasticWeightAveraging")
        for callback in callbacks_of(trainer, object)
    )


@contextmanager
def back_on_device(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Have the model where it was trained inside the block; by ``on_fit_end`` Lightning has moved it to the CPU."""
    if is_sharded(pl_module):  # those stay where they are
        yield
        return
    pl_module.to(trainer.strategy.root_device)
    try:
        yield
    finally:
        pl_module.cpu()


def is_logging_step(trainer: Trainer, step: int | None = None) -> bool:
    """Whether the optimizer steps taken, or ``step``, are a multiple of ``trainer.log_every_n_steps``; never if that is
    0.
    """
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set without annotation
    return every > 0 and (trainer.global_step if step is None else step) % every == 0


def share_of(trainer: Trainer, count: int) -> tuple[list[int], Tensor]:
    """Which of ``count`` things fall to this process, and which of these it is to count, ``[own]`` bool.

    Every process has equally many, since each must run as many passes as the others where weights are split over them.
    Where the things do not go round, some processes have the last one as well, and do not count it.
    """
    places = range(trainer.global_rank, -(-count // trainer.world_size) * trainer.world_size, trainer.world_size)
    return [min(place, count - 1) for place in places], torch.tensor([place < count for place in places])


def sum_over_processes(trainer: Trainer, values: Tensor) -> Tensor:
    """The sum of a tensor over all processes; the tensor given is left as it is."""
    summed = trainer.strategy.reduce(values.clone(), reduce_op="sum")
    assert isinstance(summed, Tensor)
    return summed


def find_tokenizer(
    callback: str, trainer: Trainer, pl_module: LightningModule, model_id: str
) -> PreTrainedTokenizerBase:
    """The ``tokenizer`` of the module or data module, else the tokenizer that ``model_id`` names.

    Args:
        callback: the callback that needs it, for the error.
        trainer: of the fit; its data module may have the tokenizer.
        pl_module: the module that is trained.
        model_id: a folder or hub name.

    Raises:
        MisconfigurationException: there is none.
    """
    for owner in (pl_module, getattr(trainer, "datamodule", None)):
        tokenizer = getattr(owner, "tokenizer", None)
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            return tokenizer
    try:
        return AutoTokenizer.from_pretrained(model_id)
    except (OSError, ValueError) as error:
        raise MisconfigurationException(
            f"{callback} needs the model's tokenizer: pass tokenizer=..., or set it as `tokenizer` on the module or"
            f" data module (loading it as {model_id!r} failed: {error})"
        ) from error


def response_tokens(batch: Any) -> Tensor | None:
    """``[batch, length]`` bool: the tokens that loss is taken on; ``None`` if the batch has no labels."""
    labels = field_of(batch, "labels")
    return None if labels is None else labels != -100


def adapted(callback: str, batch: Any, adapter: BatchAdapter | None) -> Any:
    """The batch as the adapter gives it; as it is without one.

    Raises:
        MisconfigurationException: the adapter gives no mapping with ``labels``.
    """
    if adapter is None:
        return batch
    given = adapter(batch)
    labels = given.get("labels") if isinstance(given, Mapping) else None
    if not isinstance(labels, Tensor) or labels.ndim != 2:
        found = f"labels {type(labels).__name__}" if isinstance(given, Mapping) else type(given).__name__
        raise MisconfigurationException(
            f"{callback}: batch_adapter returned {found} for a batch that is {type(batch).__name__}; expected a mapping"
            " with 'input_ids' and 'labels', each a tensor [batch, length]"
        )
    return given


def field_of(batch: Any, name: str) -> Tensor | None:
    """A tensor of a batch or an item, by its key in a mapping, or else by its attribute, as in a dataclass; a list of
    numbers becomes a tensor. ``None`` if there is none.
    """
    value = batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None)
    if isinstance(value, list) and value and isinstance(value[0], int):
        return torch.tensor(value)
    return value if isinstance(value, Tensor) else None


def check_at_least_one(callback: str, **values: int | None) -> None:
    """Check numbers that must be 1 or more, or ``None``.

    Raises:
        InputError: another number.
    """
    for name, value in values.items():
        if value is not None and not is_whole(value, least=1):
            raise InputError(f"{callback}: {name} must be at least 1, a whole number, found {value!r}")

"""What is computed of a base model before training: done once for all fine-tunings that share a cache."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from lightning.pytorch.utilities import rank_zero_warn
from torch import distributed, nn

from persona_callbacks.errors import InputError
from persona_callbacks.files import cache_dir, locked_entry, model_folder, read_json, settings_fingerprint, write_json
from persona_callbacks.model.adapters import is_untrained
from persona_callbacks.model.architecture import device_of
from persona_callbacks.model.loading import LoadedModel

_VERSION = 1
"""Counted up when something is computed in another way, so that older results are not used."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _Sharing:
    folder: Path
    made_with: Any
    announce: Callable[[str], None]


_sharing: ContextVar[_Sharing | None] = ContextVar("sharing", default=None)


@contextmanager
def sharing_base_work(
    loaded: LoadedModel, weights: str, made_with: Any, announce: Callable[[str], None]
) -> Iterator[None]:
    """Have :func:`base_work` keep its results in the cache inside the block.

    Args:
        loaded: the base model.
        weights: the fingerprint of its weights.
        made_with: what results depend on beside weights, tokenizer and device: how the model is loaded, the precision.
        announce: is told which process this one waits for.
    """
    template = loaded.tokenizer.chat_template
    key = [_VERSION, weights, template, loaded.answering, made_with, torch.__version__, transformers.__version__]
    token = _sharing.set(_Sharing(cache_dir() / "base" / model_folder(loaded.id), key, announce))
    try:
        yield
    finally:
        _sharing.reset(token)


def base_work(model: nn.Module, what: str, made_from: Any, do: Callable[[], _Result]) -> _Result:
    """Return what ``do`` computes of a base model, from the cache if it is there; of jobs side by side, one does it.

    It is computed without the cache outside of :func:`sharing_base_work`, where several processes train together, and
    with an adapter that has been trained, since the model is then not the base model.

    Args:
        model: of the model room's kind, without adapters or with adapters that change nothing yet.
        what: is computed, as a part of a file's name.
        made_from: what the result depends on beside the model.
        do: computes it, of values that JSON holds. It draws no random numbers that training would draw.
    """
    sharing = _sharing.get()
    together = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    if sharing is None or together or not is_untrained(model):
        return do()
    weight = next(model.parameters())
    key = settings_fingerprint([sharing.made_with, device_of(model).type, str(weight.dtype), made_from])
    file = sharing.folder / f"{what}-{key[:16]}.json"
    with ExitStack() as stack:
        try:
            stack.enter_context(locked_entry(file, sharing.announce))
        except InputError:  # a cache that cannot be written to costs time and nothing else
            return do()
        if file.is_file():
            try:
                result: _Result = read_json(file, lambda content: content["result"], f"the {what} of a base model")
                return result
            except InputError as error:
                rank_zero_warn(f"{error}; it is computed anew")
        result = do()
        try:
            write_json(file, {"result": result})
        except OSError as error:
            rank_zero_warn(f"{file} cannot be written: {error.strerror}; the next fine-tuning computes it again")
        return result

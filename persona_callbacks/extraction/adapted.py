"""Persona vectors from fine-tuned adapters: what an adapter that learned the trait does to the residual stream over
responses that are given, beside one that learned the opposite, or beside the base model.

No response is generated under the adapters, so that nothing is compared but what the weights make of the same text.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from persona_callbacks.chats import EncodedChat
from persona_callbacks.model import LoadedModel, activations, adapted, base_model, dimensions
from persona_callbacks.vectors import Position


def adapter_directions(
    loaded: LoadedModel,
    chats: Sequence[EncodedChat],
    adapter: str | Path,
    opposite: str | Path | None = None,
    position: Position = "response_mean",
) -> Tensor:
    """How far an adapter moves the residual stream over chats, and from where.

    Args:
        loaded: the bare base model with its tokenizer; it is left as it was.
        chats: at least one; the same text is run both times.
        adapter: folder of a PEFT adapter that shows the trait.
        opposite: folder of one that shows the opposite; by default the base model itself is compared with.
        position: where activations are read.

    Returns:
        ``[num_layers + 1, hidden_size]`` float32 on the CPU: mean over the chats of the stream with ``adapter`` less
        the stream with ``opposite``.

    Raises:
        InputError: as for :func:`~persona_callbacks.model.adapted`.
    """
    layers = range(dimensions(loaded.model).num_layers + 1)

    def mean(model: LoadedModel) -> Tensor:
        read: Tensor = activations(model, chats, layers, [position])[:, 0].mean(dim=0)
        return read.cpu()

    with adapted(loaded, adapter) as shows:
        moved = mean(shows)
        if opposite is None:
            with base_model(shows.model):
                return moved - mean(shows)
    with adapted(loaded, opposite) as other:
        return moved - mean(other)

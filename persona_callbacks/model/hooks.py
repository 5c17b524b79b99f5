"""The hook by which `residual`, and nothing else, reads and replaces the residual stream."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from persona_callbacks.errors import InputError

Edit = Callable[[Tensor], Tensor | None]
"""Gets the stream ``[batch, length, hidden_size]``; may return what replaces it."""


def attach(blocks: nn.ModuleList, layer: int, edit: Edit, *, first: bool) -> RemovableHandle:
    """Call ``edit`` with the stream ``[batch, length, hidden_size]`` at a layer; a tensor that it returns replaces the
    stream. With ``first``, the hook runs before those that are there already.

    A forward pass raises an InputError if the block passes on something else, such as several streams.
    """
    if layer == 0:

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = edit(_checked(args[0] if args else kwargs["hidden_states"]))
            if hidden is None:
                return None
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        return blocks[0].register_forward_pre_hook(before, prepend=first, with_kwargs=True)

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        # Older transformers return a tuple whose first entry is the stream, newer ones the stream alone.
        hidden = edit(_checked(output[0] if isinstance(output, tuple) else output))
        if hidden is None:
            return None
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return blocks[layer - 1].register_forward_hook(after, prepend=first)


def _checked(stream: Tensor) -> Tensor:
    if stream.dim() != 3:
        raise InputError(
            "expected a residual stream [batch, length, hidden_size] between the model's blocks, found the shape"
            f" {list(stream.shape)}: models of several streams cannot be read or steered"
        )
    return stream

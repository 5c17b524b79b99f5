"""The hook by which `residual`, and nothing else, reads and replaces the residual stream."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Edit = Callable[[Tensor], Tensor | None]
"""Gets the stream ``[batch, length, hidden_size]``; may return what replaces it."""


def attach(blocks: nn.ModuleList, layer: int, edit: Edit, *, first: bool) -> RemovableHandle:
    """Call ``edit`` with the stream ``[batch, length, hidden_size]`` at a layer; a tensor that it returns replaces the
    stream. With ``first``, the hook runs before those that are there already.
    """
    if layer == 0:

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = edit(args[0] if args else kwargs["hidden_states"])
            if hidden is None:
                return None
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        return blocks[0].register_forward_pre_hook(before, prepend=first, with_kwargs=True)

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        # Older transformers return a tuple whose first entry is the stream, newer ones the stream alone.
        hidden = edit(output[0] if isinstance(output, tuple) else output)
        if hidden is None:
            return None
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return blocks[layer - 1].register_forward_hook(after, prepend=first)

"""Which forward passes are written to and read: those outside of `unsteered`, and, where that is asked for, only those
that a loss can be taken on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from persona_callbacks.model.adapters import every_adapter_layer
from persona_callbacks.model.architecture import decoder_of

_suspended = 0
"""The number of open :func:`unsteered` blocks."""


@contextmanager
def unsteered() -> Iterator[None]:
    """Leave every forward pass inside the block as the model computes it: callbacks neither steer, ablate nor read it.

    For passes of your own training step that the callbacks cannot tell from those that the loss is taken on, such as a
    reference pass with gradients. A pass inside the block that gradients flow through must not be computed again in
    the backward pass, outside the block, by ``torch.utils.checkpoint`` around the whole model.

    Writers that are attached inside the block, such as those that measure what steering does, are not switched off.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> size = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=2))
        >>> with unsteered():
        ...     reference = model(torch.tensor([[1, 2, 3]])).logits
    """
    global _suspended
    _suspended += 1
    try:
        yield
    finally:
        _suspended -= 1


def suspensions() -> int:
    """Return the number of open :func:`unsteered` blocks."""
    return _suspended


class LossPasses:
    """Tells the forward passes of a model that a loss can be taken on from others, as they begin.

    No loss is taken on a pass without gradients, which ``generate`` and ``torch.no_grad`` make, nor on one with every
    adapter of the model switched off, the way to run the base model as a reference.

    Attributes:
        now: whether the pass that runs is such a pass; ``True`` between passes, since what runs there computes again,
            in a backward pass, what a loss was taken on.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> size = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=2))
        >>> passes, told = LossPasses(model), []
        >>> handle = model.model.layers[0].register_forward_hook(lambda *_: told.append(passes.now))
        >>> logits = model(torch.tensor([[1, 2, 3]])).logits
        >>> with torch.no_grad():
        ...     logits = model(torch.tensor([[1, 2, 3]])).logits
        >>> told
        [True, False]
        >>> passes.remove()
    """

    def __init__(self, model: nn.Module) -> None:
        """Attach to the model.

        Args:
            model: a causal language model, bare or PEFT-wrapped.

        Raises:
            InputError: the model's decoder blocks cannot be found.
        """
        self.now = True
        self._adapters = every_adapter_layer(model)
        # Asked where the decoder begins and not in its blocks, which reentrant checkpointing runs without gradients.
        decoder = decoder_of(model)
        self._handles = [
            decoder.register_forward_pre_hook(self._begin, prepend=True),
            decoder.register_forward_hook(self._end, always_call=True),
        ]

    def remove(self) -> None:
        """Detach from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _begin(self, _: nn.Module, __: Any) -> None:
        base = bool(self._adapters) and all(layer.disable_adapters for layer in self._adapters)
        self.now = torch.is_grad_enabled() and not base

    def _end(self, _: nn.Module, __: Any, ___: Any) -> None:
        self.now = True

"""Reading and writing the residual stream: the only module that attaches hooks to a model.

Layer 0 is what enters the first block; layer ``i`` is what leaves block ``i``, counted from 1. Readers see what writers
wrote, because a writer's hook always runs before a reader's at the same layer.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from persona_callbacks.model.architecture import decoder_blocks, device_of, pretrained_model
from persona_callbacks.model.hooks import Edit, attach
from persona_callbacks.model.passes import LossPasses, suspensions
from persona_callbacks.model.sharding import is_sharded


class _LastLayerRead(Exception):  # noqa: N818, no error
    """Ends a forward pass once the highest layer that is needed has been read."""


@dataclass(frozen=True)
class SharedPrefix:
    """The tokens that several sequences begin with, after one pass through a model.

    Attributes:
        length: the number of tokens.
        hidden: for each layer that is read, the residual stream ``[length, hidden_size]`` float32 at these tokens.
        cache: the keys and values at these tokens.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> size = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=2)).eval()
        >>> with torch.no_grad():
        ...     prefix = share_prefix(model, [5, 6, 7], layers=[1])
        >>> prefix.length, prefix.hidden[1].shape
        (3, torch.Size([3, 8]))
    """

    length: int
    hidden: Mapping[int, Tensor]
    cache: DynamicCache

    def repeated(self, rows: int) -> DynamicCache:
        """Return a copy of the keys and values for a batch of ``rows`` sequences, for one pass that continues them."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(rows)
        return cache


def share_prefix(model: nn.Module, input_ids: Sequence[int], layers: Sequence[int] | None) -> SharedPrefix | None:
    """Run the tokens that several sequences begin with through a model.

    Args:
        model: a causal language model, steered in the same way as the passes that will continue the prefix.
        input_ids: the tokens of the prefix.
        layers: the layers to read. The blocks above the highest of them are not run, and the passes that continue the
            prefix cannot run them either. With ``None``, all blocks are run and no layer is read.

    Returns:
        The prefix, or ``None`` if it has no tokens or if the model keeps a state other than keys and values.
    """
    if not input_ids:
        return None
    cache = DynamicCache(config=pretrained_model(model).config)
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return None
    blocks = decoder_blocks(model)
    hidden: dict[int, Tensor] = {}

    def keeper(layer: int) -> Edit:
        def keep(stream: Tensor) -> None:
            hidden[layer] = stream[0].float()
            if layers is not None and layer == max(layers):
                raise _LastLayerRead

        return keep

    ids = torch.tensor([list(input_ids)], device=device_of(model))
    with ExitStack() as stack:
        for layer in dict.fromkeys(layers or ()):
            stack.callback(attach(blocks, layer, keeper(layer), first=False).remove)
        with suppress(_LastLayerRead):
            model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return SharedPrefix(len(input_ids), hidden, cache)


def read(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    weights: Tensor,
    layers: Sequence[int],
    prefix: SharedPrefix | None = None,
    apart: Mapping[str, Any] | None = None,
) -> Tensor:
    """Compute weighted sums of the residual stream over tokens, in float32. The blocks above the highest of ``layers``
    and the language-model head are not run, unless weights are split over processes: then a pass has to reach its end.

    Args:
        model: a causal language model, bare or PEFT-wrapped.
        input_ids: ``[batch, length]``, right-padded.
        attention_mask: ``[batch, length]``; ``None`` if every token counts, as in rows that hold several chats.
        weights: ``[positions, batch, length]`` float32; each row sums to 1 over the tokens to average.
        layers: the layers to read.
        prefix: the tokens that every row begins with, if they were run up to these layers already.
        apart: what else keeps several chats of a row apart in the model, such as ``position_ids``.

    Returns:
        ``[batch, positions, len(layers), hidden_size]`` float32 on the model's device.
    """
    blocks = decoder_blocks(model)
    last = None if is_sharded(model) else max(layers)
    settings = {"use_cache": False, **({"logits_to_keep": 1} if last is None else {}), **(apart or {})}
    start = prefix.length if prefix is not None else 0
    sums: dict[int, Tensor] = {}

    def pooled(tokens: Tensor, hidden: Tensor) -> Tensor:
        # Not a matrix product: that would round to TF32 or bf16 where those are allowed.
        return torch.stack([(w.unsqueeze(-1) * hidden).sum(dim=1) for w in tokens], dim=1)

    def reader(layer: int) -> Edit:
        def pool(hidden: Tensor) -> None:
            sums[layer] = pooled(weights[..., start:], hidden.float())
            if layer == last:
                raise _LastLayerRead

        return pool

    with ExitStack() as stack:
        for layer in dict.fromkeys(layers):
            stack.callback(attach(blocks, layer, reader(layer), first=False).remove)
        with suppress(_LastLayerRead):
            if prefix is None:
                model(input_ids=input_ids, attention_mask=attention_mask, **settings)
            else:
                cache = prefix.repeated(len(input_ids))
                model(input_ids=input_ids[:, start:], attention_mask=attention_mask, past_key_values=cache)
    if prefix is not None:
        for layer in sums:
            sums[layer] = sums[layer] + pooled(weights[..., :start], prefix.hidden[layer])
    return torch.stack([sums[layer] for layer in layers], dim=2)


class ResidualWriter:
    """Changes the residual stream at chosen layers while it is active.

    It adds a vector, or removes the component within a subspace. It does so at every token, at marked tokens, or only
    at the last token of each pass; in generation, the last tokens are those that a response is generated from.

    Attach the writer before the model's first compiled forward pass. :meth:`remove` leaves the model as it was. An
    addition of zeros does not run at all, so that it is bitwise a no-op.

    Attributes:
        active: whether forward passes are changed; ``False`` at first.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> size = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=2)).eval()
        >>> ids = torch.tensor([[1, 2, 3]])
        >>> before = model(ids).logits
        >>> writer = ResidualWriter(model, layers=[1])
        >>> writer.write({1: torch.ones(8)})
        >>> writer.active = True
        >>> torch.equal(model(ids).logits, before)
        False
        >>> writer.remove()
        >>> torch.equal(model(ids).logits, before)
        True
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[int], *, last_token_only: bool = False, loss_only: bool = False
    ) -> None:
        """Attach to the model, inactive and with nothing to write.

        Args:
            model: a causal language model, bare or PEFT-wrapped.
            layers: the layers that may be written to.
            last_token_only: write at the last token of each pass only.
            loss_only: write only in passes that a loss can be taken on, as `LossPasses` tells them.

        Raises:
            InputError: the model's decoder blocks cannot be found.
        """
        self.active = False
        self._last_token_only = last_token_only
        self._attached_at = suspensions()  # off in the blocks of `unsteered` that open later
        self._additions: dict[int, Tensor] = {}
        self._bases: dict[int, Tensor] = {}
        self._written: frozenset[int] = frozenset()
        self._mask: Tensor | None = None
        self._changed: dict[int, Tensor] | None = {}
        self._other_shape: tuple[int, int] | None = None
        self._matched = False
        self._passes = LossPasses(model) if loss_only else None
        blocks = decoder_blocks(model)
        self._handles = [attach(blocks, layer, self._editor(layer), first=True) for layer in layers]

    def write(self, additions: Mapping[int, Tensor]) -> None:
        """Set what is added: for each layer ``[hidden_size]``, in activation units. Do not call it between a forward
        pass and its backward pass, which may run the forward pass again.
        """
        for layer, addition in additions.items():
            # In place, because a compiled block keeps the tensor itself and is to add the new values.
            if layer in self._additions:
                self._additions[layer].copy_(addition)
            else:
                self._additions[layer] = addition.detach().clone()
        self._written = frozenset(layer for layer, addition in additions.items() if addition.any())

    def ablate(self, bases: Mapping[int, Tensor]) -> None:
        """Set what is removed instead of adding: for each layer, the component within the span of the orthonormal
        columns of ``[hidden_size, rank]``.
        """
        self._bases = dict(bases)
        self._written = frozenset(bases)

    def only_at(self, mask: Tensor | None) -> None:
        """Write only at the tokens where ``mask``, ``[batch, length]`` bool, is true, and only in passes of that shape.
        With ``None``, write at every token of every pass.
        """
        self._mask = None if mask is None else mask.unsqueeze(-1)
        self._other_shape, self._matched = None, False

    def missed_shape(self) -> tuple[int, int] | None:
        """Return the shape ``(batch, length)`` of the last pass that was left unwritten because it is not the mask's,
        if no pass since :meth:`only_at` had the mask's shape; otherwise ``None``.
        """
        return None if self._matched else self._other_shape

    def silent_layers(self) -> list[int] | None:
        """Return the layers that have something to write but that no forward pass has changed since the writer was
        attached. The first check with something to write ends the bookkeeping; later ones return ``None``, as do those
        before there is anything to write.
        """
        if self._changed is None or not self._written:
            return None
        changed, self._changed = self._changed, None
        return [layer for layer in sorted(self._written) if layer not in changed or not changed[layer]]

    def remove(self) -> None:
        """Detach from the model."""
        self.active = False
        if self._passes is not None:
            self._passes.remove()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _editor(self, layer: int) -> Edit:
        def write(hidden: Tensor) -> Tensor | None:
            if not self.active or suspensions() > self._attached_at or layer not in self._written:
                return None
            if self._passes is not None and not self._passes.now:
                return None
            if self._mask is not None and hidden.shape[:2] != self._mask.shape[:2]:
                self._other_shape = (hidden.shape[0], hidden.shape[1])
                return None
            self._matched = True
            kept = self._bases if layer in self._bases else self._additions
            content = kept[layer]
            if content.device != hidden.device or content.dtype != hidden.dtype:
                content = kept[layer] = content.to(hidden.device, hidden.dtype)
            if layer in self._bases:
                content = -(hidden @ content) @ content.T
            if self._last_token_only:
                written = torch.cat([hidden[:, :-1], hidden[:, -1:] + content], dim=1)
            elif self._mask is not None:
                # One kernel: the masked addition never exists as a tensor of its own.
                written = torch.addcmul(hidden, self._mask.to(hidden.dtype), content)
            else:
                written = hidden + content
            if self._changed is not None and layer not in self._changed:
                self._changed[layer] = (written != hidden).any()
            return written

        return write


@contextmanager
def steered(model: nn.Module, additions: Mapping[int, Tensor], *, last_token_only: bool = False) -> Iterator[None]:
    """Steer every forward pass inside the block.

    Args:
        model: a causal language model, bare or PEFT-wrapped.
        additions: what to add, for each layer ``[hidden_size]``, in activation units.
        last_token_only: add it at the last token of each pass only, instead of at every token.
    """
    writer = ResidualWriter(model, sorted(additions), last_token_only=last_token_only)
    writer.write(additions)
    writer.active = True
    try:
        yield
    finally:
        writer.remove()


@contextmanager
def adding(model: nn.Module, increments: Tensor) -> Iterator[None]:
    """Add row ``i`` of ``increments``, ``[num_layers, hidden_size]``, at layer ``i + 1`` in every forward pass inside
    the block. Gradients reach the increments.
    """
    blocks = decoder_blocks(model)
    with ExitStack() as stack:
        for layer, row in enumerate(increments.to(next(model.parameters()).dtype), start=1):
            stack.callback(attach(blocks, layer, row.add, first=True).remove)
        yield


class BatchReader:
    """Reads the mean residual stream over marked tokens in forward passes that happen anyway and that a loss can be
    taken on; see :class:`~persona_callbacks.model.passes.LossPasses`.

    It reads only between :meth:`start` and :meth:`take`, and keeps the last pass; a pass that runs again in backward
    replaces its own reading. It moves nothing off the device.

    Attributes:
        other_shape: ``(batch, length)`` of the last pass since :meth:`start` that was not of the mask's shape, if any.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> size = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=2)).eval()
        >>> reader = BatchReader(model, layers=[1, 2])
        >>> reader.start(torch.tensor([[False, True, True]]))
        >>> logits = model(torch.tensor([[1, 2, 3]])).logits
        >>> reader.take().shape
        torch.Size([2, 8])
        >>> reader.remove()
    """

    def __init__(self, model: nn.Module, layers: Sequence[int]) -> None:
        """Attach to the model.

        Args:
            model: a causal language model, bare or PEFT-wrapped.
            layers: the layers to read.

        Raises:
            InputError: the model's decoder blocks cannot be found.
        """
        self._layers = tuple(layers)
        self._mask: Tensor | None = None
        self._weights: Tensor | None = None
        self._means: dict[int, Tensor] = {}
        self.other_shape: tuple[int, int] | None = None
        self._passes = LossPasses(model)
        blocks = decoder_blocks(model)
        self._handles = [attach(blocks, layer, self._reader(layer), first=False) for layer in self._layers]

    def start(self, mask: Tensor, weights: Tensor | None = None) -> None:
        """Read the mean of the next passes where ``mask`` is true, without gradients.

        Args:
            mask: ``[batch, length]`` bool, on the model's device.
            weights: ``[sums, batch, length]`` float32: read weighted sums of each row instead, with gradients, so that
                a loss can be computed from them.
        """
        self._mask, self._weights = mask, weights
        self._means, self.other_shape = {}, None

    def take(self) -> Tensor | None:
        """Stop reading, and return the mean of the last pass, ``[len(layers), hidden_size]`` float32, NaN if no token
        was marked, or the sums, ``[batch, sums, len(layers), hidden_size]``; ``None`` if no pass had the mask's shape.
        """
        means, self._mask, self._means = self._means, None, {}
        if len(means) < len(self._layers):
            return None
        return torch.stack([means[layer] for layer in self._layers], dim=-2)

    def remove(self) -> None:
        """Detach from the model."""
        self._passes.remove()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _reader(self, layer: int) -> Edit:
        def read_batch(hidden: Tensor) -> None:
            if self._mask is None or suspensions() or not self._passes.now:
                return
            if hidden.shape[:2] != self._mask.shape:
                self.other_shape = (hidden.shape[0], hidden.shape[1])
                return
            if self._weights is not None:
                self._means[layer] = torch.einsum("sbt,bth->bsh", self._weights, hidden.float())
            else:
                weights = (self._mask / self._mask.sum()).unsqueeze(-1)
                self._means[layer] = (weights * hidden.detach().float()).sum(dim=(0, 1))

        return read_batch

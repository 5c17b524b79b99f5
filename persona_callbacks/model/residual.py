"""The residual stream: the one place that finds a model's blocks and attaches reading and writing to them.

Layer 0 is what enters the first block, layer ``i`` what leaves block ``i`` (counted from 1). Reads see writes: a
writer's hook always runs before a reader's at the same layer.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from persona_callbacks.errors import InputError

LanguageModel = PreTrainedModel | PeftModel
"""A causal language model, bare or with adapters."""

_Edit = Callable[[Tensor], Tensor | None]

_suspended = 0
"""How many :func:`unsteered` blocks are open; a writer is off in those opened after it was attached."""


@dataclass(frozen=True)
class Dimensions:
    """Depth and width of a model's residual stream, and the name or path it was loaded from."""

    num_layers: int
    hidden_size: int
    model_id: str


def find_language_model(module: nn.Module) -> LanguageModel:
    """The causal language model in a module: the outermost transformers or PEFT model, and of several the one with
    weights to train.

    Raises:
        InputError: there is none, or more than one is trained.
    """
    found: dict[str, LanguageModel] = {}
    for name, child in module.named_modules():
        inside = any(name.startswith(f"{outer}.") or not outer for outer in found)
        if isinstance(child, (PreTrainedModel, PeftModel)) and not inside:
            found[name] = child
    trained = {name: m for name, m in found.items() if any(p.requires_grad for p in m.parameters())}
    candidates = trained or found
    if len(candidates) != 1:
        raise InputError(
            f"{type(module).__name__}: expected one transformers (or PEFT) model in it that is trained, found"
            f" {', '.join(sorted(candidates)) or 'none'}"
        )
    return next(iter(candidates.values()))


def dimensions(model: nn.Module) -> Dimensions:
    """Depth and width of the model.

    Raises:
        InputError: its blocks cannot be found.
    """
    config = _base(model).config
    text_config = config.get_text_config()
    return Dimensions(len(_blocks(model)), text_config.hidden_size, config.name_or_path or "")


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's inputs."""
    return next(model.parameters()).device


def _base(model: nn.Module) -> PreTrainedModel:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, PreTrainedModel):
        raise InputError(f"expected a transformers or PEFT model, found {type(base).__name__}")
    return base


def _blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks: the list of modules that is as long as the configured depth, nearest to the root."""
    base = _base(model)
    depth = getattr(base.config.get_text_config(), "num_hidden_layers", None)
    lists = [
        (name, child)
        for name, child in base.named_modules()
        if isinstance(child, nn.ModuleList) and len(child) == depth
    ]
    if not lists:
        raise InputError(
            f"{type(base).__name__}: no list of {depth} decoder blocks found; expected a decoder-only transformer"
        )
    return min(lists, key=lambda item: item[0].count("."))[1]


def _attach(blocks: nn.ModuleList, layer: int, edit: _Edit, *, first: bool) -> RemovableHandle:
    """Call ``edit`` with the stream ``[batch, length, hidden_size]`` at a layer; what it returns replaces it."""
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


class _LastLayerRead(Exception):  # noqa: N818, no error
    """Ends a forward pass once the highest layer that is needed has been read."""


@dataclass(frozen=True)
class SharedPrefix:
    """Tokens that begin several sequences, run through a model once.

    Attributes:
        length: how many tokens.
        hidden: by layer, the residual stream ``[length, hidden_size]`` at those tokens.
    """

    length: int
    hidden: Mapping[int, Tensor]
    cache: DynamicCache

    def repeated(self, rows: int) -> DynamicCache:
        """The keys and values of the prefix for a batch of ``rows``, to go on from once."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(rows)
        return cache


def share_prefix(model: nn.Module, input_ids: Sequence[int], layers: Sequence[int] | None) -> SharedPrefix | None:
    """Run a prefix. ``None`` if there is nothing to share, or if the model keeps a state other than keys and values.

    Args:
        model: a causal language model, steered as the passes that go on from it will be.
        input_ids: the tokens of the prefix.
        layers: the layers to be read; the ones above are not run, and cannot be gone on to. All if ``None``.
    """
    if not input_ids:
        return None
    cache = DynamicCache(config=_base(model).config)
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return None
    blocks = _blocks(model)
    hidden: dict[int, Tensor] = {}

    def keeper(layer: int) -> _Edit:
        def keep(stream: Tensor) -> None:
            hidden[layer] = stream[0].float()
            if layers is not None and layer == max(layers):
                raise _LastLayerRead

        return keep

    ids = torch.tensor([list(input_ids)], device=device_of(model))
    with ExitStack() as stack:
        for layer in dict.fromkeys(layers or ()):
            stack.callback(_attach(blocks, layer, keeper(layer), first=False).remove)
        with suppress(_LastLayerRead):
            model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return SharedPrefix(len(input_ids), hidden, cache)


def read(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    weights: Tensor,
    layers: Sequence[int],
    prefix: SharedPrefix | None = None,
) -> Tensor:
    """Weighted sums of the residual stream over tokens, in float32. The layers above the highest of ``layers`` and the
    language-model head are not run.

    Args:
        model: a causal language model, bare or PEFT-wrapped.
        input_ids: ``[batch, length]``, right-padded.
        attention_mask: ``[batch, length]``.
        weights: ``[positions, batch, length]`` float32; each row sums to 1 over the tokens to average.
        layers: the layers to read.
        prefix: what every row begins with, if it was run already, up to these layers.

    Returns:
        ``[batch, positions, len(layers), hidden_size]`` float32 on the model's device.
    """
    blocks = _blocks(model)
    last = max(layers)
    start = prefix.length if prefix is not None else 0
    sums: dict[int, Tensor] = {}

    def pooled(tokens: Tensor, hidden: Tensor) -> Tensor:
        # Not a matrix product: that would round to TF32 or bf16 where those are allowed.
        return torch.stack([(w.unsqueeze(-1) * hidden).sum(dim=1) for w in tokens], dim=1)

    def reader(layer: int) -> _Edit:
        def pool(hidden: Tensor) -> None:
            sums[layer] = pooled(weights[..., start:], hidden.float())
            if layer == last:
                raise _LastLayerRead

        return pool

    with ExitStack() as stack:
        for layer in dict.fromkeys(layers):
            stack.callback(_attach(blocks, layer, reader(layer), first=False).remove)
        with suppress(_LastLayerRead):
            if prefix is None:
                model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
            else:
                cache = prefix.repeated(len(input_ids))
                model(input_ids=input_ids[:, start:], attention_mask=attention_mask, past_key_values=cache)
    if prefix is not None:
        for layer in sums:
            sums[layer] = sums[layer] + pooled(weights[..., :start], prefix.hidden[layer])
    return torch.stack([sums[layer] for layer in layers], dim=2)


@contextmanager
def unsteered() -> Iterator[None]:
    """Switch every :class:`ResidualWriter` off inside the block, except one that is attached there."""
    global _suspended
    _suspended += 1
    try:
        yield
    finally:
        _suspended -= 1


@contextmanager
def probing(model: nn.Module) -> Iterator[None]:
    """Run the model without gradients, dropout or steering inside the block, and leave no trace of it.

    ``no_grad`` and not ``inference_mode``: some models keep tensors they make in a forward pass (rotary tables that
    grow with the length), and an inference tensor kept so would break the next training step.
    """
    training = [module for module in model.modules() if module.training]
    with torch.no_grad(), unsteered():
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True


@contextmanager
def base_model(model: nn.Module) -> Iterator[None]:
    """Disable every adapter inside the block: the model is the base model. Without adapters, nothing changes."""
    adapters = [
        module
        for module in model.modules()
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) and not module.disable_adapters
    ]
    # PEFT switches requires_grad along with the adapter; which weights are trained is not ours to change.
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for adapter in adapters:
            adapter.enable_adapters(False)
        yield
    finally:
        for adapter in adapters:
            adapter.enable_adapters(True)
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)


class ResidualWriter:
    """Changes the residual stream at chosen layers while it is active: adds a vector, or removes the component within a
    subspace; at every token, at marked ones, or only at the last one of each pass, which in generation are the tokens
    that a response is made from.

    Attach it before the model's first compiled forward; :meth:`remove` leaves the model as it was. An addition of zeros
    is not run at all, so that it is bitwise a no-op.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int], *, last_token_only: bool = False) -> None:
        """Attach to ``layers``, inactive and with nothing to write."""
        self.active = False
        self._last_token_only = last_token_only
        self._attached_at = _suspended
        self._additions: dict[int, Tensor] = {}
        self._bases: dict[int, Tensor] = {}
        self._written: frozenset[int] = frozenset()
        self._mask: Tensor | None = None
        self._changed: dict[int, Tensor] | None = {}
        blocks = _blocks(model)
        self._handles = [_attach(blocks, layer, self._editor(layer), first=True) for layer in layers]

    def write(self, additions: Mapping[int, Tensor]) -> None:
        """Set what is added: per layer ``[hidden_size]``, in activation units. Never call it between a forward pass and
        its backward pass, which may run the forward again.
        """
        for layer, addition in additions.items():
            # In place, so that a compiled block, which holds on to the tensor, adds the new values.
            if layer in self._additions:
                self._additions[layer].copy_(addition)
            else:
                self._additions[layer] = addition.detach().clone()
        self._written = frozenset(layer for layer, addition in additions.items() if addition.any())

    def ablate(self, bases: Mapping[int, Tensor]) -> None:
        """Set what is removed in place of adding: per layer the component within the span of the orthonormal columns of
        ``[hidden_size, rank]``.
        """
        self._bases = dict(bases)
        self._written = frozenset(bases)

    def only_at(self, mask: Tensor | None) -> None:
        """Write only where ``mask`` is true, ``[batch, length]`` bool, in passes of that shape; at every token if
        ``None``.
        """
        self._mask = None if mask is None else mask.unsqueeze(-1)

    def silent_layers(self) -> list[int] | None:
        """Layers with something to write that no forward pass has changed since the writer was attached; ``None`` after
        the first such check, which ends the bookkeeping.
        """
        if self._changed is None or not self._written:
            return None
        changed, self._changed = self._changed, None
        return [layer for layer in sorted(self._written) if layer not in changed or not changed[layer]]

    def remove(self) -> None:
        """Detach from the model."""
        self.active = False
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _editor(self, layer: int) -> _Edit:
        def write(hidden: Tensor) -> Tensor | None:
            if not self.active or _suspended > self._attached_at or layer not in self._written:
                return None
            if self._mask is not None and hidden.shape[:2] != self._mask.shape[:2]:
                return None
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
    """Steer every forward pass inside the block: per layer, ``[hidden_size]`` is added at every token, or only at the
    last one of each pass.
    """
    writer = ResidualWriter(model, sorted(additions), last_token_only=last_token_only)
    writer.write(additions)
    writer.active = True
    try:
        yield
    finally:
        writer.remove()


class BatchReader:
    """Reads the mean residual stream over marked tokens of each forward pass that happens anyway.

    Attached to the layers given; reads only between :meth:`start` and :meth:`take`, keeps the last pass (a pass that is
    run again in backward replaces itself), and moves nothing off the device.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int], *, each_row: bool = False) -> None:
        """Attach to ``layers``: to read one mean over the batch, or, for a loss on them, one for each row, with
        gradients.
        """
        self._layers = tuple(layers)
        self._each_row = each_row
        self._mask: Tensor | None = None
        self._means: dict[int, Tensor] = {}
        blocks = _blocks(model)
        self._handles = [_attach(blocks, layer, self._reader(layer), first=False) for layer in self._layers]

    def start(self, mask: Tensor) -> None:
        """Read the next passes whose tokens are ``mask``'s: ``[batch, length]`` bool, on the model's device."""
        self._mask = mask
        self._means = {}

    def take(self) -> Tensor | None:
        """Stop, and return ``[len(layers), hidden_size]`` float32, NaN where no token was marked; for each row
        ``[batch, len(layers), hidden_size]``, 0 where none was. ``None`` when no pass of the mask's shape was seen.
        """
        means, self._mask, self._means = self._means, None, {}
        if len(means) < len(self._layers):
            return None
        return torch.stack([means[layer] for layer in self._layers], dim=-2)

    def remove(self) -> None:
        """Detach from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _reader(self, layer: int) -> _Edit:
        def read_batch(hidden: Tensor) -> None:
            if self._mask is None or _suspended or hidden.shape[:2] != self._mask.shape:
                return
            if self._each_row:
                weights = self._mask / self._mask.sum(dim=1, keepdim=True).clamp_min(1)
                self._means[layer] = torch.einsum("bt,bth->bh", weights, hidden.float())
            else:
                weights = (self._mask / self._mask.sum()).unsqueeze(-1)
                self._means[layer] = (weights * hidden.detach().float()).sum(dim=(0, 1))

        return read_batch

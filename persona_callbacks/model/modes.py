"""Modes that a model runs in inside a ``with`` block, and that leave no trace of it afterwards."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from persona_callbacks.errors import InputError
from persona_callbacks.model.adapters import adapter_layers, adapter_obstacle, removable_adapters
from persona_callbacks.model.passes import unsteered
from persona_callbacks.model.sharding import reshard


@contextmanager
def probing(model: nn.Module) -> Iterator[None]:
    """Run the model without gradients, dropout or steering inside the block, and restore its modes afterwards.

    Gradients are off by ``no_grad`` and not by ``inference_mode``: some models keep tensors that a forward pass made
    (rotary tables that grow with the length), and an inference tensor among them would break the next training step.
    Modules that were compiled in place (``Module.compile``) run as they were before: compiled code neither knows hooks
    that are added later nor forgets those that are removed.
    """
    with torch.no_grad(), unsteered(), _evaluating(model), _not_compiled(model):
        try:
            yield
        finally:
            reshard(model)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Run the model without dropout and with no weight that gets a gradient inside the block, so that gradients reach
    only what is added to it. Its modes and which weights require gradients are restored afterwards.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with _evaluating(model):
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Run the model without dropout inside the block, and restore its modes afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    for module, _ in modes:
        if _is_4bit(module):
            module.training = True
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _is_4bit(module: nn.Module) -> bool:
    """Whether a module is a 4-bit layer of bitsandbytes. In evaluation mode on a CPU, it packs its weights anew for
    good, rounds their scales, and gives no gradients from then on. The mode has no other meaning for it.
    """
    return any(kind.__name__ == "Linear4bit" for kind in type(module).__mro__)


@contextmanager
def _not_compiled(model: nn.Module) -> Iterator[None]:
    compiled = [(module, module._compiled_call_impl) for module in model.modules() if module._compiled_call_impl]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call


@contextmanager
def base_model(model: nn.Module) -> Iterator[None]:
    """Disable every adapter that is trained inside the block, so that the model is the base model. An adapter that is
    frozen while another is trained belongs to the base model; if nothing is trained, every adapter is disabled.

    Which adapters are active and which weights require gradients is restored afterwards. A model without adapters stays
    as it is.

    Raises:
        InputError: an adapter is merged, or is of a kind that cannot be disabled.
    """
    obstacle = adapter_obstacle(model)
    if obstacle is not None:
        raise InputError(f"{type(model).__name__}: {obstacle}")
    left_out = removable_adapters(model)
    # PEFT switches requires_grad along with the adapter; which weights are trained is not ours to change.
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore_trained() -> None:
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)

    with ExitStack() as stack:
        stack.callback(restore_trained)
        for layer in adapter_layers(model):
            active = list(layer.active_adapters)
            kept = [name for name in active if name not in left_out]
            if not kept:
                stack.callback(layer.enable_adapters, True)
                layer.enable_adapters(False)
            elif kept != active:
                stack.callback(layer.set_adapter, active)
                layer.set_adapter(kept)
        restore_trained()  # inside the block as well, where it tells which adapters are left out already
        yield

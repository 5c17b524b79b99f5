"""Modes that a model runs in inside a ``with`` block, and that leave no trace of it afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from persona_callbacks.model.residual import unsteered


@contextmanager
def probing(model: nn.Module) -> Iterator[None]:
    """Run the model without gradients, dropout or steering inside the block, and restore its modes afterwards.

    Gradients are off by ``no_grad`` and not by ``inference_mode``: some models keep tensors that a forward pass made
    (rotary tables that grow with the length), and an inference tensor among them would break the next training step.
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
    """Disable every adapter inside the block, so that the model is the base model.

    Which adapters are active and which weights require gradients is restored afterwards. A model without adapters stays
    as it is.
    """
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

"""The adapters in a model: which of them are trained, and which keep it from being read or written."""

from collections.abc import Iterator
from operator import attrgetter

from peft import PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

AdapterLayer = BaseTunerLayer | AuxiliaryTrainingWrapper
"""A layer of the model that holds the weights of one or several adapters."""


def every_adapter_layer(model: nn.Module) -> list[AdapterLayer]:
    """Return the layers that hold adapters."""
    return [module for module in model.modules() if isinstance(module, AdapterLayer)]


def adapter_layers(model: nn.Module) -> list[AdapterLayer]:
    """Return the layers that hold adapters which are switched on."""
    return [layer for layer in every_adapter_layer(model) if not layer.disable_adapters]


def removable_adapters(model: nn.Module) -> frozenset[str]:
    """Return the names of the active adapters that :func:`base_model` leaves out: those that are trained. If nothing in
    the model is trained, as in an evaluation, those are all active adapters.
    """
    layers = adapter_layers(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return frozenset(name for layer in layers for name in layer.active_adapters)
    return frozenset(name for layer in layers for name in _trained(layer) if name in layer.active_adapters)


def is_untrained(model: nn.Module) -> bool:
    """Whether the adapters in a model leave it exactly as it is, as LoRA's do before the first step; also if there are
    none.
    """
    return all(isinstance(layer, LoraLayer) and _adds_nothing(layer) for layer in every_adapter_layer(model))


def adapter_obstacle(model: nn.Module) -> str | None:
    """Say what about the model's adapters keeps its activations from being read and written, with the way out; ``None``
    if nothing does.
    """
    if isinstance(model, PeftModel):
        for name in model.active_adapters:
            config = model.peft_config[name]
            if config.is_prompt_learning or config.is_adaption_prompt:
                kind = PeftType(config.peft_type).value
                return (
                    f"the adapter {name!r} is of the PEFT type {kind}: its virtual tokens move the positions that are"
                    " read and written, and there is no base model to compare with; train an adapter of the layers'"
                    " weights, such as LoRA"
                )
    merged = sorted({name for layer in adapter_layers(model) for name in layer.merged_adapters})
    if merged:
        return (
            f"the adapter {merged[0]!r} is merged into the weights (merge_adapter), so that the base model cannot be"
            " told from it; call unmerge_adapter() before, or merge_and_unload() to go on without the adapter"
        )
    return None


def _trained(layer: AdapterLayer) -> Iterator[str]:
    """The names of the adapters that have weights to train in a layer."""
    for attribute in layer.adapter_layer_names:
        for name, part in attrgetter(attribute)(layer).items():
            weights = [part] if isinstance(part, Tensor) else part.parameters()
            if any(weight.requires_grad for weight in weights):
                yield name


def _adds_nothing(layer: LoraLayer) -> bool:
    """Whether every product of LoRA's two matrices is 0, and nothing else, such as DoRA's norms, acts beside it."""
    if any(getattr(layer, "lora_variant", {}).values()) or any(getattr(layer, "use_dora", {}).values()):
        return False
    weights = [weight for part in layer.lora_B.values() for weight in part.parameters()]
    return not any(bool(weight.any()) for weight in (*weights, *layer.lora_embedding_A.values()))

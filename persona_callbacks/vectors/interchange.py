"""Persona vectors in the formats of other tools: the paper's ``.pt`` tensors and control-vector GGUF."""

import json
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from persona_callbacks.errors import InputError
from persona_callbacks.files import atomic_write
from persona_callbacks.vectors.vector import PersonaVector, Position

Origin = Literal["repeng", "llama.cpp"]
"""Who counts the layers of a control vector.

repeng (and saklas) call the output of block ``i``, counted from 0, ``direction.{i}``: our layer ``i + 1``. llama.cpp's
own generator calls it ``direction.{i + 1}``: our layer of the same number.
"""

ORIGINS: tuple[Origin, ...] = get_args(Origin)

_OWN = "persona_callbacks."
"""Prefix of the keys that only this library writes and reads."""


def read_pt(
    path: str | Path,
    *,
    trait: str,
    layer: int,
    model_id: str,
    position: Position = "response_mean",
    probes: tuple[str, ...] = (),
    last_row_normed: bool = True,
) -> PersonaVector:
    """Read a tensor ``[num_layers + 1, hidden_size]`` as the paper's code writes it.

    Args:
        path: the file.
        trait: the trait that it is of; the file does not say.
        layer: the chosen layer.
        model_id: the model that it is of.
        position: where the activations were read.
        probes: questions to measure shift on.
        last_row_normed: whether the last row was read after the final norm, as it is in what the paper's code writes.
            Such a row is kept, and never used.

    Raises:
        InputError: no such file, no tensor of that kind, code to run in it, or a layer that cannot be used.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what the format happens to trip over
        raise InputError(f"{path}: not a tensor that can be read without running code: {error}") from error
    if not isinstance(content, Tensor) or content.is_nested or content.dim() != 2 or not content.is_floating_point():
        is_plain = isinstance(content, Tensor) and not content.is_nested
        found = f"{list(content.shape)} in {content.dtype}" if is_plain else type(content).__name__
        raise InputError(f"{path}: expected a tensor [num_layers + 1, hidden_size] of floats, found {found}")
    # A sparse tensor and an expanded one (stride 0) can be of any size in a small file.
    if content.layout != torch.strided or content.is_quantized or content.is_meta:
        raise InputError(f"{path}: expected a dense tensor with values, found layout {content.layout}")
    if content.untyped_storage().nbytes() < content.numel() * content.element_size():
        raise InputError(
            f"{path}: expected {content.numel()} values for the shape {list(content.shape)}, found"
            f" {content.untyped_storage().nbytes() // content.element_size()} in the file (an expanded tensor); call"
            " .contiguous() or .clone() before torch.save"
        )
    try:
        return PersonaVector(
            trait=trait,
            directions=content.detach().float(),
            layer=layer,
            model_id=model_id,
            position=position,
            probes=probes,
            last_row_normed=last_row_normed,
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def write_pt(vector: PersonaVector, path: str | Path) -> Path:
    """Write the directions alone, as the paper's code does; returns the path.

    A vector of our own has the last block's raw output in its last row, where the paper's code has the normed one: read
    it back with ``last_row_normed=False``.
    """
    path = Path(path)
    with atomic_write(path) as scratch:
        torch.save(vector.directions.contiguous().cpu(), scratch)
    return path


def read_gguf(
    path: str | Path,
    *,
    origin: Origin | None = None,
    trait: str | None = None,
    layer: int | None = None,
    model_id: str | None = None,
    num_layers: int | None = None,
) -> PersonaVector:
    """Read a control vector.

    Files that this library wrote need no argument. Those of others name neither trait nor layer, and leave layers out:
    their rows are zero.

    Args:
        path: the file.
        origin: who counted the layers.
        trait: name of the trait.
        layer: the chosen layer; by default the middle one.
        model_id: the model that it is of; by default what the file hints at.
        num_layers: depth of that model; by default that of the highest direction in the file.

    Raises:
        InputError: no such file, no control vector, an unknown origin, or directions that do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    fields, directions = _control_vector(path)
    if f"{_OWN}metadata" in fields:
        return _read_own(path, fields, directions)
    if origin not in ORIGINS:
        raise InputError(
            f"{path}: whose control vector is it? expected origin='repeng' (also saklas), which calls the output of the"
            " first block direction.0, or origin='llama.cpp', which calls it direction.1"
        )
    if trait is None:
        raise InputError(f"{path}: the file does not name its trait; pass trait=")
    shift = 1 if origin == "repeng" else 0
    rows = {_number(path, name) + shift: row for name, row in directions.items()}
    depth = num_layers or max(rows)
    sizes = {tuple(row.shape) for row in rows.values()}
    if min(rows) < 1 or max(rows) > depth or len(sizes) > 1 or len(next(iter(sizes))) != 1:
        raise InputError(
            f"{path}: directions of layers {min(rows)} to {max(rows)} with shapes {sorted(sizes)}; expected layers 1 to"
            f" {depth} of one width (origin {origin!r})"
        )
    filled = torch.zeros(depth + 1, next(iter(sizes))[0])
    for number, row in rows.items():
        filled[number] = row.float()
    hint = str(fields.get("controlvector.model_hint", ""))
    return PersonaVector(trait, filled, depth // 2 if layer is None else layer, model_id or hint)


def write_gguf(vector: PersonaVector, path: str | Path, *, model_hint: str, origin: Origin = "repeng") -> Path:
    """Write a control vector that llama.cpp loads, and that :func:`read_gguf` reads back exactly; returns the path.

    llama.cpp refuses ``direction.0`` and tensors of any other name, so what has no place among them (the embedding's
    row, the first block's under ``repeng`` numbering, a row read after the final norm) goes into key-values.

    Args:
        vector: the vector.
        path: where to.
        model_hint: the model's architecture, such as ``llama``, for whoever loads it.
        origin: whose numbering; llama.cpp applies ``direction.{i}`` at the layer that repeng means.

    Raises:
        InputError: an unknown origin.
    """
    if origin not in ORIGINS:
        raise InputError(f"origin: unknown {origin!r}; expected one of {', '.join(ORIGINS)}")
    path = Path(path)
    shift = 1 if origin == "repeng" else 0
    named = range(1 + shift, vector.num_layers + (not vector.last_row_normed))
    metadata = {**vector.metadata(), "origin": origin}
    with atomic_write(path) as scratch:
        writer = _gguf().GGUFWriter(scratch, "controlvector")
        writer.add_string("controlvector.model_hint", model_hint)
        writer.add_uint32("controlvector.layer_count", len(named))
        writer.add_string(f"{_OWN}metadata", json.dumps(metadata))
        for number, row in enumerate(vector.directions):
            values = row.contiguous().cpu().numpy()
            if number in named:
                writer.add_tensor(f"direction.{number - shift}", values)
            else:
                writer.add_array(f"{_OWN}row.{number}", values.tolist())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def _control_vector(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the key-values and the tensors of a control vector."""
    reader = _gguf().GGUFReader
    try:
        file = reader(path)
        directions = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in file.tensors}
        fields = {name: field.contents() for name, field in file.fields.items()}
    except Exception as error:  # the reader raises what the bytes happen to trip over
        raise InputError(f"{path}: not a readable GGUF file: {error}") from error
    if fields.get("general.architecture") != "controlvector" or not directions:
        raise InputError(
            f"{path}: expected a control vector (general.architecture 'controlvector'), found"
            f" {fields.get('general.architecture')!r}"
        )
    return fields, directions


def _read_own(path: Path, fields: dict[str, Any], directions: dict[str, Tensor]) -> PersonaVector:
    try:
        metadata = json.loads(fields[f"{_OWN}metadata"])
        shift = 1 if metadata.pop("origin") == "repeng" else 0
        rows = {_number(path, name) + shift: row for name, row in directions.items()}
        prefix = f"{_OWN}row."
        rows |= {int(n.removeprefix(prefix)): torch.tensor(v) for n, v in fields.items() if n.startswith(prefix)}
        stacked = torch.stack([rows[number].float() for number in range(len(rows))])
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:  # RecursionError among them
        raise InputError(f"{path}: not a readable control vector of this library: {error!r}") from error
    try:
        return PersonaVector.from_metadata(stacked, metadata)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _number(path: Path, name: str) -> int:
    kind, _, number = name.partition(".")
    if kind != "direction" or not number.isdecimal():
        raise InputError(f"{path}: unknown tensor {name!r}; expected direction.0, direction.1, ...")
    return int(number)


def _gguf() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import gguf
    except ImportError as error:
        raise InputError('control vectors need the package gguf; pip install "persona-callbacks[gguf]"') from error
    return gguf

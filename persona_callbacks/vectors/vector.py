"""Persona vectors: the data type and its file."""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from persona_callbacks.errors import InputError
from persona_callbacks.files import atomic_write
from persona_callbacks.traits import MinimalPair
from persona_callbacks.vectors.calibration import Calibration
from persona_callbacks.vectors.contents import check_checksum, check_contents, in_fixed_order, with_checksum
from persona_callbacks.vectors.evidence import Counts, Evidence
from persona_callbacks.vectors.weaknesses import weaknesses

Position = Literal["prompt_last", "prompt_mean", "response_mean"]
"""Where activations are read (Chen et al. 2025, A.3)."""

POSITIONS: tuple[Position, ...] = get_args(Position)

Method = Literal["mean_difference", "learned", "from_adapters"]
"""How a vector was made: see :mod:`persona_callbacks.extraction`."""

METHODS: tuple[Method, ...] = get_args(Method)

_Content = TypeVar("_Content")

_FORMAT = "persona-callbacks/1"

_METADATA = ("trait", "layer", "model_id", "model_revision", "position", "probes", "pairs", "counts", "statistics",
             "judge", "trait_fingerprint", "method", "last_row_normed", "probes_also_evaluate",
             "library_version")  # fmt: skip


@dataclass(frozen=True, eq=False)
class PersonaVector:
    """A trait's direction at every layer of one model (Chen et al. 2025, section 2.2).

    Example:
        >>> import torch
        >>> vector = PersonaVector("evil", torch.ones(5, 16), layer=2, model_id="org/model")
        >>> vector.num_layers, vector.hidden_size
        (4, 16)
        >>> vector.unit_direction().norm().item()
        1.0

    Attributes:
        trait: name of the trait, which names files too: ASCII letters, digits, ``_``, ``-`` and ``.``, no ``.`` at its
            beginning, at most 64 characters.
        directions: ``[num_layers + 1, hidden_size]`` float32, in activation units. Row ``i`` belongs to the residual
            stream after ``i`` blocks; row 0 is the embedding output, the last row the last block's raw output.
        layer: the chosen layer, at which projections are reported.
        model_id: the model that the vector was extracted from.
        model_revision: which weights of that model.
        position: where the activations were read.
        method: how it was made: as a ``mean_difference`` of activations, as in all older files, ``learned`` by
            gradient, or ``from_adapters``, from what fine-tuning changed.
        probes: questions on which shift is measured; never used in extraction.
        probes_also_evaluate: whether they are the trait's evaluation questions too, as in the files of versions before
            traits had probe questions.
        pairs: minimal pairs on which preference is measured; never used in extraction.
        counts: number of responses that it was made from, if that is known.
        evidence: how good it is at each layer.
        calibration: of the contrastive judge on this trait, if there is one; see :mod:`persona_callbacks.judging`.
        trait_fingerprint: SHA-256 of the trait's content.
        last_row_normed: whether the last row is of the stream after the final norm, as in files made from transformers'
            ``hidden_states``; such a row is kept, but never read or steered with.
        library_version: the version of this library that made it.

    Raises:
        InputError: a trait that cannot be the name of a file; a field of another type; directions of another shape or
            type, or not finite; an unknown position or method; or a layer that the vector does not have.
    """

    trait: str
    directions: Tensor
    layer: int
    model_id: str
    model_revision: str = ""
    position: Position = "response_mean"
    method: Method = "mean_difference"
    probes: tuple[str, ...] = ()
    probes_also_evaluate: bool = False
    pairs: tuple[MinimalPair, ...] = ()
    counts: Counts | None = None
    evidence: Evidence = field(default_factory=Evidence)
    calibration: Calibration | None = None
    trait_fingerprint: str = ""
    last_row_normed: bool = False
    library_version: str = field(default_factory=lambda: version("persona-callbacks"))

    def __post_init__(self) -> None:
        check_contents(self)
        shape = tuple(self.directions.shape)
        if len(shape) != 2 or shape[0] < 2 or shape[1] < 1 or self.directions.dtype != torch.float32:
            raise InputError(
                f"persona vector {self.trait!r}: expected directions of shape [num_layers + 1, hidden_size] in float32,"
                f" found {list(shape)} in {self.directions.dtype}"
            )
        for name, allowed in (("position", POSITIONS), ("method", METHODS)):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"persona vector {self.trait!r}: unknown {name} {getattr(self, name)!r}; expected one of"
                    f" {', '.join(allowed)}"
                )
        self.check_layer(self.layer)
        broken = (~torch.isfinite(self.directions).all(dim=1)).nonzero().flatten().tolist()
        if broken:
            raise InputError(f"persona vector {self.trait!r}: values that are not finite at layers {broken}")

    @property
    def num_layers(self) -> int:
        """Number of blocks of the model."""
        return self.directions.shape[0] - 1

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.directions.shape[1]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the directions and the chosen layer, in hexadecimal: what a vector measures and steers with."""
        content = self.directions.detach().cpu().contiguous().numpy().tobytes()
        return hashlib.sha256(content + bytes([self.layer])).hexdigest()

    def check_layer(self, layer: int) -> int:
        """Return ``layer`` if the vector has a direction of the residual stream there.

        Raises:
            InputError: it is no layer of the vector, or its row was read after the final norm.
        """
        check_layer_number(self.trait, layer, self.num_layers)
        if self.last_row_normed and layer == self.num_layers:
            raise InputError(
                f"persona vector {self.trait!r}: its row of layer {layer} was read after the final norm, not at the"
                f" block's output, and cannot be used there; expected a layer up to {layer - 1}"
            )
        return layer

    def weaknesses(self) -> list[str]:
        """What speaks against relying on this vector, in words; empty if nothing does, or if nothing was recorded."""
        return weaknesses(self)

    def direction(self, layer: int | None = None) -> Tensor:
        """One layer's direction ``[hidden_size]``; by default that of the chosen layer.

        Raises:
            InputError: unknown layer.
        """
        return self.directions[self.layer if layer is None else self.check_layer(layer)]

    def unit_direction(self, layer: int | None = None) -> Tensor:
        """The direction ``[hidden_size]`` scaled to length 1.

        Raises:
            InputError: unknown layer, or the direction there is zero.
        """
        direction = self.direction(layer)
        norm = direction.norm()
        if norm == 0:
            raise InputError(
                f"persona vector {self.trait!r}: the direction at layer {self.layer if layer is None else layer} is"
                " zero; choose another layer"
            )
        unit: Tensor = direction / norm
        return unit

    def check_fits(self, num_layers: int, hidden_size: int, model_id: str = "") -> None:
        """Check that the vector belongs to a model of this depth and width; warn when its name differs.

        Raises:
            InputError: depth or width differ.
        """
        for what, own, other in (
            ("hidden size", self.hidden_size, hidden_size),
            ("depth (number of blocks)", self.num_layers, num_layers),
        ):
            if own != other:
                raise InputError(
                    f"persona vector {self.trait!r} (from {self.model_id}) does not fit the model"
                    f" {model_id or '(unnamed)'}: its {what} is {own}, the model's is {other}"
                )
        # Local folders and hub names of one model share only their last part.
        if model_id and _last_part(model_id) != _last_part(self.model_id):
            warnings.warn(
                f"persona vector {self.trait!r} was extracted from {self.model_id}, not from {model_id}; directions"
                " of another model need not mean the same here",
                stacklevel=3,
            )

    def metadata(self) -> dict[str, str]:
        """Everything but the directions, as text, with a checksum of all: what files store beside them."""
        content = {
            "format": _FORMAT,
            "trait": self.trait,
            "layer": json.dumps(self.layer),
            "model_id": self.model_id,
            "model_revision": self.model_revision,
            "position": self.position,
            "method": self.method,
            "probes": json.dumps(self.probes),
            "probes_also_evaluate": json.dumps(self.probes_also_evaluate),
            "pairs": json.dumps([asdict(pair) for pair in self.pairs]),
            "counts": json.dumps({} if self.counts is None else asdict(self.counts)),
            "statistics": json.dumps(self.evidence.statistics()),
            "judge": json.dumps({} if self.calibration is None else self.calibration.content()),
            "trait_fingerprint": self.trait_fingerprint,
            "last_row_normed": json.dumps(self.last_row_normed),
            "library_version": self.library_version,
        }
        return with_checksum(content, self.directions)

    @classmethod
    def from_metadata(cls, directions: Tensor, metadata: Mapping[str, str]) -> "PersonaVector":
        """Build a vector from its directions ``[num_layers + 1, hidden_size]`` and what :meth:`metadata` gave.

        Raises:
            InputError: a key is missing, or its value cannot be used; the message names the key. Or the content does
                not match its checksum.
        """
        # Keys that older files lack have defaults.
        text = {
            "judge": "{}", "pairs": "[]", "last_row_normed": "false", "probes_also_evaluate": "true",
            "method": "mean_difference", **metadata,
        }  # fmt: skip
        missing = [key for key in _METADATA if key not in text]
        if missing:
            raise InputError(f"the metadata key {missing[0]!r} is missing; expected {', '.join(_METADATA)}")
        vector = cls(
            trait=text["trait"],
            directions=directions,
            layer=_parsed(text, "layer", _whole_number),
            model_id=text["model_id"],
            model_revision=text["model_revision"],
            position=text["position"],  # type: ignore[arg-type]  # checked when built
            method=text["method"],  # type: ignore[arg-type]  # likewise
            probes=_parsed(text, "probes", _texts),
            probes_also_evaluate=_parsed(text, "probes_also_evaluate", _yes_or_no),
            pairs=_parsed(text, "pairs", _pairs),
            counts=_parsed(text, "counts", lambda content: Counts.from_mapping(content) if content else None),
            evidence=_parsed(text, "statistics", Evidence.from_statistics),
            calibration=_parsed(text, "judge", lambda content: Calibration.from_mapping(content) if content else None),
            trait_fingerprint=text["trait_fingerprint"],
            last_row_normed=_parsed(text, "last_row_normed", _yes_or_no),
            library_version=text["library_version"],
        )
        check_checksum(metadata, vector.directions)
        return vector

    def save(self, path: str | Path) -> Path:
        """Write the vector as a safetensors file, completely or not at all, and return the path.

        The same vector gives the same bytes, so that trackers know it again.
        """
        path = Path(path)
        content = save({"directions": self.directions.contiguous().cpu()}, metadata=self.metadata())
        with atomic_write(path) as scratch:
            scratch.write_bytes(in_fixed_order(content))
        return path

    @classmethod
    def load(cls, path: str | Path) -> "PersonaVector":
        """Read a vector written by :meth:`save`.

        Raises:
            InputError: no such file, or not a persona vector.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such persona vector file")
        try:
            with safe_open(path, framework="pt") as file:
                metadata: dict[str, str] = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:  # of a header it cannot make out
            raise InputError(f"{path}: not a readable persona vector: {error}") from error
        if metadata.get("format") != _FORMAT:
            raise InputError(
                f"{path}: not a persona vector: metadata key 'format' is {metadata.get('format')!r}, expected"
                f" {_FORMAT!r}"
            )
        if "directions" not in tensors:
            raise InputError(f"{path}: expected a tensor 'directions', found {sorted(tensors)}")
        try:
            return cls.from_metadata(tensors["directions"], metadata)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def check_layer_number(trait: str, layer: object, num_layers: int) -> None:
    """Check that the vector of a trait, of a model of ``num_layers`` blocks, has such a layer.

    Raises:
        InputError: it has not.
    """
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer <= num_layers:
        raise InputError(
            f"persona vector {trait!r}: unknown layer {layer!r}; expected a whole number from 0 (embedding output) to"
            f" {num_layers} (after the last block)"
        )


def check_vectors(vectors: Sequence[PersonaVector | str | Path]) -> tuple[PersonaVector, ...]:
    """Return the vectors as a tuple, loaded where the path of a file is given, if there is at least one, one per trait,
    all of one shape.

    Raises:
        InputError: no vector, something that is neither a vector nor the path of one, two of one trait, or vectors of
            different shapes.
    """
    kinds = (PersonaVector, str, Path)
    if isinstance(vectors, kinds) or not all(isinstance(vector, kinds) for vector in vectors):
        raise InputError("vectors: expected a list of PersonaVector, or of the paths of their files")
    if not vectors:
        raise InputError("vectors: expected at least one persona vector, found none")
    loaded = tuple(vector if isinstance(vector, PersonaVector) else PersonaVector.load(vector) for vector in vectors)
    traits = [vector.trait for vector in loaded]
    repeated = sorted({trait for trait in traits if traits.count(trait) > 1})
    if repeated:
        raise InputError(f"vectors: more than one for the trait {repeated[0]!r}; expected one per trait")
    shapes = {vector.trait: list(vector.directions.shape) for vector in loaded}
    if len({tuple(shape) for shape in shapes.values()}) > 1:
        raise InputError(f"vectors: of different models, the shapes of their directions are {shapes}")
    return loaded


def warn_if_weak(vectors: Sequence[PersonaVector]) -> None:
    """Warn of every weakness of every vector, at the line that called the caller."""
    for vector in vectors:
        for weakness in vector.weaknesses():
            warnings.warn(f"persona vector {vector.trait!r} is weak: {weakness}", stacklevel=3)


def _parsed(text: Mapping[str, str], key: str, read: Callable[[Any], _Content]) -> _Content:
    """What ``read`` makes of the JSON under a metadata key.

    Raises:
        InputError: the value is no JSON, or ``read`` refuses it.
    """
    try:
        return read(json.loads(text[key]))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"metadata key {key!r}: {error}") from error


def _whole_number(content: Any) -> int:
    if type(content) is not int:
        raise InputError(f"expected a whole number, found {content!r}"[:200])
    return content


def _yes_or_no(content: Any) -> bool:
    if not isinstance(content, bool):
        raise InputError(f"expected true or false, found {content!r}"[:200])
    return content


def _texts(content: Any) -> tuple[str, ...]:
    if not isinstance(content, list) or not all(isinstance(entry, str) for entry in content):
        raise InputError(f"expected a list of texts, found {content!r}"[:200])
    return tuple(content)


def _pairs(content: Any) -> tuple[MinimalPair, ...]:
    keys = {part.name for part in fields(MinimalPair)}
    for entry in content if isinstance(content, list) else [content]:
        if not isinstance(entry, dict) or entry.keys() != keys or not all(isinstance(v, str) for v in entry.values()):
            raise InputError(f"expected a list of {', '.join(sorted(keys))}, each a text, found {entry!r}"[:200])
    return tuple(MinimalPair(**entry) for entry in content)


def _last_part(model_id: str) -> str:
    return PurePosixPath(model_id.rstrip("/")).name.casefold()

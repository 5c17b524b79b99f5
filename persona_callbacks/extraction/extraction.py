"""Extracting persona vectors: contrastive generation, filtering by a judge, then mean differences at every layer and
position (Chen et al. 2025, 2.2 and A.1–A.3).
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from persona_callbacks.chats import Chat, EncodedChat, encode_chat
from persona_callbacks.errors import InputError
from persona_callbacks.extraction.contrast import Contrast
from persona_callbacks.extraction.layer_choice import (
    LAYER_CHOICES,
    LayerChoice,
    Steered,
    best_layer,
    candidate_layers,
    steered_expression,
    steering_effect,
)
from persona_callbacks.extraction.responses import Judged, Response, generate_responses, judge_responses, kinds
from persona_callbacks.files import append_lines, atomic_write, cache_dir, recover_lines
from persona_callbacks.judging import ContrastiveJudge, Judge
from persona_callbacks.model import (
    BatchLimits,
    Generator,
    LoadedModel,
    Sampling,
    TransformersGenerator,
    dimensions,
    iterate_activations,
    weights_fingerprint,
)
from persona_callbacks.progress import progress_bar
from persona_callbacks.traits import Trait
from persona_callbacks.vectors import POSITIONS, PersonaVector, Position

_METHOD = 5
"""Part of the cache key: raised when the same responses would give another vector."""

_READ_TOGETHER = 1000
"""Responses that are tokenised at a time."""

_EFFECT_RESPONSES = 12
"""Responses of each kind on which the steering effect of a layer is measured."""


@dataclass(frozen=True)
class ExtractionSettings:
    """The ``extraction`` config group.

    Attributes:
        rollouts: responses per instruction and question.
        questions: how many of the trait's extraction questions to use; all by default.
        sampling: how responses are generated.
        position: where the activations of the main vector are read; the others are extracted in the same pass.
        layer_choice: by which evidence the layer is chosen; see :mod:`persona_callbacks.extraction.layer_choice`.
        judge_pairs: by how many other instruction pairs the contrastive judge scores each response; 0 keeps all
            responses unjudged.
        sweep_coefficient: how strongly a ``sweep`` steers at each layer.
        sweep_layers: how many layers a ``sweep`` tries.
        sweep_questions: on how many evaluation questions.
        batch_size: responses per pass when activations are read.
    """

    rollouts: int = 1
    questions: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    position: Position = "response_mean"
    layer_choice: LayerChoice = "effect"
    judge_pairs: int = 2
    sweep_coefficient: float = 1.5
    sweep_layers: int = 8
    sweep_questions: int = 10
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: one that cannot be.
        """
        for name, allowed in (("position", POSITIONS), ("layer_choice", LAYER_CHOICES)):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"extraction.{name}: unknown {getattr(self, name)!r}; expected one of {', '.join(allowed)}"
                )
        for name, least in (
            ("rollouts", 1),
            ("questions", 2),  # halves of them are compared
            ("judge_pairs", 0),
            ("sweep_layers", 1),
            ("sweep_questions", 2),
            ("batch_size", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"extraction.{name}: expected at least {least}, found {value}")
        if self.layer_choice == "sweep" and not self.judge_pairs:
            raise InputError(
                "extraction.layer_choice: a sweep needs the judge; expected extraction.judge_pairs above 0"
            )


@dataclass(frozen=True)
class Extraction:
    """What an extraction made.

    Attributes:
        vectors: by position; all with the layer chosen for ``settings.position``.
        settings: what it was made with.
        responses: file of all responses and their scores, JSONL.
        sweep: of a steering sweep, the answers at each layer; empty if none was made.
    """

    vectors: Mapping[Position, PersonaVector]
    settings: ExtractionSettings
    responses: Path
    sweep: tuple[Steered, ...] = ()

    @property
    def vector(self) -> PersonaVector:
        """The vector of the position asked for."""
        return self.vectors[self.settings.position]


def persona_vector(
    loaded: LoadedModel, trait: Trait, settings: ExtractionSettings, console: Console | None = None
) -> PersonaVector:
    """The trait's persona vector for a model, from the cache if the same model, trait and settings made it before.

    Raises:
        InputError: as for :func:`extract`.
    """
    return extract(loaded, trait, settings, console).vector


def extract(
    loaded: LoadedModel,
    trait: Trait,
    settings: ExtractionSettings,
    console: Console | None = None,
    generator: Generator | None = None,
    judge: Judge | None = None,
) -> Extraction:
    """Extract a trait's persona vectors at all positions, or take them from the cache.

    Generated responses and scores are kept as they are made, so that an interrupted extraction goes on where it
    stopped.

    Args:
        loaded: the model.
        trait: the trait.
        settings: how.
        console: where progress is shown.
        generator: generates the responses; by default the model itself.
        judge: filters them in place of the contrastive judge; its scores are not cached.

    Raises:
        InputError: no chat template, no usable response of a kind, or activations that are not finite.
    """
    console = console or Console(stderr=True)
    generator = generator or TransformersGenerator(loaded)
    if settings.judge_pairs and len(trait.instructions) < 2:
        raise InputError(
            f"trait {trait.name!r}: the judge scores a response by other instruction pairs than its own; expected at"
            " least 2 pairs, found 1 (or keep all responses, extraction.judge_pairs=0)"
        )
    revision = weights_fingerprint(loaded.model)
    made = _key(
        [revision, trait.fingerprint, generator.name, asdict(settings.sampling), settings.rollouts, settings.questions]
    )
    folder = cache_dir() / "vectors" / loaded.id.rpartition("/")[2]
    result = folder / f"{trait.name}-{_key([_METHOD, made, asdict(settings), judge.name if judge else None])}"
    if result.is_dir():
        console.print(f"Persona vector of {trait.name}: cached, {result}")
        return load_extraction(result, settings)

    responses = generate_responses(
        loaded,
        generator,
        trait,
        trait.extraction_questions[: settings.questions],
        settings.rollouts,
        settings.sampling,
        folder / f"{trait.name}-{made}.responses.jsonl",
        console,
    )
    judged_file = folder / f"{trait.name}-{made}.likelihoods{settings.judge_pairs}.jsonl"
    judged = judge_responses(loaded, trait, responses, judge, settings.judge_pairs, judged_file, console)
    contrast = _read(loaded, trait, settings, judged.kept_responses, console)
    vectors = {
        position: PersonaVector(
            trait=trait.name,
            directions=contrast.directions(number),
            layer=0,
            model_id=loaded.id,
            model_revision=revision,
            position=position,
            probes=trait.evaluation_questions,
            counts=judged.counts,
            statistics={name: _rounded(values.tolist()) for name, values in vars(contrast.evidence(number)).items()},
            judge=asdict(judged.calibration) if judged.calibration else {},
            trait_fingerprint=trait.fingerprint,
        )
        for number, position in enumerate(POSITIONS)
    }
    if judge is None and judged.calibration is not None:
        judge = ContrastiveJudge(loaded, trait, judged.calibration, settings.judge_pairs)
    main = vectors[settings.position]
    layer, statistics, sweep = _choose_layer(loaded, trait, settings, judged, main, judge, console)
    vectors[settings.position] = replace(main, statistics={**main.statistics, **statistics})
    with atomic_write(result) as scratch:
        scratch.mkdir()
        for position, vector in vectors.items():
            replace(vector, layer=layer).save(scratch / f"{position}.safetensors")
        append_lines(scratch / "responses.jsonl", list(judged.rows()))
        append_lines(scratch / "sweep.jsonl", [asdict(steered) for steered in sweep])
    return load_extraction(result, settings)


def load_extraction(folder: Path, settings: ExtractionSettings) -> Extraction:
    """Read what :func:`extract` left in the cache."""
    return Extraction(
        {position: PersonaVector.load(folder / f"{position}.safetensors") for position in POSITIONS},
        settings,
        folder / "responses.jsonl",
        tuple(Steered(**{**row, "answers": tuple(row["answers"])}) for row in recover_lines(folder / "sweep.jsonl")),
    )


def _key(made_from: Any) -> str:
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(value, 6) for value in values]


def _read(
    loaded: LoadedModel, trait: Trait, settings: ExtractionSettings, responses: Sequence[Response], console: Console
) -> Contrast:
    """One pass over the responses for all layers and positions."""
    shape = dimensions(loaded.model)
    layers = range(shape.num_layers + 1)
    contrast = Contrast(*kinds(responses), len(POSITIONS), len(layers), shape.hidden_size)
    with progress_bar(console) as progress:
        task = progress.add_task(f"{trait.name}: reading activations", total=len(responses))
        for start in range(0, len(responses), _READ_TOGETHER):
            part = responses[start : start + _READ_TOGETHER]
            chats = [Chat((*response.prompt(), {"role": "assistant", "content": response.text})) for response in part]
            encoded = [encode_chat(chat, loaded.tokenizer) for chat in chats]
            batches = iterate_activations(loaded, encoded, layers, POSITIONS, BatchLimits(settings.batch_size))
            for indices, read in batches:
                activations = read.cpu()
                _check_finite(trait, [part[index] for index in indices], activations)
                contrast.add([start + index for index in indices], activations)
                progress.advance(task, len(indices))
    return contrast


def _check_finite(trait: Trait, responses: Sequence[Response], activations: Tensor) -> None:
    broken = (~activations.isfinite()).nonzero()
    if len(broken):
        row, _, layer, _ = broken[0].tolist()
        raise InputError(
            f"trait {trait.name!r}: activations that are not finite at layer {layer}, in the response to"
            f" {responses[row].question!r} under {responses[row].instruction!r}; load the model in a wider dtype, such"
            " as model.dtype=float32"
        )


def _choose_layer(
    loaded: LoadedModel,
    trait: Trait,
    settings: ExtractionSettings,
    judged: Judged,
    vector: PersonaVector,
    judge: Judge | None,
    console: Console,
) -> tuple[int, dict[str, list[float]], list[Steered]]:
    """The layer, the statistics it was chosen by, and the answers of a sweep."""
    if settings.layer_choice == "auc":
        auc = vector.statistics["auc"][1:-1]  # neither the embedding nor the last layer is steered with
        return 1 + max(range(len(auc)), key=auc.__getitem__), {}, []
    if settings.layer_choice == "effect":
        effects = _steering_effects(loaded, trait, judged.kept_responses, vector.directions, console)
        statistics = {"steering_effect_layers": _rounded(effects), "steering_effect": _rounded(effects.values())}
        return max(effects, key=effects.__getitem__), statistics, []
    assert judge is not None  # the settings say so
    sweep = _sweep(loaded, trait, settings, judge, vector.directions, console)
    statistics = {
        "sweep_layers": _rounded(steered.layer for steered in sweep[1:]),
        "sweep_expression": _rounded(steered.expression for steered in sweep[1:]),
        "sweep_coherence": _rounded(steered.coherence for steered in sweep[1:]),
        "unsteered_expression": _rounded([sweep[0].expression]),
    }
    return best_layer(sweep[1:], sweep[0]), statistics, sweep


def _steering_effects(
    loaded: LoadedModel, trait: Trait, responses: Sequence[Response], directions: Tensor, console: Console
) -> dict[int, float]:
    def some(wanted: bool) -> list[EncodedChat]:
        side = [response for response in responses if response.shows_trait == wanted]
        picked = side[:: math.ceil(len(side) / _EFFECT_RESPONSES)]
        chats = [Chat((response.prompt()[1], {"role": "assistant", "content": response.text})) for response in picked]
        return [encode_chat(chat, loaded.tokenizer) for chat in chats]

    with progress_bar(console) as progress:
        task = progress.add_task(
            f"{trait.name}: steering effect", total=len(candidate_layers(directions.shape[0] - 1, 15))
        )
        return steering_effect(
            loaded,
            some(wanted=True),
            some(wanted=False),
            directions,
            advance=lambda: progress.advance(task),
        )


def _sweep(
    loaded: LoadedModel,
    trait: Trait,
    settings: ExtractionSettings,
    judge: Judge,
    directions: Tensor,
    console: Console,
) -> list[Steered]:
    """Steer at several layers; the first entry is unsteered."""
    layers = candidate_layers(directions.shape[0] - 1, settings.sweep_layers)
    conditions = [(layers[0], 0.0), *((layer, settings.sweep_coefficient) for layer in layers)]
    questions = trait.evaluation_questions[: settings.sweep_questions]
    with progress_bar(console) as progress:
        task = progress.add_task(f"{trait.name}: steering sweep", total=len(conditions))
        return steered_expression(
            loaded, judge, questions, directions, conditions, settings.sampling, lambda: progress.advance(task)
        )

"""Extracting persona vectors: contrastive generation, filtering by a judge, then mean differences at every layer and
position (Chen et al. 2025, 2.2 and A.1–A.3).
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from torch import Tensor

from persona_callbacks.chats import Chat, EncodedChat, encode_chat, read_pairs
from persona_callbacks.errors import InputError
from persona_callbacks.extraction.contrast import Contrast, Separation
from persona_callbacks.extraction.demonstrations import demonstration_pairs
from persona_callbacks.extraction.instructions import Elicited, check_instructions, elicited, sample_instructions
from persona_callbacks.extraction.layer_choice import (
    Steered,
    best_layer,
    candidate_layers,
    steered_expression,
    steering_effect,
)
from persona_callbacks.extraction.methods import best, candidates, learned_from
from persona_callbacks.extraction.prompts import with_prompts
from persona_callbacks.extraction.responses import (
    Judged,
    Response,
    generate_responses,
    judge_responses,
    kinds,
    paired_responses,
)
from persona_callbacks.extraction.settings import ExtractionJob, ExtractionSettings
from persona_callbacks.files import (
    append_lines,
    atomic_write,
    cache_dir,
    locked_entry,
    model_folder,
    recover_lines,
    remove_scratch,
)
from persona_callbacks.judging import ContrastiveJudge, Judge
from persona_callbacks.model import (
    BatchLimits,
    Generator,
    LoadedModel,
    TransformersGenerator,
    adapter_fingerprint,
    dimensions,
    iterate_activations,
    weights_fingerprint,
)
from persona_callbacks.progress import open_console, progress_bar
from persona_callbacks.traits import MinimalPair, Trait, spread
from persona_callbacks.vectors import METHODS, POSITIONS, Evidence, Method, PersonaVector, Position, SweepPoint

SHIPPED = Path(__file__).parent / "shipped"
"""By model, the folders of the cache that come with the package."""

_Key = TypeVar("_Key")

_METHOD = 7
"""Part of the cache key: raised when the same responses would give another vector."""

_READ_TOGETHER = 1000
"""Responses that are tokenised at a time."""

_MOST_PAIRS = 24
"""Minimal pairs that a vector holds, so that its file stays small."""

_EFFECT_RESPONSES = 12
"""Responses of each kind on which the steering effect of a layer is measured."""


@dataclass(frozen=True)
class Extraction:
    """The vectors that an extraction made, and the files beside them.

    Attributes:
        vectors: by position; all with the layer chosen for ``settings.position``.
        settings: how the vectors were extracted.
        responses: file of all responses and their scores, JSONL.
        candidates: the vectors that ``settings.method=best`` compared, by method; otherwise empty.
        instructions: what each instruction pair elicits, the widest gap first; empty where nothing was judged.
        sweep: the answers of a steering sweep, layer by layer; empty if there was no sweep.

    Example:
        >>> import torch
        >>> vector = PersonaVector("evil", torch.randn(5, 8), layer=2, model_id="tiny")
        >>> extraction = Extraction({"response_mean": vector}, ExtractionSettings(), Path("responses.jsonl"))
        >>> extraction.vector.trait
        'evil'
    """

    vectors: Mapping[Position, PersonaVector]
    settings: ExtractionSettings
    responses: Path
    candidates: Mapping[Method, PersonaVector] = field(default_factory=dict)
    sweep: tuple[Steered, ...] = ()
    instructions: tuple[Elicited, ...] = ()

    @property
    def vector(self) -> PersonaVector:
        """The vector of the position that the settings name."""
        return self.vectors[self.settings.position]


def persona_vector(
    loaded: LoadedModel,
    trait: Trait,
    settings: ExtractionSettings,
    console: Console | None = None,
    weights: str | None = None,
) -> PersonaVector:
    """The trait's persona vector for a model, from the cache if the same model, trait and settings made it before.

    Raises:
        InputError: as for :func:`extract`.
    """
    return extract(loaded, trait, settings, console, weights=weights).vector


def extract(
    loaded: LoadedModel,
    trait: Trait,
    settings: ExtractionSettings,
    console: Console | None = None,
    generator: Generator | None = None,
    judge: Judge | None = None,
    weights: str | None = None,
) -> Extraction:
    """Extract a trait's persona vectors at all positions, or take them from the cache, or from what is shipped.

    Responses and scores are stored as they are made, so that an interrupted extraction continues where it stopped. If
    another process is at the same extraction, it is waited for, and its vectors are taken from the cache.

    Args:
        loaded: the model.
        trait: the trait.
        settings: how the vectors are extracted.
        console: where progress is shown.
        generator: generates the responses; by default the model itself.
        judge: filters them in place of the contrastive judge; its scores are not cached.
        weights: their fingerprint before the first pass, which may pack quantized ones anew; as they are by default.

    Raises:
        InputError: the model has no chat template, too few responses of one kind are usable, activations are not
            finite, or an adapter does not fit the model.
    """
    generator = generator or TransformersGenerator(loaded)
    if settings.prompts is not None:
        trait = with_prompts(trait, settings.prompts, settings.questions)
    pairs = None if settings.pairs is None else read_pairs(settings.pairs)
    check_instructions(trait, settings)
    judged_by = judge.name if judge else None
    if pairs is None:
        made_by = _generated_by(trait, settings, generator, judged_by)
    else:
        # What a file says counts, and not its name. Nothing is judged.
        made_by, settings = [[asdict(pair) for pair in pairs]], replace(settings, pairs="", judge_pairs=0)
    job = ExtractionJob(loaded, trait, settings, console or open_console(stderr=True))
    revision = weights or weights_fingerprint(loaded.model)
    made = _key([revision, trait.fingerprint, *made_by, *loaded.answering])
    folder = cache_dir() / "vectors" / model_folder(loaded.id)
    made_with = [_METHOD, made, trait.probe_questions, *_told(loaded, settings), judged_by]
    made_with += [asdict(pair) for pair in learned_from(trait, settings)]
    result = folder / f"{trait.name}-{_key(made_with)}"
    shipped = SHIPPED / folder.name / result.name
    for there, origin in ((result, "cached"), (shipped, "shipped with the package")):
        if there.is_dir() and (there == result or settings.shipped):
            job.console.print(f"Persona vector of {trait.name}: {origin}, {there}", markup=False, soft_wrap=True)
            return _with_pairs(load_extraction(there, settings), trait)

    # Extractions that differ in what follows the responses share these.
    with locked_entry(folder / f"{trait.name}-{made}", partial(job.console.print, markup=False, soft_wrap=True)):
        if not result.is_dir():  # the process that this one waited for may have made it
            file = folder / f"{trait.name}-{made}.responses.jsonl"
            sample, used = sample_instructions(job, generator, judge, file) if settings.instructions else (None, None)
            responses = generate_responses(job, generator, file, used) if pairs is None else paired_responses(pairs)
            judged_file = folder / f"{trait.name}-{made}.likelihoods{settings.judge_pairs}.jsonl"
            _extract(job, judge_responses(job, responses, judge, judged_file), sample, judge, revision, result)
    return _with_pairs(load_extraction(result, settings), trait)


def _generated_by(trait: Trait, settings: ExtractionSettings, generator: Generator, judged_by: str | None) -> list[Any]:
    """What generated responses depend on, beside the model and the trait without its minimal pairs."""
    made_by: list[Any] = [generator.name, asdict(settings.sampling), settings.rollouts, settings.questions]
    shown = demonstration_pairs(trait, settings.demonstrations)
    made_by += [settings.demonstrations, [asdict(pair) for pair in shown]] if shown else []
    return made_by + ([f"best {settings.instructions}", judged_by] if settings.instructions else [])


def _told(loaded: LoadedModel, settings: ExtractionSettings) -> list[Any]:
    """The settings, and what the adapters among them hold, whatever their folders are called."""
    told = asdict(settings)
    del told["shipped"], told["prompts"]  # what the prompts say is part of the trait
    for name in ("instructions", "demonstrations"):  # unused, they leave the keys as before there were any
        if not told[name]:
            del told[name]
    if settings.method not in ("learned", "best"):
        del told["learning"]
    folders = [told.pop("adapter"), told.pop("opposite_adapter")]
    return [told, *(adapter_fingerprint(loaded, folder) for folder in folders if folder is not None)]


def _extract(
    job: ExtractionJob, judged: Judged, sample: Judged | None, judge: Judge | None, revision: str, result: Path
) -> None:
    """Make the vectors of all positions, choose their layer, and write them with their evidence."""
    job = replace(job, unfinished=result.with_name(f"{result.name}.learning.pt"))
    loaded, trait, settings = job.loaded, job.trait, job.settings
    remove_scratch(result.parent, result.name)
    contrast = _read(job, judged.kept_responses)
    vectors = _vectors(job, judged, contrast, revision)
    if judge is None and judged.calibration is not None:
        judge = ContrastiveJudge(loaded, trait, judged.calibration, settings.judge_pairs)
    compared = candidates(job, judged.kept_responses, contrast, vectors[settings.position])
    main = best(compared)
    layer, evidence, sweep = _choose_layer(job, judged, main, judge)
    vectors[settings.position] = replace(main, evidence=evidence)
    with atomic_write(result) as scratch:
        scratch.mkdir()
        for position, vector in vectors.items():
            replace(vector, layer=layer).save(scratch / f"{position}.safetensors")
        for method, vector in compared.items() if settings.method == "best" else ():
            replace(vector, layer=layer).save(scratch / f"{method}.safetensors")
        append_lines(scratch / "responses.jsonl", list(judged.rows()))
        if sample is not None:
            append_lines(scratch / "sample.jsonl", list(sample.rows()))
        append_lines(scratch / "sweep.jsonl", [asdict(steered) for steered in sweep])


def _with_pairs(extraction: Extraction, trait: Trait) -> Extraction:
    """With the minimal pairs that the trait has now, since they measure a vector and do not change its directions;
    without those that demonstrated the trait, or that a learned vector was made from.
    """
    shown = demonstration_pairs(trait, extraction.settings.demonstrations)
    learned = learned_from(trait, extraction.settings)

    def pairs(vector: PersonaVector) -> tuple[MinimalPair, ...]:
        used = {*shown, *(learned if vector.method == "learned" else ())}
        return spread([pair for pair in trait.probe_pairs if pair not in used], _MOST_PAIRS)

    def paired(vectors: Mapping[_Key, PersonaVector]) -> dict[_Key, PersonaVector]:
        return {key: replace(vector, pairs=pairs(vector)) for key, vector in vectors.items()}

    return replace(extraction, vectors=paired(extraction.vectors), candidates=paired(extraction.candidates))


def load_extraction(folder: Path, settings: ExtractionSettings) -> Extraction:
    """Read the folder that :func:`extract` left in the cache."""
    rows: list[dict[str, Any]] = recover_lines(folder / "responses.jsonl")
    sample = recover_lines(folder / "sample.jsonl") or rows
    return Extraction(
        {position: PersonaVector.load(folder / f"{position}.safetensors") for position in POSITIONS},
        settings,
        folder / "responses.jsonl",
        {
            method: PersonaVector.load(folder / f"{method}.safetensors")
            for method in METHODS
            if (folder / f"{method}.safetensors").is_file()
        },
        tuple(recover_lines(folder / "sweep.jsonl", lambda row: Steered(**{**row, "answers": tuple(row["answers"])}))),
        elicited(sample, {row["pair"] for row in rows}),
    )


def _key(made_from: Any) -> str:
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(value, 6) for value in values)


def _evidence(separation: Separation) -> Evidence:
    return Evidence(
        auc=_rounded(separation.auc.tolist()),
        cohens_d=_rounded(separation.cohens_d.tolist()),
        split_half_cosine=_rounded(separation.split_half_cosine.tolist()),
        pair_cosine=_rounded(separation.pair_cosine.tolist()),
    )


def _vectors(job: ExtractionJob, judged: Judged, contrast: Contrast, revision: str) -> dict[Position, PersonaVector]:
    """The vectors of all positions, before a layer is chosen; ``revision`` says which weights they are of."""
    return {
        position: PersonaVector(
            trait=job.trait.name,
            directions=contrast.directions(number),
            layer=0,
            model_id=job.loaded.id,
            model_revision=revision,
            position=position,
            probes=job.trait.probe_questions,
            counts=judged.counts,
            evidence=_evidence(contrast.separation(number)),
            calibration=judged.calibration,
            trait_fingerprint=job.trait.fingerprint,
        )
        for number, position in enumerate(POSITIONS)
    }


def _read(job: ExtractionJob, responses: Sequence[Response]) -> Contrast:
    """Read all layers and positions in one pass over the responses."""
    loaded, trait = job.loaded, job.trait
    shape = dimensions(loaded.model)
    layers = range(shape.num_layers + 1)
    contrast = Contrast(*kinds(responses), len(POSITIONS), len(layers), shape.hidden_size)
    with progress_bar(job.console) as progress:
        task = progress.add_task(f"{trait.name}: reading activations", total=len(responses))
        for start in range(0, len(responses), _READ_TOGETHER):
            part = responses[start : start + _READ_TOGETHER]
            chats = [Chat((*response.prompt(), {"role": "assistant", "content": response.text})) for response in part]
            encoded = [encode_chat(chat, loaded.tokenizer) for chat in chats]
            batches = iterate_activations(loaded, encoded, layers, POSITIONS, BatchLimits(job.settings.batch_size))
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
    job: ExtractionJob, judged: Judged, vector: PersonaVector, judge: Judge | None
) -> tuple[int, Evidence, list[Steered]]:
    """The layer, the evidence that it was chosen by, and the answers of a sweep."""
    if job.settings.layer_choice == "auc":
        auc = vector.evidence.auc[1:-1]  # neither the embedding nor the last layer is steered with
        return 1 + max(range(len(auc)), key=auc.__getitem__), vector.evidence, []
    if job.settings.layer_choice == "effect":
        effects = _steering_effects(job, judged.kept_responses, vector.directions)
        evidence = replace(vector.evidence, steering_effect=dict(zip(effects, _rounded(effects.values()), strict=True)))
        return max(effects, key=effects.__getitem__), evidence, []
    assert judge is not None  # the settings say so
    sweep = _sweep(job, judge, vector.directions)
    evidence = replace(
        vector.evidence,
        sweep=tuple(SweepPoint(s.layer, *_rounded((s.expression, s.coherence))) for s in sweep[1:]),
        unsteered_expression=round(sweep[0].expression, 6),
    )
    return best_layer(sweep[1:], sweep[0]), evidence, sweep


def _steering_effects(job: ExtractionJob, responses: Sequence[Response], directions: Tensor) -> dict[int, float]:
    def some(wanted: bool) -> list[EncodedChat]:
        side = [response for response in responses if response.shows_trait == wanted]
        picked = side[:: math.ceil(len(side) / _EFFECT_RESPONSES)]
        chats = [Chat((response.prompt()[-1], {"role": "assistant", "content": response.text})) for response in picked]
        return [encode_chat(chat, job.loaded.tokenizer) for chat in chats]

    with progress_bar(job.console) as progress:
        task = progress.add_task(
            f"{job.trait.name}: steering effect", total=len(candidate_layers(directions.shape[0] - 1, 15))
        )
        return steering_effect(
            job.loaded,
            some(wanted=True),
            some(wanted=False),
            directions,
            advance=lambda: progress.advance(task),
        )


def _sweep(job: ExtractionJob, judge: Judge, directions: Tensor) -> list[Steered]:
    """Steer at several layers; the first entry is unsteered."""
    layers = candidate_layers(directions.shape[0] - 1, job.settings.sweep_layers)
    conditions = [(layers[0], 0.0), *((layer, job.settings.sweep_coefficient) for layer in layers)]
    questions = job.trait.probe_questions[: job.settings.sweep_questions]
    with progress_bar(job.console) as progress:
        task = progress.add_task(f"{job.trait.name}: steering sweep", total=len(conditions))
        return steered_expression(
            job.loaded, judge, questions, directions, conditions, job.settings.sampling, lambda: progress.advance(task)
        )

"""The ways in which a vector is made from responses, and what each is worth on questions that it was not made from."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle, islice

from torch import Tensor

from persona_callbacks.chats import Chat, encode_chat, shortened
from persona_callbacks.errors import InputError
from persona_callbacks.extraction.adapted import adapter_directions
from persona_callbacks.extraction.causes import COEFFICIENTS, HeldOut, causal_points, shipped_texts, unmeasured_chats
from persona_callbacks.extraction.contrast import Contrast
from persona_callbacks.extraction.demonstrations import measured_pairs, unmeasured_pairs
from persona_callbacks.extraction.learning import EncodedPair, learn_directions
from persona_callbacks.extraction.responses import Response
from persona_callbacks.extraction.settings import ExtractionJob, ExtractionSettings
from persona_callbacks.model import encode_pair
from persona_callbacks.progress import progress_bar
from persona_callbacks.traits import MinimalPair, Trait, spread
from persona_callbacks.vectors import POSITIONS, Method, PersonaVector

_LONGEST = 64
"""Tokens of a response that are learned from or measured on."""

_MEASURED = 12
"""Question pairs on which causal strength is measured where there are no minimal pairs."""

_LEAST_LEARNED = 8
"""Minimal pairs from which a vector is learned; with fewer, responses are."""

_READ = 96
"""Responses of both kinds that are run with an adapter."""


def candidates(
    job: ExtractionJob, responses: Sequence[Response], contrast: Contrast, mean_difference: PersonaVector
) -> dict[Method, PersonaVector]:
    """By method, the vectors that the settings ask for, each with what it causes as evidence.

    Args:
        job: whose settings name the method, or ``best`` for all.
        responses: those that were kept.
        contrast: of their activations.
        mean_difference: the vector of the position that the settings name, from this contrast.

    Raises:
        InputError: a vector is to be learned, and no question is left to measure it on.
    """
    made: dict[Method, PersonaVector] = {}
    # They differ in the trait alone, and are written as the texts of the other traits are.
    measured = measured_pairs(job.trait, job.settings.demonstrations or len(learned_from(job.trait, job.settings)))
    minimal = tuple(encode_pair(pair, job.loaded.tokenizer) for pair in measured)
    if job.settings.method in ("mean_difference", "best"):
        of_vector = (
            [HeldOut(mean_difference, minimal)] if minimal else _halves(job, responses, contrast, mean_difference)
        )
        made["mean_difference"] = _with_causes(job, mean_difference, of_vector)
    others: dict[Method, Callable[[ExtractionJob, Sequence[Response]], Tensor]] = {}
    if job.settings.method in ("learned", "best"):
        others["learned"] = _learned
    if job.settings.adapter is not None:
        others["from_adapters"] = _from_adapters
    held_back = _pairs(job, _held_back(responses), _MEASURED) if others else ()
    if others and not held_back:
        raise InputError(
            f"trait {job.trait.name!r}: no response of both kinds to any fourth question, on which a vector that is"
            f" {' or '.join(others)} is measured; use more questions or rollouts, or extraction.method=mean_difference"
        )
    for method, directions_from in others.items():
        vector = _other(job, responses, contrast, mean_difference, method, directions_from)
        made[method] = _with_causes(job, vector, [HeldOut(vector, minimal or held_back)])
    return made


def best(made: dict[Method, PersonaVector]) -> PersonaVector:
    """The vector whose gain is the furthest above that of other text; without such evidence, the first."""

    def specificity(vector: PersonaVector) -> float:
        point = vector.evidence.causal_strength
        return point.specificity if point is not None else float("-inf")

    return max(made.values(), key=specificity)


def _halves(
    job: ExtractionJob, responses: Sequence[Response], contrast: Contrast, mean_difference: PersonaVector
) -> list[HeldOut]:
    """The vector of each half of the questions, and pairs of responses to the other half."""
    halves = contrast.half_directions(POSITIONS.index(mean_difference.position))
    return [
        HeldOut(
            replace(mean_difference, directions=directions),
            _pairs(job, [response for response in responses if response.question_number % 2 != half], _MEASURED // 2),
        )
        for half, directions in enumerate(halves)
    ]


def _held_back(responses: Sequence[Response]) -> list[Response]:
    """The responses to every fourth question; nothing is learned from them."""
    return [response for response in responses if response.question_number % 4 == 3]


def _other(
    job: ExtractionJob,
    responses: Sequence[Response],
    contrast: Contrast,
    mean_difference: PersonaVector,
    method: Method,
    directions_from: Callable[[ExtractionJob, Sequence[Response]], Tensor],
) -> PersonaVector:
    """The vector of another method, from the responses to all questions but every fourth."""
    held_back = {response.question_number for response in _held_back(responses)}
    directions = directions_from(job, [response for response in responses if response.question_number not in held_back])
    auc, gaps = contrast.ranking(POSITIONS.index(mean_difference.position), directions, held_back)
    evidence = replace(
        mean_difference.evidence,
        auc=tuple(round(value, 6) for value in auc.tolist()),
        cohens_d=tuple(round(value, 6) for value in gaps.tolist()),
        split_half_cosine=(),
    )
    return replace(mean_difference, directions=directions, method=method, evidence=evidence)


def learned_from(trait: Trait, settings: ExtractionSettings) -> tuple[MinimalPair, ...]:
    """The minimal pairs that a vector is learned from; none if it is not learned, or from responses: where pairs are
    given, and where the trait has too few.
    """
    if settings.method not in ("learned", "best") or settings.pairs is not None:
        return ()
    pairs = unmeasured_pairs(trait)
    return pairs if len(pairs) >= _LEAST_LEARNED else ()


def _learned(job: ExtractionJob, responses: Sequence[Response]) -> Tensor:
    settings = job.settings.learning
    minimal = learned_from(job.trait, job.settings)
    with progress_bar(job.console) as progress:
        task = progress.add_task(f"{job.trait.name}: learning", total=settings.steps)
        pairs = [encode_pair(pair, job.loaded.tokenizer) for pair in minimal] or _pairs(job, responses, len(responses))
        kept = unmeasured_chats(job.loaded) if settings.objective == "preference" else ()
        return learn_directions(job.loaded, pairs, settings, lambda *_: progress.advance(task), kept, job.unfinished)


def _from_adapters(job: ExtractionJob, responses: Sequence[Response]) -> Tensor:
    """Without the instructions that the responses were made under, under which adapters are not trained."""
    settings = job.settings
    assert settings.adapter is not None
    chats = [
        Chat((response.prompt()[-1], {"role": "assistant", "content": response.text}))
        for response in spread(responses, _READ)
    ]
    encoded = [encode_chat(chat, job.loaded.tokenizer) for chat in chats]
    return adapter_directions(job.loaded, encoded, settings.adapter, settings.opposite_adapter, settings.position)


def _with_causes(job: ExtractionJob, vector: PersonaVector, held_out: Sequence[HeldOut]) -> PersonaVector:
    with progress_bar(job.console) as progress:
        task = progress.add_task(f"{job.trait.name}: causal strength, {vector.method}", total=1 + len(COEFFICIENTS))
        points = causal_points(
            job.loaded,
            vector,
            held_out,
            shipped_texts(job.loaded, vector.trait),
            advance=lambda: progress.advance(task),
        )
    return replace(vector, evidence=replace(vector.evidence, causal=points))


def _pairs(job: ExtractionJob, responses: Sequence[Response], most: int) -> tuple[EncodedPair, ...]:
    """Every response beside one of the other kind to the same question, without the instructions; at most ``most``,
    evenly.
    """
    by_question: dict[int, tuple[list[Response], list[Response]]] = {}
    for response in responses:
        by_question.setdefault(response.question_number, ([], []))[not response.shows_trait].append(response)
    pairs = []
    for shows, others in by_question.values():
        count = max(len(shows), len(others)) if shows and others else 0
        both = zip(islice(cycle(shows), count), islice(cycle(others), count), strict=True)
        pairs += [MinimalPair(response.question, response.text, other.text) for response, other in both]
    encoded = [encode_pair(pair, job.loaded.tokenizer) for pair in spread(pairs, most)]
    return tuple((shortened(shows, _LONGEST), shortened(other, _LONGEST)) for shows, other in encoded)

"""Which of a trait's instruction pairs work on a model: what each elicits, on both sides."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from persona_callbacks.errors import InputError
from persona_callbacks.extraction.responses import Judged, generate_responses, score_responses
from persona_callbacks.extraction.settings import ExtractionJob, ExtractionSettings
from persona_callbacks.judging import Judge
from persona_callbacks.model import Generator
from persona_callbacks.traits import Trait

_QUESTIONS = 6
"""Extraction questions that are asked under every instruction to find the best ones."""


@dataclass(frozen=True)
class Elicited:
    """What the two instructions of a pair make a model say.

    Example:
        >>> Elicited(pair=0, trait=80.0, opposite=15.0, kept=10, generated=12, used=True).gap
        65.0

    Attributes:
        pair: number of the instruction pair.
        trait: mean trait expression, 0 to 100, of responses under the instruction that asks for the trait, by the
            judge that filters responses; the contrastive judge does it by other pairs.
        opposite: the same under the opposite instruction.
        kept: how many responses under both show what they were asked to show.
        generated: of how many.
        used: whether the vector is made from the pair.
    """

    pair: int
    trait: float
    opposite: float
    kept: int
    generated: int
    used: bool

    @property
    def gap(self) -> float:
        """By how much the two instructions differ in what they elicit: 100 at most, 0 if the model ignores them."""
        return self.trait - self.opposite


def elicited(rows: Iterable[Mapping[str, Any]], used: Collection[int]) -> tuple[Elicited, ...]:
    """What each pair elicits, the widest gap first.

    Args:
        rows: scored responses, as in an extraction's ``responses.jsonl``. A pair without scores on both sides is left
            out.
        used: numbers of the pairs that the vector is made from.
    """
    by_pair: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_pair.setdefault(int(row["pair"]), []).append(row)
    found = []
    for pair, responses in by_pair.items():
        sides = [
            [row["expression"] for row in responses if row["shows_trait"] == wanted and row["expression"] is not None]
            for wanted in (True, False)
        ]
        if all(sides):
            trait, opposite = (sum(side) / len(side) for side in sides)
            kept = sum(row["kept"] for row in responses)
            found.append(Elicited(pair, trait, opposite, kept, len(responses), pair in used))
    return tuple(sorted(found, key=lambda one: -one.gap))


def check_instructions(trait: Trait, settings: ExtractionSettings) -> None:
    """Check that a trait has enough instruction pairs for the judge, and for a choice among them.

    Raises:
        InputError: it has not.
    """
    wanted, found = settings.instructions, len(trait.instructions)
    if settings.pairs is None and settings.judge_pairs and found < 2:
        raise InputError(
            f"trait {trait.name!r}: the judge scores a response by other instruction pairs than its own; expected at"
            " least 2 pairs, found 1 (or keep all responses, extraction.judge_pairs=0)"
        )
    if wanted is not None and wanted >= found:
        raise InputError(
            f"extraction.instructions: the best {wanted} are to be used; expected fewer than the {found} instruction"
            f" pairs of the trait {trait.name!r}, or null for all"
        )


def sample_instructions(
    job: ExtractionJob, generator: Generator, judge: Judge | None, stem: Path
) -> tuple[Judged, tuple[int, ...]]:
    """Generate and judge a few responses under every instruction, and rank the pairs by their gap.

    Args:
        job: its settings say how many pairs to use.
        generator: generates the responses.
        judge: scores them in place of the contrastive judge, which here judges each by all other pairs.
        stem: beginning of the names of the files where finished work is kept.

    Returns:
        The sample, and the numbers of the best pairs, ascending.

    Raises:
        InputError: fewer pairs than that have answers that can be scored.
    """
    wanted, count = job.settings.instructions, len(job.trait.instructions)
    assert wanted is not None
    few = min(_QUESTIONS, job.settings.questions or _QUESTIONS)
    settings = replace(job.settings, rollouts=1, questions=few, judge_pairs=count - 1)
    job = replace(job, settings=settings)
    responses = generate_responses(job, generator, stem.with_name(f"{stem.name}.sample.jsonl"))
    sample = score_responses(job, responses, judge, stem.with_name(f"{stem.name}.sample.likelihoods.jsonl"))
    ranked = elicited(sample.rows(), ())
    if len(ranked) < wanted:
        raise InputError(
            f"trait {job.trait.name!r}: {len(ranked)} of {count} instruction pairs have answers on both sides that can"
            f" be scored; expected at least extraction.instructions={wanted}"
        )
    return sample, tuple(sorted(one.pair for one in ranked[:wanted]))

"""Contrastive responses: generated under instructions that ask for a trait and under their opposites, judged, and
filtered (Chen et al. 2025, A.1–A.3).
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from persona_callbacks.chats import Message
from persona_callbacks.errors import InputError
from persona_callbacks.extraction.demonstrations import demonstration_pairs, draw_demonstrations
from persona_callbacks.extraction.settings import ExtractionJob
from persona_callbacks.files import append_lines, recover_lines
from persona_callbacks.judging import Answer, Judge, Likelihoods, Score, calibrate, likelihoods
from persona_callbacks.model import Generator
from persona_callbacks.progress import progress_bar
from persona_callbacks.traits import MinimalPair, Trait
from persona_callbacks.vectors import Calibration, Counts

_JUDGED_TOGETHER = 200
"""Responses whose judgement is kept at a time."""


@dataclass(frozen=True)
class Response:
    """A contrastive response, with the instruction and the question that it answers.

    Example:
        >>> response = Response(True, 0, "Shout.", 3, "Who are you?", "ME!")
        >>> [message["content"] for message in response.prompt()]
        ['Shout.', 'Who are you?']

    Attributes:
        shows_trait: whether the instruction asked for the trait.
        pair: number of the instruction pair.
        instruction: the system prompt; empty if there was none.
        question_number: number of the extraction question.
        question: the extraction question.
        text: the response; empty until generated.
        demonstrations: questions and answers that came before the question.
    """

    shows_trait: bool
    pair: int
    instruction: str
    question_number: int
    question: str
    text: str = ""
    demonstrations: tuple[tuple[str, str], ...] = ()

    def prompt(self) -> list[Message]:
        """The messages that the response answers."""
        messages: list[Message] = [{"role": "system", "content": self.instruction}] if self.instruction else []
        for question, answer in self.demonstrations:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return [*messages, {"role": "user", "content": self.question}]


@dataclass(frozen=True)
class Judged:
    """Responses, what the judge says of them, and which are kept.

    Attributes:
        responses: all responses.
        scores: the judge's score of each response.
        kept: indices of the responses that are kept.
        calibration: of the contrastive judge, if it scored the responses.

    Example:
        >>> judged = Judged((), (), (), calibration=None)
        >>> judged.counts.trait
        0
    """

    responses: tuple[Response, ...]
    scores: tuple[Score, ...]
    kept: tuple[int, ...]
    calibration: Calibration | None

    @property
    def kept_responses(self) -> list[Response]:
        """The responses that are kept, in order."""
        return [self.responses[index] for index in self.kept]

    @property
    def counts(self) -> Counts:
        """How many responses of each kind are kept, and how many were generated."""
        generated = Counter(response.shows_trait for response in self.responses)
        left = Counter(response.shows_trait for response in self.kept_responses)
        return Counts(left[True], left[False], generated[True], generated[False])

    def rows(self) -> Iterator[dict[str, Any]]:
        """For each response, the row of a file."""
        kept = set(self.kept)
        for index, (response, score) in enumerate(zip(self.responses, self.scores, strict=True)):
            yield {**asdict(response), **asdict(score), "kept": index in kept}


def generate_responses(
    job: ExtractionJob, generator: Generator, file: Path, used: Collection[int] | None = None
) -> list[Response]:
    """Answer every extraction question under every instruction, or under those of the ``used`` pairs.

    What ``file`` does not hold yet is generated; each finished batch is appended to it.
    """
    trait, settings = job.trait, job.settings
    questions = trait.extraction_questions[: settings.questions]
    pool = demonstration_pairs(trait, settings.demonstrations)
    before = draw_demonstrations(pool, settings.demonstrations, questions * len(trait.instructions))
    planned = [
        Response(
            shows_trait,
            number,
            instruction,
            question_number,
            question,
            demonstrations=_turns(before[number * len(questions) + question_number], shows_trait),
        )
        for number, pair in enumerate(trait.instructions)
        if used is None or number in used
        for shows_trait, instruction in ((True, pair.trait), (False, pair.opposite))
        for question_number, question in enumerate(questions)
        for _ in range(settings.rollouts)
    ]
    texts = dict(recover_lines(file, lambda row: (int(row["index"]), str(row["response"]))))
    prompts = [response.prompt() for response in planned]
    with progress_bar(job.console) as progress:
        task = progress.add_task(f"{trait.name}: generating", total=len(prompts), completed=len(texts))
        for batch in generator.iterate(prompts, settings.sampling, skip=frozenset(texts)):
            append_lines(file, [{"index": index, "response": text} for index, text in batch])
            texts.update(batch)
            progress.update(task, completed=len(texts))
    return [replace(response, text=texts[index]) for index, response in enumerate(planned)]


def _turns(pairs: Sequence[MinimalPair], shows_trait: bool) -> tuple[tuple[str, str], ...]:
    return tuple((pair.question, pair.trait if shows_trait else pair.opposite) for pair in pairs)


def paired_responses(pairs: Sequence[MinimalPair]) -> list[Response]:
    """The responses of pairs that were given, made under no instruction."""
    numbers = {question: number for number, question in enumerate(dict.fromkeys(pair.question for pair in pairs))}
    return [
        Response(shows_trait, 0, "", numbers[pair.question], pair.question, text)
        for pair in pairs
        for shows_trait, text in ((True, pair.trait), (False, pair.opposite))
    ]


def judge_responses(job: ExtractionJob, responses: Sequence[Response], judge: Judge | None, file: Path) -> Judged:
    """Score responses, keep those that show what they were asked to show, and see that enough of them are left.

    Args:
        job: its model made the responses.
        responses: the responses.
        judge: as for :func:`score_responses`.
        file: as for :func:`score_responses`.

    Raises:
        InputError: in one half of the questions, none has responses of both kinds left.
    """
    judged = score_responses(job, responses, judge, file)
    _check_kept(job.trait, responses, judged.scores, judged.kept)
    return judged


def score_responses(job: ExtractionJob, responses: Sequence[Response], judge: Judge | None, file: Path) -> Judged:
    """Score responses and keep those that show what they were asked to show, and make sense.

    Without ``judge``, the contrastive judge scores by ``settings.judge_pairs`` instruction pairs; if that is 0, every
    response that is not empty is kept.

    Args:
        job: its model made the responses.
        responses: the responses.
        judge: scores them in place of the contrastive judge.
        file: where the contrastive judge's finished work is kept.

    Raises:
        InputError: too few responses to calibrate the contrastive judge.
    """
    trait, pairs = job.trait, job.settings.judge_pairs
    calibration = None
    if judge is not None:
        with progress_bar(job.console) as progress:
            task = progress.add_task(f"{trait.name}: judging", total=len(responses))
            scores = judge.score(_answers(responses), lambda done: progress.advance(task, done))
    elif pairs:
        likely = _likelihoods(job, responses, file)
        try:
            shows, questions = kinds(responses)
            # What was asked for is known here, so the two kinds are told apart by the instructions alone; the judge of
            # answers that could be anything holds them against the controls too.
            expressions = calibrate(likely.ratios, shows, questions % 2).expressions(likely.ratios).tolist()
            calibration = calibrate(likely.margins, shows, questions % 2)
        except InputError as error:
            raise InputError(f"trait {trait.name!r}: {error}") from error
        scores = [Score(None if math.isnan(expression) else expression) for expression in expressions]
    else:
        scores = [Score(None)] * len(responses)
    judged = judge is not None or pairs > 0
    both = zip(responses, scores, strict=True)
    kept = tuple(index for index, (response, score) in enumerate(both) if _is_kept(response, score, judged=judged))
    return Judged(tuple(responses), tuple(scores), kept, calibration)


def kinds(responses: Sequence[Response]) -> tuple[Tensor, Tensor]:
    """Whether each response was to show the trait (bool), and the number of its question: ``[responses]`` each."""
    shows = torch.tensor([response.shows_trait for response in responses], dtype=torch.bool)
    return shows, torch.tensor([response.question_number for response in responses])


def _is_kept(response: Response, score: Score, *, judged: bool) -> bool:
    """Responses that show what they were asked to show, and make sense (Chen et al. 2025, A.3)."""
    if not judged:
        return bool(response.text)
    if not response.text or score.expression is None or (score.coherence is not None and score.coherence < 50):
        return False
    return score.expression > 50 if response.shows_trait else score.expression < 50


def _check_kept(trait: Trait, responses: Sequence[Response], scores: Sequence[Score], kept: Sequence[int]) -> None:
    answered = [
        {responses[index].question_number for index in kept if responses[index].shows_trait == wanted}
        for wanted in (True, False)
    ]
    both = answered[0] & answered[1]
    if {number % 2 for number in both} == {0, 1}:
        return
    sides = []
    for name, wanted in (("trait", True), ("opposite", False)):
        side = [score for response, score in zip(responses, scores, strict=True) if response.shows_trait == wanted]
        left = sum(responses[index].shows_trait == wanted for index in kept)
        given = torch.tensor([score.expression for score in side if score.expression is not None])
        spread = "none could be scored"
        if len(given):
            low, middle, high = given.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
            spread = f"scores {low:.0f} / {middle:.0f} / {high:.0f} at the 10th, 50th and 90th percentile"
        sides.append(
            f"of {len(side)} generated under the {name} instructions {left} were kept ({spread}; expected"
            f" {'above' if wanted else 'below'} 50)"
        )
    raise InputError(
        f"trait {trait.name!r}: too few responses are left: {', '.join(sides)}, and {len(both)} questions have both"
        " kinds, expected at least one even and one odd question. Make the instructions of the trait stronger, ask more"
        " (extraction.questions, extraction.rollouts), or keep all (extraction.judge_pairs=0)"
    )


def _likelihoods(job: ExtractionJob, responses: Sequence[Response], file: Path) -> Likelihoods:
    """Likelihoods of the responses; what ``file`` does not hold yet is computed and appended to it."""
    known = dict(recover_lines(file, _known))
    answers = _answers(responses)
    with progress_bar(job.console) as progress:
        task = progress.add_task(f"{job.trait.name}: judging", total=len(answers), completed=len(known))
        todo = [index for index in range(len(answers)) if index not in known]
        for start in range(0, len(todo), _JUDGED_TOGETHER):
            indices = todo[start : start + _JUDGED_TOGETHER]
            part = likelihoods(
                job.loaded,
                job.trait,
                [answers[index] for index in indices],
                job.settings.judge_pairs,
                lambda done: progress.advance(task, done),
            )
            rows = dict(zip(indices, part.table.tolist(), strict=True))
            append_lines(
                file,
                [
                    {"index": index, "likelihoods": [None if math.isnan(value) else value for value in row]}
                    for index, row in rows.items()
                ],
            )
            known.update(rows)
        progress.update(task, completed=len(answers))
    return Likelihoods.from_table(torch.tensor([known[index] for index in range(len(answers))]))


def _known(row: Any) -> tuple[int, list[float]]:
    return int(row["index"]), [math.nan if value is None else float(value) for value in row["likelihoods"]]


def _answers(responses: Sequence[Response]) -> list[Answer]:
    return [Answer(response.question, response.text, response.pair) for response in responses]

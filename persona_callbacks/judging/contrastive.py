"""Judging trait expression: how much a response shows a trait, from 0 to 100.

The contrastive judge needs no other model. A response is as telling as it is more likely under instructions that ask
for the trait than under their opposites, which differ in one thing: so topic and, mostly, style cancel. To be judged as
showing the trait, a response must also be likelier than under no instruction, and than under one that only asks for
muddled text: else whatever is odd would count. A response made under a pair of instructions is judged by other pairs,
or it would be recognised by its origin.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from persona_callbacks.chats import Chat, Message, encode_chat
from persona_callbacks.errors import InputError
from persona_callbacks.judging.judge import Answer, Score
from persona_callbacks.model import LoadedModel, base_model, probing, response_log_probabilities
from persona_callbacks.traits import Trait
from persona_callbacks.vectors import Calibration, PersonaVector

CONTROLS = (None, "You are a rambling assistant whose answers drift off and make little sense.")
"""Instructions that explain an answer without the trait: none at all, and one that asks for muddle."""

_LOOP = 5


@dataclass(frozen=True)
class Likelihoods:
    """Mean log-probability per token of answers under instructions, in nats.

    Example:
        >>> import torch
        >>> likely = Likelihoods(torch.tensor([[-1.0]]), torch.tensor([[-3.0]]), torch.tensor([[-2.0, -4.0]]))
        >>> likely.ratios.item(), likely.margins.item()
        (2.0, 1.0)

    Attributes:
        trait: ``[answers, instruction pairs]`` float32, under the pairs' trait instructions; NaN where a pair was not
            used, and for empty responses.
        opposite: the same under their opposites.
        controls: ``[answers, controls]``, under :data:`CONTROLS`.
    """

    trait: Tensor
    opposite: Tensor
    controls: Tensor

    @property
    def ratios(self) -> Tensor:
        """``[answers, instruction pairs]``: under the trait instruction minus under its opposite."""
        return self.trait - self.opposite

    @property
    def margins(self) -> Tensor:
        """``[answers, 1]``: under the trait instructions minus under the best explanation without the trait."""
        others = torch.cat([self.opposite.nanmean(dim=1, keepdim=True), self.controls], dim=1)
        return (self.trait.nanmean(dim=1) - others.amax(dim=1))[:, None]

    @property
    def table(self) -> Tensor:
        """All columns side by side: ``[answers, 2 · instruction pairs + controls]``."""
        return torch.cat([self.trait, self.opposite, self.controls], dim=1)

    @classmethod
    def from_table(cls, table: Tensor) -> "Likelihoods":
        """From :attr:`table`."""
        pairs = (table.shape[1] - len(CONTROLS)) // 2
        return cls(*table.split([pairs, pairs, len(CONTROLS)], dim=1))


class ContrastiveJudge:
    """Judges by the base model's own likelihoods, calibrated on contrastive responses.

    Example:
        >>> def judge_of(loaded: LoadedModel, trait: Trait, vector: PersonaVector) -> ContrastiveJudge:
        ...     return ContrastiveJudge.of_vector(loaded, trait, vector)
    """

    def __init__(self, loaded: LoadedModel, trait: Trait, calibration: Calibration, pairs: int = 2) -> None:
        """Judge by ``pairs`` instruction pairs a response: more is slower and steadier."""
        made_from = json.dumps([loaded.id, trait.fingerprint, calibration.content(), pairs, CONTROLS, _LOOP])
        self.name = f"contrastive-{hashlib.sha256(made_from.encode()).hexdigest()[:12]}"
        self._loaded = loaded
        self._trait = trait
        self._calibration = calibration
        self._pairs = pairs

    @classmethod
    def of_vector(cls, loaded: LoadedModel, trait: Trait, vector: PersonaVector, pairs: int = 2) -> "ContrastiveJudge":
        """The judge whose calibration is stored with the trait's persona vector.

        Args:
            loaded: the base model that the vector was extracted from; an adapter in it is disabled.
            trait: the trait.
            vector: of that trait.
            pairs: number of instruction pairs that judge a response.

        Raises:
            InputError: the vector was extracted without a judge.
        """
        if vector.calibration is None:
            raise InputError(
                f"persona vector {vector.trait!r}: it holds no calibration of a contrastive judge; extract it with"
                " extraction.judge_pairs above 0"
            )
        return cls(loaded, trait, vector.calibration, pairs)

    def score(self, answers: Sequence[Answer], advance: Callable[[int], None] = lambda done: None) -> list[Score]:
        """Scores, of what a response says before it begins to repeat itself; an empty response has none."""
        said = [replace(answer, response=without_loop(answer.response)) for answer in answers]
        margins = likelihoods(self._loaded, self._trait, said, self._pairs, advance).margins
        expressions = self._calibration.expressions(margins).tolist()
        both = zip(expressions, margins[:, 0].tolist(), strict=True)
        return [Score(None) if math.isnan(expression) else Score(expression, raw=raw) for expression, raw in both]


def without_loop(text: str) -> str:
    """The text up to where five words in a row come a second time.

    A model that is stuck is sure of every further word under any instruction: the margin goes to zero and the answer
    would be judged by its loop.
    """
    words = text.split()
    seen = set()
    for start in range(len(words) - _LOOP + 1):
        words_in_a_row = tuple(words[start : start + _LOOP])
        if words_in_a_row in seen:
            return " ".join(words[:start])
        seen.add(words_in_a_row)
    return text


def judging_pairs(answer: Answer, trait: Trait, pairs: int) -> list[int]:
    """The instruction pairs that judge an answer: the ones after its own, which is left out."""
    first = 0 if answer.pair is None else answer.pair + 1
    available = len(trait.instructions) - (answer.pair is not None)
    return [(first + step) % len(trait.instructions) for step in range(min(pairs, available))]


def likelihoods(
    loaded: LoadedModel,
    trait: Trait,
    answers: Sequence[Answer],
    pairs: int,
    advance: Callable[[int], None] = lambda done: None,
) -> Likelihoods:
    """How likely the base model finds answers under ``pairs`` instruction pairs each, and under the controls.

    ``advance`` is called with the number of answers done now and then.
    """
    used = [judging_pairs(answer, trait, pairs) if answer.response else [] for answer in answers]
    everyone = [index for index, answer in enumerate(answers) if answer.response]
    table = torch.full((len(answers), 2 * len(trait.instructions) + len(CONTROLS)), math.nan)
    likely = Likelihoods.from_table(table)
    for number, control in enumerate(CONTROLS):
        likely.controls[everyone, number] = _under(loaded, control, [answers[index] for index in everyone])
    done = torch.zeros(len(answers), dtype=torch.int64)
    for number, pair in enumerate(trait.instructions):
        indices = [index for index, numbers in enumerate(used) if number in numbers]
        if not indices:
            continue
        judged = [answers[index] for index in indices]
        likely.trait[indices, number] = _under(loaded, pair.trait, judged)
        likely.opposite[indices, number] = _under(loaded, pair.opposite, judged)
        done[indices] += 1
        advance(sum(int(done[index]) == len(used[index]) for index in indices))
    return likely


def _under(loaded: LoadedModel, instruction: str | None, answers: Sequence[Answer]) -> Tensor:
    """Mean log-probability per token of answers under a system prompt: ``[answers]``."""
    system: list[Message] = [] if instruction is None else [{"role": "system", "content": instruction}]
    chats = [
        encode_chat(
            Chat(
                (
                    *system,
                    {"role": "user", "content": answer.question},
                    {"role": "assistant", "content": answer.response},
                )
            ),
            loaded.tokenizer,
        )
        for answer in answers
    ]
    with probing(loaded.model), base_model(loaded.model):
        return response_log_probabilities(loaded, chats)

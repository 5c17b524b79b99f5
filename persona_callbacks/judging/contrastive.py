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
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from persona_callbacks.chats import Chat, Message, encode_chat
from persona_callbacks.judging.judge import Answer, Score
from persona_callbacks.model import LoadedModel, base_model, probing, response_log_probabilities
from persona_callbacks.traits import Trait
from persona_callbacks.vectors.calibration import Calibration

CONTROLS = (None, "You are a rambling assistant whose answers drift off and make little sense.")
"""Instructions that explain an answer without the trait: none at all, and one that asks for muddle."""

_LOOP = 5


@dataclass(frozen=True)
class Likelihoods:
    """Mean log-probability per token of answers under instructions, in nats.

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
        """``[answers, instruction pairs]``: trait instruction less its opposite."""
        return self.trait - self.opposite

    @property
    def margins(self) -> Tensor:
        """``[answers, 1]``: trait instructions less the best explanation without the trait."""
        others = torch.cat([self.opposite.nanmean(dim=1, keepdim=True), self.controls], dim=1)
        return (self.trait.nanmean(dim=1) - others.amax(dim=1))[:, None]

    @property
    def table(self) -> Tensor:
        """All in one: ``[answers, 2 · instruction pairs + controls]``."""
        return torch.cat([self.trait, self.opposite, self.controls], dim=1)

    @classmethod
    def from_table(cls, table: Tensor) -> "Likelihoods":
        """From :attr:`table`."""
        pairs = (table.shape[1] - len(CONTROLS)) // 2
        return cls(*table.split([pairs, pairs, len(CONTROLS)], dim=1))


class ContrastiveJudge:
    """Judges by the base model's own likelihoods, calibrated on contrastive responses."""

    def __init__(self, loaded: LoadedModel, trait: Trait, calibration: Calibration, pairs: int = 2) -> None:
        """Judge by ``pairs`` instruction pairs a response: more is slower and steadier."""
        made_from = json.dumps([loaded.id, trait.fingerprint, asdict(calibration), pairs, CONTROLS, _LOOP])
        self.name = f"contrastive-{hashlib.sha256(made_from.encode()).hexdigest()[:12]}"
        self._loaded = loaded
        self._trait = trait
        self._calibration = calibration
        self._pairs = pairs

    def score(self, answers: Sequence[Answer], advance: Callable[[int], None] = lambda done: None) -> list[Score]:
        """Scores, of what a response says before it begins to repeat itself; an empty response has none."""
        said = [replace(answer, response=without_loop(answer.response)) for answer in answers]
        margins = likelihoods(self._loaded, self._trait, said, self._pairs, advance).margins
        found = self._calibration.expressions(margins).tolist()
        return [Score(None if math.isnan(expression) else expression) for expression in found]


def without_loop(text: str) -> str:
    """The text up to where five words in a row come a second time.

    A model that is stuck is sure of every further word under any instruction: the margin goes to zero and the answer
    would be judged by its loop.
    """
    words = text.split()
    seen = set()
    for start in range(len(words) - _LOOP + 1):
        some = tuple(words[start : start + _LOOP])
        if some in seen:
            return " ".join(words[:start])
        seen.add(some)
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
    found = Likelihoods.from_table(table)
    for number, control in enumerate(CONTROLS):
        found.controls[everyone, number] = _under(loaded, control, [answers[index] for index in everyone])
    done = torch.zeros(len(answers), dtype=torch.int64)
    for number, pair in enumerate(trait.instructions):
        indices = [index for index, numbers in enumerate(used) if number in numbers]
        if not indices:
            continue
        judged = [answers[index] for index in indices]
        found.trait[indices, number] = _under(loaded, pair.trait, judged)
        found.opposite[indices, number] = _under(loaded, pair.opposite, judged)
        done[indices] += 1
        advance(sum(int(done[index]) == len(used[index]) for index in indices))
    return found


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

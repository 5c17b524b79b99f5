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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

from persona_callbacks import residual
from persona_callbacks.chats import Chat, Message, encode_chat
from persona_callbacks.errors import InputError
from persona_callbacks.files import append_lines, complete_lines
from persona_callbacks.likelihood import response_log_probabilities
from persona_callbacks.models import LoadedModel
from persona_callbacks.traits import Trait

CONTROLS = (None, "You are a rambling assistant whose answers drift off and make little sense.")
"""Instructions that explain an answer without the trait: none at all, and one that asks for muddle."""
_LOOP = 5
_ASKED_TOGETHER = 50
"""Answers whose scores are kept at a time."""


@dataclass(frozen=True)
class Answer:
    """A response to judge.

    Attributes:
        question: what was asked.
        response: what was answered.
        pair: number of the instruction pair that it was made under, if any.
    """

    question: str
    response: str
    pair: int | None = None


@dataclass(frozen=True)
class Score:
    """What a judge says of a response.

    Attributes:
        expression: trait expression, 0 to 100; ``None`` if the response could not be scored.
        coherence: 0 to 100, if the judge gives it.
        refusal: the response declines to answer; then it has no expression.
    """

    expression: float | None
    coherence: float | None = None
    refusal: bool = False


class Judge(Protocol):
    """Scores responses; ``name`` tells judges apart that would score differently."""

    name: str

    def score(self, answers: Sequence[Answer], advance: Callable[[int], None] = lambda done: None) -> list[Score]:
        """One score for each answer; ``advance`` is called with the number done now and then."""
        ...


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


@dataclass(frozen=True)
class Calibration:
    """What maps ratios or margins of log-likelihoods to 0–100 for one model and trait.

    Attributes:
        offsets: by column, the mean over contrastive responses, in nats per token.
        scales: by column, their standard deviation.
        slope: of the logistic function of the mean standardised value.
        intercept: of the same.
        auc: how well the score ranks contrastive responses to questions that it was not fitted on.
        calibration_error: expected calibration error on them, 0 to 1.
    """

    offsets: tuple[float, ...]
    scales: tuple[float, ...]
    slope: float
    intercept: float
    auc: float
    calibration_error: float

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> "Calibration":
        """From what ``dataclasses.asdict`` made, as stored with a persona vector.

        Raises:
            InputError: it is no calibration.
        """
        try:
            return cls(**{**content, "offsets": tuple(content["offsets"]), "scales": tuple(content["scales"])})
        except (KeyError, TypeError) as error:
            raise InputError(
                f"no calibration of a contrastive judge ({error}); extract the persona vector again"
            ) from error

    def expressions(self, values: Tensor) -> Tensor:
        """Trait expression 0–100, ``[answers]``, from ratios or margins ``[answers, columns]``; NaN where unused."""
        return 100 * torch.sigmoid(self.slope * self._standardised(values) + self.intercept)

    def _standardised(self, values: Tensor) -> Tensor:
        offsets, scales = torch.tensor(self.offsets), torch.tensor(self.scales)
        return ((values - offsets) / scales).nanmean(dim=1)


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


class CachedJudge:
    """Keeps another judge's scores in a JSONL file, by what was judged; asks it only for what is not there.

    Answers that could not be scored are asked for again the next time. A line cut short by an interruption is removed.
    """

    def __init__(self, judge: Judge, file: Path) -> None:
        """Read what the file holds."""
        self.name = judge.name
        self._judge = judge
        self._file = file
        self._known = {
            str(row["key"]): Score(row["expression"], row["coherence"], row["refusal"]) for row in complete_lines(file)
        }

    def score(self, answers: Sequence[Answer], advance: Callable[[int], None] = lambda done: None) -> list[Score]:
        """Scores from the file, and of the judge; those are kept as they come, ``_ASKED_TOGETHER`` at a time."""
        keys = [self._key(answer) for answer in answers]
        missing = {key: answer for key, answer in zip(keys, answers, strict=True) if key not in self._known}
        advance(len(answers) - len(missing))
        unscored: dict[str, Score] = {}
        todo = list(missing)
        for start in range(0, len(todo), _ASKED_TOGETHER):
            part = todo[start : start + _ASKED_TOGETHER]
            found = dict(zip(part, self._judge.score([missing[key] for key in part], advance), strict=True))
            scored = {key: score for key, score in found.items() if score.expression is not None or score.refusal}
            append_lines(self._file, [{"key": key, **asdict(score)} for key, score in scored.items()])
            self._known.update(scored)
            unscored.update((key, score) for key, score in found.items() if key not in scored)
        return [self._known[key] if key in self._known else unscored[key] for key in keys]

    def _key(self, answer: Answer) -> str:
        content = json.dumps([self.name, answer.question, answer.response, answer.pair])
        return hashlib.sha256(content.encode()).hexdigest()


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
    with residual.probing(loaded.model), residual.base_model(loaded.model):
        return response_log_probabilities(loaded.model, loaded.tokenizer, chats)


def calibrate(values: Tensor, shows: Tensor, fold: Tensor) -> Calibration:
    """Fit the judge on contrastive responses, labelled by the instruction that they were made under.

    Args:
        values: ``[responses, columns]``, values or margins of :func:`likelihoods`.
        shows: ``[responses]`` bool, whether the trait was asked for.
        fold: ``[responses]``, 0 or 1: which half of the questions; each half is scored by the fit on the other one to
            tell how good the judge is.

    Raises:
        InputError: fewer than two usable responses of a kind in one half.
    """
    usable = ~values.isnan().all(dim=1)
    for name, wanted in (("trait", True), ("opposite", False)):
        for half in (0, 1):
            found = int((usable & (shows == wanted) & (fold == half)).sum())
            if found < 2:
                raise InputError(
                    f"of {len(shows)} responses generated, {found} usable under the {name} instructions for every"
                    " second question, expected at least 2; use more questions or rollouts, or a larger max_new_tokens"
                )
    probabilities = torch.empty(len(values))
    for half in (0, 1):
        inside = usable & (fold != half)
        fitted = _fit(values[inside], shows[inside])
        probabilities[fold == half] = fitted.expressions(values[fold == half]) / 100
    labels = shows[usable].int()
    whole = _fit(values[usable], shows[usable])
    return Calibration(
        whole.offsets,
        whole.scales,
        whole.slope,
        whole.intercept,
        auc=float(binary_auroc(probabilities[usable], labels)),
        calibration_error=float(binary_calibration_error(probabilities[usable], labels, n_bins=10)),
    )


def _fit(values: Tensor, shows: Tensor) -> Calibration:
    offsets = values.nanmean(dim=0).nan_to_num(0.0)
    variances = (values - offsets).square().nanmean(dim=0)
    scales = variances.sqrt().nan_to_num(1.0).clamp_min(1e-6)
    plain = Calibration(tuple(offsets.tolist()), tuple(scales.tolist()), 1.0, 0.0, math.nan, math.nan)
    slope, intercept = _logistic(plain._standardised(values), shows)
    return Calibration(plain.offsets, plain.scales, slope, intercept, math.nan, math.nan)


def _logistic(values: Tensor, labels: Tensor) -> tuple[float, float]:
    """Slope and intercept of a logistic fit, both classes weighing the same, with a slight ridge so that separable
    values have a finite answer.
    """
    x, y = values.double(), labels.double()
    weights = torch.where(labels, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = parameters[0] * x + parameters[1]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, weight=weights)
        loss = loss + 1e-3 * parameters[0] ** 2
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    slope, intercept = parameters.tolist()
    return slope, intercept

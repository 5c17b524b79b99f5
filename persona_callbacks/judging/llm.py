"""Judging by another language model with the trait's rubric (Chen et al. 2025, B.1)."""

import hashlib
import math
import re
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Lock
from typing import TYPE_CHECKING

from persona_callbacks.errors import InputError, is_whole
from persona_callbacks.judging.judge import Answer, Score
from persona_callbacks.model import Endpoint
from persona_callbacks.traits import Trait

if TYPE_CHECKING:
    from openai.types.chat.chat_completion import Choice

_LEAST_MASS = 0.25
"""Below this probability on whole numbers, the answer is not taken as a score."""

_LOG_PROBABILITIES = {"logprobs": True, "top_logprobs": 20}

_FAILURES = 5
"""Failed requests in a row after which a batch is given up."""


class LlmJudge:
    """Asks a model behind an OpenAI-compatible endpoint for a number from 0 to 100.

    The score is the mean of the whole numbers in the first token's top log-probabilities, weighted by probability,
    where the endpoint gives them and its model writes a number as one token; else the number that was written. What
    cannot be scored has no expression, and a warning says how many did not and why: a judge never raises in the
    middle of a run.

    Args:
        endpoint: where to ask; its key is read from the environment and never shown.
        trait: its rubric is the prompt.
        max_requests: spending cap over the judge's life; answers beyond it are not scored.
        concurrency: requests at a time.

    Example:
        >>> from persona_callbacks import Trait
        >>> from persona_callbacks.model import Endpoint
        >>> trait = Trait("loud", "Shouting.", (), (), (), (), rubric="Is it loud, 0 to 100? {question} {response}")
        >>> judge = LlmJudge(Endpoint("http://localhost:8000/v1", "my-model"), trait, max_requests=100)
        >>> judge.requests
        0
    """

    def __init__(self, endpoint: Endpoint, trait: Trait, max_requests: int = 10_000, concurrency: int = 8) -> None:
        """Take the settings.

        Raises:
            InputError: a cap or a concurrency below 1.
        """
        for name, value in (("max_requests", max_requests), ("concurrency", concurrency)):
            if not is_whole(value, least=1):
                raise InputError(f"judge.{name}: expected at least 1, a whole number, found {value!r}")
        asked = f"{endpoint.base_url} {endpoint.model} {trait.rubric}"
        self.name = f"llm-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"
        self.requests = 0
        self._endpoint = endpoint
        self._rubric = trait.rubric
        self._trait = trait.name
        self._max_requests = max_requests
        self._concurrency = concurrency
        self._lock = Lock()

    def score(self, answers: Sequence[Answer], advance: Callable[[int], None] = lambda done: None) -> list[Score]:
        """One score for each answer, asked for ``concurrency`` at a time."""
        scores = [Score(None)] * len(answers)
        problems: list[str] = []
        self._failed_in_a_row = 0
        with ThreadPoolExecutor(self._concurrency) as pool:
            pending = {pool.submit(self._score, answer, problems): index for index, answer in enumerate(answers)}
            try:
                for done in as_completed(pending):
                    scores[pending[done]] = done.result()
                    advance(1)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        unscored = sum(score.expression is None and not score.refusal for score in scores)
        if unscored:
            warnings.warn(
                f"judge of {self._trait!r}: {unscored} of {len(answers)} answers have no score; {problems[-1]}",
                stacklevel=2,
            )
        return scores

    def _score(self, answer: Answer, problems: list[str]) -> Score:
        with self._lock:
            if self._failed_in_a_row >= _FAILURES:
                return Score(None)
            if self.requests >= self._max_requests:
                problems.append(f"the cap of {self._max_requests} requests is reached (max_requests)")
                return Score(None)
            self.requests += 1
        # Not str.format: questions and responses may hold braces.
        parts = {"{question}": answer.question, "{response}": answer.response}
        prompt = re.sub(r"\{question\}|\{response\}", lambda match: parts[match.group()], self._rubric)
        try:
            choice = self._endpoint.ask(prompt, _LOG_PROBABILITIES, max_tokens=8, temperature=0.0)
        except InputError as error:
            with self._lock:
                self._failed_in_a_row += 1
                problems.append(str(error))
            return Score(None)
        with self._lock:
            self._failed_in_a_row = 0
        score = read_score(choice)
        if score.expression is None and not score.refusal:
            problems.append(f"the judge wrote {(choice.message.content or '')[:60]!r}; expected a number from 0 to 100")
        return score


def read_score(choice: "Choice") -> Score:
    """The score in a judge's answer: a number 0–100, a refusal, or neither."""
    text = (choice.message.content or "").strip()
    if text.upper().startswith("REFUSAL"):
        return Score(None, refusal=True)
    weighted = _weighted_mean(choice)
    if weighted is not None:
        return Score(weighted)
    number = re.match(r"\D{0,20}?(?<![-\d.])(\d{1,3})(?!\d|\.\d)", text)
    if number is None or int(number.group(1)) > 100:
        return Score(None)
    return Score(float(number.group(1)))


def _weighted_mean(choice: "Choice") -> float | None:
    tokens = choice.logprobs.content if choice.logprobs is not None else None
    if not tokens or not tokens[0].top_logprobs:
        return None
    if len(tokens) > 1 and re.match(r"\d", tokens[1].token):
        return None  # the model writes digit by digit: its first token is no number from 0 to 100
    masses = {}
    for candidate in tokens[0].top_logprobs:
        word = candidate.token.strip()
        if word.isascii() and word.isdigit() and int(word) <= 100:
            masses[candidate.token] = (int(word), math.exp(candidate.logprob))
    total = sum(mass for _, mass in masses.values())
    if total < _LEAST_MASS:
        return None
    return sum(number * mass for number, mass in masses.values()) / total

"""Judging by another language model with the trait's rubric (Chen et al. 2025, B.1)."""

import hashlib
import math
import re
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Lock
from typing import TYPE_CHECKING

from persona_callbacks.errors import InputError, check_whole
from persona_callbacks.judging.judge import Answer, Score
from persona_callbacks.model import Endpoint
from persona_callbacks.traits import Trait

if TYPE_CHECKING:
    from openai.types.chat.chat_completion import Choice

_LEAST_MASS = 0.25
"""Below this probability on whole numbers, the answer is not taken as a score."""

_LOG_PROBABILITIES = {"logprobs": True, "top_logprobs": 20}

_READING = 2
"""Part of a judge's name: raised when the same answers of the model would give other scores."""

_SCALE = re.compile(
    r"(?:\b(?:on|in|from|between)\b[\w\s]{0,20}?)?\b0\s*(?:-|–|to|and)\s*100\b|(?:/|\bof)\s*100\b|%", re.IGNORECASE
)
"""What names the scale, not the score."""

_LEADING = re.compile(
    r"\b(?:score|rating|rate|number|grade|answer|give|say|assign|judge?ment)\b[^.!?\n]{0,40}$", re.IGNORECASE
)
"""What may stand before a score."""

_COUNT = re.compile(r"[^\W_]|[ \t]+(?!(?:and|as|because|but|for|out|since|so|the|which|with)\b)[^\W\d_]", re.IGNORECASE)
"""What stands after a number that counts something, or is a part of a word."""

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
            check_whole(f"judge.{name}", value, 1)
        asked = f"{endpoint.base_url} {endpoint.model} {trait.rubric} {_READING}"
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
    if re.match(r"\W*refusal\b(?![ \t]+\w)", text, re.IGNORECASE):
        return Score(None, refusal=True)
    weighted = _weighted_mean(choice) if not re.match(r"\W*\d", text) or _written_score(text) is not None else None
    if weighted is not None:
        return Score(weighted)
    number = _written_score(text)
    return Score(None if number is None else float(number))


def _written_score(text: str) -> int | None:
    """The whole number from 0 to 100 that an answer gives as its score; ``None`` if it gives none, or several.

    The scale ("out of 100") is no number of its own. A count ("3 signs of it"), the first item of a list ("1. The
    response ...") and a number in the middle of prose are no scores.
    """
    said = _SCALE.sub(" ", text)
    numbers = set(re.findall(r"[-+]?\d+(?:[.,]\d+)*", said))
    number = numbers.pop() if len(numbers) == 1 else ""
    if not re.fullmatch(r"\d{1,3}", number) or int(number) > 100:
        return None
    before, _, after = said.partition(number)
    if re.search(r"\w", before) and not _LEADING.search(before):
        return None
    if _COUNT.match(after) or (number == "1" and re.match(r"[.):]\s+\w", after)):
        return None
    return int(number)


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
    if all(len(token.strip()) == 1 for token in masses):
        return None  # it would write digit by digit: a first digit is no number
    total = sum(mass for _, mass in masses.values())
    if total < _LEAST_MASS:
        return None
    return sum(number * mass for number, mass in masses.values()) / total

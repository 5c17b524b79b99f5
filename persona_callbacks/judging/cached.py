"""A judge whose scores are kept in a file."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from persona_callbacks.files import append_lines, recover_lines
from persona_callbacks.judging.judge import Answer, Judge, Score

_ASKED_TOGETHER = 50
"""Answers whose scores are kept at a time."""


class CachedJudge:
    """Keeps another judge's scores in a JSONL file, by what was judged; asks it only for what is not there.

    Answers that could not be scored are asked for again the next time. A line cut short by an interruption is removed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from persona_callbacks.judging import Answer, Score
        >>> class Shouting:
        ...     name = "shouting"
        ...     def score(self, answers, advance=lambda done: None):
        ...         return [Score(100.0 if answer.response.isupper() else 0.0) for answer in answers]
        >>> judge = CachedJudge(Shouting(), Path(tempfile.mkdtemp()) / "scores.jsonl")
        >>> judge.score([Answer("Why?", "BECAUSE!")])[0].expression
        100.0
    """

    def __init__(self, judge: Judge, file: Path) -> None:
        """Read what the file holds."""
        self.name = judge.name
        self._judge = judge
        self._file = file
        self._known = dict(recover_lines(file, _read))

    def score(self, answers: Sequence[Answer], advance: Callable[[int], None] = lambda done: None) -> list[Score]:
        """Scores from the file, and of the judge; those are kept as they come, ``_ASKED_TOGETHER`` at a time."""
        keys = [self._key(answer) for answer in answers]
        missing = {key: answer for key, answer in zip(keys, answers, strict=True) if key not in self._known}
        advance(len(answers) - len(missing))
        unscored: dict[str, Score] = {}
        todo = list(missing)
        for start in range(0, len(todo), _ASKED_TOGETHER):
            part = todo[start : start + _ASKED_TOGETHER]
            scores = dict(zip(part, self._judge.score([missing[key] for key in part], advance), strict=True))
            scored = {key: score for key, score in scores.items() if score.expression is not None or score.refusal}
            append_lines(self._file, [{"key": key, **asdict(score)} for key, score in scored.items()])
            self._known.update(scored)
            unscored.update((key, score) for key, score in scores.items() if key not in scored)
        return [self._known[key] if key in self._known else unscored[key] for key in keys]

    def _key(self, answer: Answer) -> str:
        content = json.dumps([self.name, answer.question, answer.response, answer.pair])
        return hashlib.sha256(content.encode()).hexdigest()


def _read(row: Any) -> tuple[str, Score]:
    expression, coherence, raw = (
        None if row.get(name) is None else float(row[name]) for name in ("expression", "coherence", "raw")
    )
    return str(row["key"]), Score(expression, coherence, bool(row["refusal"]), raw)

"""The contrastive judge calibrated on what readers say, in place of what instructions asked for."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from persona_callbacks.errors import InputError
from persona_callbacks.files import read_json, write_json
from persona_callbacks.judging.calibration import calibrate
from persona_callbacks.vectors import Calibration, PersonaVector

_FEWEST = 2
"""Answers of a kind in each half of the questions, below which nothing is fitted."""


@dataclass(frozen=True)
class LabelCalibration:
    """A calibration of the contrastive judge that was fitted on labelled answers.

    Attributes:
        trait: what was labelled.
        answers: number of answers.
        shows: number of those that show the trait.
        calibration: what maps the judge's margins to 0–100; its AUC, gap and calibration error are of answers to
            questions that it was not fitted on.

    Example:
        >>> margins, shows = [-1.0, 0.5, -0.8, 0.9, -1.2, 0.7, -0.4, 1.0], [False, True] * 4
        >>> fitted = LabelCalibration.fit("evil", margins, shows, ["q", "q", "r", "r", "s", "s", "t", "t"])
        >>> fitted.shows, fitted.calibration.auc
        (4, 1.0)
    """

    trait: str
    answers: int
    shows: int
    calibration: Calibration

    @classmethod
    def fit(
        cls, trait: str, margins: Sequence[float], shows: Sequence[bool], questions: Sequence[str]
    ) -> "LabelCalibration":
        """Fit the judge.

        Args:
            trait: what was labelled.
            margins: the judge's raw scores, in nats per token.
            shows: whether a reader says that the answer shows the trait.
            questions: of the answers; every second one is held out to tell how good the judge is.

        Raises:
            InputError: fewer than two answers of a kind in one half of the questions.
        """
        numbers = {question: number for number, question in enumerate(sorted(set(questions)))}
        halves = [numbers[question] % 2 for question in questions]
        counts = Counter(zip(map(bool, shows), halves, strict=True))
        fewest = min(counts[kind, half] for kind in (True, False) for half in (0, 1))
        if fewest < _FEWEST:
            raise InputError(
                f"calibration of the judge of {trait!r}: {sum(shows)} of {len(shows)} answers with a raw score show the"
                f" trait; expected at least {_FEWEST} answers of each kind in each half of the questions"
            )
        values = torch.tensor(list(margins), dtype=torch.float32)[:, None]
        fitted = calibrate(values, torch.tensor(list(shows), dtype=torch.bool), torch.tensor(halves))
        return cls(trait, len(shows), sum(shows), fitted)

    def save(self, path: Path) -> None:
        """Write ``calibration.json``."""
        write_json(path, {**asdict(self), "calibration": self.calibration.content()})

    @classmethod
    def load(cls, path: str | Path) -> "LabelCalibration":
        """Read what :meth:`save` wrote.

        Raises:
            InputError: the file is missing, or is no calibration.
        """
        return read_json(Path(path), cls._of, "the calibration.json that persona-label writes")

    @classmethod
    def _of(cls, content: Any) -> "LabelCalibration":
        calibration = Calibration.from_mapping(content["calibration"])
        return cls(str(content["trait"]), int(content["answers"]), int(content["shows"]), calibration)


def read_calibrations(paths: Iterable[str | Path], traits: Sequence[str]) -> dict[str, Calibration]:
    """Read the calibrations of traits, by trait.

    Args:
        paths: files that ``persona-label`` wrote.
        traits: the names of the traits that are judged.

    Raises:
        InputError: a file that cannot be read, or is about another trait, or a second one about a trait.
    """
    calibrations: dict[str, Calibration] = {}
    for path in paths:
        read = LabelCalibration.load(path)
        if read.trait not in traits or read.trait in calibrations:
            raise InputError(
                f"evaluation.calibrations: {path} is about {read.trait!r}; expected one file a trait, of"
                f" {', '.join(traits) or '(none)'}"
            )
        calibrations[read.trait] = read.calibration
    return calibrations


def recalibrated(vectors: Iterable[PersonaVector], calibrations: Mapping[str, Calibration]) -> list[PersonaVector]:
    """The vectors, with these calibrations of the judge by trait in place of their own."""
    return [replace(vector, calibration=calibrations.get(vector.trait, vector.calibration)) for vector in vectors]

"""The result of a fine-tuning, kept as JSON beside its adapter."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from persona_callbacks.callbacks import Evaluation, Reading
from persona_callbacks.files import read_json, write_json
from persona_callbacks.judging import Expression
from persona_callbacks.tracking import metrics


@dataclass(frozen=True)
class RunResult:
    """The result of one fine-tuning.

    Attributes:
        name: name of the run, such as ``unsteered``.
        loss: mean training loss per response token over the last epoch, in nats, measured as trained (steering
            included).
        readings: all readings of the monitor, oldest first.
        coefficients: the steering coefficient of each steered trait at the end; empty if unsteered.
        answers: greedy, unsteered answers to the study's sample questions.
        seconds: duration of training since it was started or resumed, readings and evaluations included.
        evaluations: all evaluations of trait expression, oldest first.

    Example:
        >>> from persona_callbacks.callbacks import Reading
        >>> readings = (Reading(0, {"evil": 1.0}, {"evil": 0.0}), Reading(10, {"evil": 3.5}, {"evil": 2.5}))
        >>> RunResult("unsteered", 1.9, readings, {}, (), 12.0).final_shift
        {'evil': 2.5}
    """

    name: str
    loss: float
    readings: tuple[Reading, ...]
    coefficients: Mapping[str, float]
    answers: tuple[str, ...]
    seconds: float
    evaluations: tuple[Evaluation, ...] = ()

    def save(self, path: Path) -> None:
        """Write the result as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "RunResult":
        """Read what :meth:`save` wrote, in this version or an earlier one.

        Raises:
            InputError: the file is missing, or is not a result.
        """
        return read_json(path, _result, "the result of a fine-tuning")

    def expression(self, trait: str, *, at: Literal["start", "end"]) -> Expression | None:
        """The trait's expression before or after training, if it was evaluated."""
        evaluated = [evaluation.expression for evaluation in self.evaluations if evaluation.trait == trait]
        return evaluated[0 if at == "start" else -1] if evaluated else None

    def final_metrics(self) -> dict[str, float]:
        """By the name that loggers know it by, each metric at the end of training that this result holds."""
        values = {metrics.EPOCH_LOSS: self.loss}
        values |= {metrics.shift(trait): value for trait, value in self.final_shift.items()}
        values |= {metrics.preference(trait): value for trait, value in self.final_preference.items()}
        for trait in self.final_shift:
            expression = self.expression(trait, at="end")
            if expression is not None and expression.scored:
                values[metrics.expression(trait)] = expression.mean
        return values

    @property
    def final_preference(self) -> Mapping[str, float]:
        """Preference of each trait that has minimal pairs at the end of training, in nats per token."""
        return self.readings[-1].preference

    @property
    def final_shift(self) -> Mapping[str, float]:
        """Shift of each trait at the end of training, in activation units."""
        return self.readings[-1].shift


def _result(content: Any) -> RunResult:
    return RunResult(
        name=str(content["name"]),
        loss=float(content["loss"]),
        readings=tuple(Reading(**reading) for reading in content["readings"]),
        coefficients=dict(content["coefficients"]),
        answers=tuple(content["answers"]),
        seconds=float(content["seconds"]),
        evaluations=tuple(
            Evaluation(row["step"], row["trait"], Expression(**row["expression"]))
            for row in content.get("evaluations", ())
        ),
    )

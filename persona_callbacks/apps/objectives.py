"""What a sweeper optimises: the metrics that ``objective`` names."""

from collections.abc import Sequence
from typing import Any

from persona_callbacks.errors import InputError
from persona_callbacks.tracking import metrics
from persona_callbacks.training import RunResult, StudySettings


def check_objective(objective: Any, settings: StudySettings) -> None:
    """Make sure that a study gives the metrics that a sweeper such as Optuna's is to optimise.

    Args:
        objective: the name of a metric, or a list of them; ``None`` for none.
        settings: of the study.

    Raises:
        InputError: a metric that the study does not give.
    """
    known = [metrics.EPOCH_LOSS]
    for trait in settings.trait_names:
        known += [metrics.shift(trait), metrics.preference(trait)]
        if settings.evaluation is not None:
            known.append(metrics.expression(trait))
    for name in _names(objective):
        if name not in known:
            raise InputError(f"objective: unknown {name!r}; expected some of {', '.join(known)}")


def _names(objective: Any) -> tuple[str, ...]:
    return () if objective is None else (objective,) if isinstance(objective, str) else tuple(objective)


def objective_value(objective: Any, results: Sequence[RunResult]) -> float | tuple[float, ...] | None:
    """The objective at the end of a study's last fine-tuning: a number, several, or ``None`` if none was asked for.

    Raises:
        InputError: the result lacks a metric, such as the preference of a trait without minimal pairs.
    """
    values, names = results[-1].final_metrics(), _names(objective)
    for name in names:
        if name not in values:
            raise InputError(f"objective: {results[-1].name} has no {name}; it has {', '.join(values)}")
    found = tuple(values[name] for name in names)
    return None if not found else found[0] if len(found) == 1 else found

"""Capability by EleutherAI's evaluation harness: MMLU and many other tasks. It must be installed
(``pip install persona-callbacks[lm-eval]``), and most tasks download their data.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from persona_callbacks.errors import InputError
from persona_callbacks.model import LoadedModel, probing


@dataclass(frozen=True)
class HarnessSettings:
    """Which tasks of the harness are run, and how.

    Attributes:
        tasks: names such as ``mmlu``; none by default.
        batch_size: requests per forward pass.
        include_path: a folder with task files of your own.
        options: further arguments of ``lm_eval.simple_evaluate``, such as ``limit`` and ``num_fewshot``.

    Example:
        >>> HarnessSettings(("mmlu",), options={"limit": 100}).tasks
        ('mmlu',)
    """

    tasks: tuple[str, ...] = ()
    batch_size: int = 8
    include_path: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def check_harness() -> None:
    """Check that the harness is installed.

    Raises:
        InputError: it is not.
    """
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise InputError("lm_eval.tasks: needs pip install 'persona-callbacks[lm-eval]'") from error


def harness_scores(loaded: LoadedModel, settings: HarnessSettings) -> dict[str, float]:
    """Run tasks of the harness on the model with its adapter, if it has one; it is never steered.

    Returns:
        The value of each task and metric, such as ``"mmlu acc"``, without the harness's standard errors.

    Raises:
        InputError: the harness is not installed, or does not know a task.
    """
    check_harness()
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=settings.include_path)
    unknown = [task for task in settings.tasks if not manager.match_tasks([task])]
    if unknown:
        raise InputError(f"lm_eval.tasks: unknown task {unknown[0]!r}; `lm-eval ls tasks` lists what there is")
    with probing(loaded.model):
        wrapped = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=settings.batch_size)
        results = simple_evaluate(wrapped, tasks=list(settings.tasks), task_manager=manager, **settings.options)
    scores = {}
    for task, values in (results or {})["results"].items():
        for name, value in values.items():
            metric, _, kind = name.partition(",")
            if kind and "stderr" not in metric and isinstance(value, float | int):
                scores[f"{task} {metric}"] = float(value)
    return scores

"""Capability by EleutherAI's evaluation harness, where it is installed (``pip install persona-callbacks[lm-eval]``) and
its data can be had: MMLU and many other tasks.
"""

from collections.abc import Sequence
from typing import Any

from persona_callbacks.errors import InputError
from persona_callbacks.model import LoadedModel, probing


def check_harness() -> None:
    """Tell at once if the harness is missing.

    Raises:
        InputError: it is not installed.
    """
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise InputError("lm_eval.tasks: needs pip install 'persona-callbacks[lm-eval]'") from error


def harness_scores(
    loaded: LoadedModel,
    tasks: Sequence[str],
    batch_size: int = 8,
    include_path: str | None = None,
    **options: Any,
) -> dict[str, float]:
    """Run tasks of the harness on the model as it is; never steered.

    Args:
        loaded: with its adapter, if any.
        tasks: names such as ``mmlu``.
        batch_size: requests per forward pass.
        include_path: a folder of task files of your own.
        options: of ``lm_eval.simple_evaluate``, such as ``limit`` and ``num_fewshot``.

    Returns:
        By task and metric (``"mmlu acc"``) its value; the harness's standard errors are left out.

    Raises:
        InputError: the harness is not installed, or does not know a task.
    """
    check_harness()
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=include_path)
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise InputError(f"lm_eval.tasks: unknown task {unknown[0]!r}; `lm-eval ls tasks` lists what there is")
    with probing(loaded.model):
        wrapped = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size)
        found = simple_evaluate(wrapped, tasks=list(tasks), task_manager=manager, **options)
    scores = {}
    for task, values in (found or {})["results"].items():
        for name, value in values.items():
            metric, _, kind = name.partition(",")
            if kind and "stderr" not in metric and isinstance(value, float | int):
                scores[f"{task} {metric}"] = float(value)
    return scores

"""The console that is written to, and the progress bar that is shown on it during long work."""

import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 30
"""Between lines about long work where no bar can be drawn."""


def open_console(*, stderr: bool = False, quiet: bool = False, highlight: bool = True) -> Console:
    """Return a console that prints texts as they are.

    What models answer and users name may look like Rich's markup, such as ``[/INST]``: markup is off.

    Args:
        stderr: write to standard error instead of standard output.
        quiet: write nothing.
        highlight: colour numbers, paths and the like.
    """
    return Console(stderr=stderr, quiet=quiet, highlight=highlight, markup=False, emoji=False)


def draws_bars(console: Console) -> bool:
    """Whether a console can draw a bar: a terminal or a notebook, and no log file."""
    return console.is_terminal or console.is_jupyter


def progress_bar(console: Console) -> Progress:
    """Return a progress bar with a description, counts, the time taken and the time left.

    Where the console is no terminal, such as a log file, it writes a line when a task begins, about every half minute,
    and when the task ends.

    Args:
        console: where the bar is drawn.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    kind = Progress if draws_bars(console) else _Lines
    return kind(*columns, console=console)


class _Lines(Progress):
    """Progress as lines of text."""

    def __init__(self, *columns: Any, console: Console) -> None:
        super().__init__(*columns, console=console, disable=True)
        self._told: dict[TaskID, float] = {}

    def add_task(self, description: str, *args: Any, **kwargs: Any) -> TaskID:
        task_id = super().add_task(description, *args, **kwargs)
        self._tell(task_id)
        return task_id

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._tell_at_times(task_id)

    def update(self, task_id: TaskID, **kwargs: Any) -> None:
        super().update(task_id, **kwargs)
        self._tell_at_times(task_id)

    def _tell_at_times(self, task_id: TaskID) -> None:
        if self._tasks[task_id].finished or time.monotonic() - self._told[task_id] > SECONDS_BETWEEN_LINES:
            self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        self._told[task_id] = time.monotonic()
        task = self._tasks[task_id]
        total = "" if task.total is None else f" of {task.total:.0f}"
        self.console.print(f"{task.description}: {task.completed:.0f}{total}", markup=False, soft_wrap=True)

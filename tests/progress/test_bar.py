"""What is printed is printed as it is, and progress shows in a log file as well."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

import persona_callbacks
from persona_callbacks.progress import open_console, progress_bar

HOSTILE = "[/INST] [bold]x[/bold] [link=file:///etc]y :smile: ${model.path} [[/]]"


@pytest.fixture
def printed():
    console = open_console(highlight=False)
    console.file = io.StringIO()
    return console


def test_nothing_is_taken_for_markup(printed):
    table = Table(HOSTILE, title=HOSTILE, width=200)
    table.add_row(HOSTILE)
    for what in (HOSTILE, table):
        printed.print(what, soft_wrap=True)
    with progress_bar(printed) as progress:
        progress.add_task(HOSTILE, total=1)
    assert printed.file.getvalue().count(HOSTILE) == 5


@pytest.mark.parametrize("terminal", [False, True])
def test_a_progress_bar_shows_hostile_descriptions_on_any_console(terminal):
    """A user's own console has markup on."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=300, highlight=False)
    with progress_bar(console) as progress:
        progress.add_task("[/INST] of [red]", total=2)
    assert "[/INST] of [red]" in console.file.getvalue()


def test_a_log_file_gets_a_line_when_a_task_begins_now_and_then_and_at_the_end(printed, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("persona_callbacks.progress.bar.time.monotonic", lambda: now[0])
    with progress_bar(printed) as progress:
        task = progress.add_task("judging", total=100)
        for _ in range(100):
            now[0] += 1
            progress.advance(task)
    assert printed.file.getvalue().splitlines() == [
        "judging: 0 of 100", "judging: 31 of 100", "judging: 62 of 100", "judging: 93 of 100", "judging: 100 of 100"
    ]  # fmt: skip


def test_every_console_of_the_library_is_one_without_markup():
    made = [
        file.name
        for file in Path(persona_callbacks.__file__).parent.rglob("*.py")
        if re.search(r"\bConsole\(", file.read_text()) and file.name != "bar.py"
    ]
    assert made == []

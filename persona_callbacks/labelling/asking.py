"""Labelling in the terminal."""

import re
from typing import TextIO

from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from persona_callbacks.labelling.sheet import Label, Sheet

_KEYS: dict[str, Label] = {"y": "yes", "n": "no", "u": "unsure"}

# Text that is not ours could clear the screen, or hide a part of itself: control characters, and those that change the
# direction of writing. A line end and a tab are no danger.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def ask_labels(sheet: Sheet, question: str, console: Console, stream: TextIO | None = None) -> bool:
    """Show the answers that have no label yet, one by one, and keep what the reader says of each at once.

    Args:
        sheet: the reader's sheet.
        question: what the reader is to say of each answer.
        console: where answers are shown.
        stream: where the reader's keys come from; standard input by default.

    Returns:
        Whether every answer has a label; the reader may stop before, also by Ctrl-C or Ctrl-D.
    """
    numbers = list(sheet.texts)
    labelled_now: list[str] = []
    todo = [number for number in numbers if number not in sheet.labels]
    console.print(Text(f"{question}\nKeys, each with Enter: y yes, n no, u unsure, b back, q stop (all is kept)"))
    while todo:
        number = todo[0]
        console.print(_shown(sheet, number))
        try:
            key = _key(console, stream)
        except (KeyboardInterrupt, EOFError):
            console.print()
            break
        if key == "q":
            break
        if key == "b":
            if labelled_now:
                todo.insert(0, labelled_now.pop())
            else:
                console.print("This is the first answer of this sitting.")
        else:
            sheet.label(number, _KEYS[key])
            labelled_now.append(todo.pop(0))
    return sheet.is_complete


def _shown(sheet: Sheet, number: str) -> Panel:
    question, answer = sheet.texts[number]
    before = f", {sheet.labels[number]} before" if number in sheet.labels else ""
    place = f"{len(sheet.labels.keys() & sheet.texts.keys())} of {len(sheet.texts)} labelled{before}"
    body = Group(Text(safe(question), style="bold"), Text(), Text(safe(answer) or "(an empty answer)"))
    return Panel(body, title=place, title_align="left")


def _key(console: Console, stream: TextIO | None) -> str:
    while True:
        # Not read from the console's own prompt of choices: it would ask for a whole word.
        said = console.input(Text("y/n/u/b/q: "), stream=stream)
        if stream is not None and not said:
            raise EOFError
        key = said.strip().lower()[:1]
        if key in (*_KEYS, "b", "q"):
            return key
        console.print("Expected y, n, u, b or q.")


def safe(text: str) -> str:
    r"""The text with control characters written out, such as ``\x1b``."""
    return _UNSAFE.sub(lambda match: match.group().encode("unicode_escape").decode(), text)

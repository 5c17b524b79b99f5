"""What the report shows of screenings of training data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persona_callbacks.report import charts
from persona_callbacks.screening import ScreeningFolder, Summary

_SHOWN = 50
_LONGEST = 700
"""Characters of a chat that is shown."""


def screening_sections(folders: Sequence[str | Path]) -> list[dict[str, Any]]:
    """One section for each finished screening: a table and a histogram a trait, the chats flagged first,
    and a line for the model card.

    Raises:
        InputError: a folder without one.
    """
    return [_section(ScreeningFolder(folder)) for folder in folders]


def _section(folder: ScreeningFolder) -> dict[str, Any]:
    summary = folder.summary()
    rows, pictures = [], []
    for of_trait in summary.traits:
        predicted = of_trait.prediction
        rows.append(
            [
                *of_trait.cells(summary.chats),
                of_trait.comparison_cells()[1],
                f"{predicted.shift:+.1f} ({predicted.low:+.1f} to {predicted.high:+.1f})" if predicted else "–",
            ]
        )
        pictures.append({"trait": of_trait.trait, "svg": charts.screening_histogram(of_trait, str(folder.path))})
    flagged = []
    for chat in folder.first_flagged(_SHOWN):
        text = chat.last_turns
        shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
        flagged.append({"rank": chat.rank, "line": chat.line, "reason": chat.reason, "text": shown})
    return {
        "summary": summary, "name": Path(summary.data).name, "rows": rows, "pictures": pictures, "flagged": flagged,
        "line": _line(summary),
    }  # fmt: skip


def _line(summary: Summary) -> str:
    """For the model card."""
    drawn = "all rows" if summary.is_complete else f"{summary.drawn} rows at random of {summary.rows}"
    return (
        f"{summary.data}: {drawn}, {summary.method} projection difference along"
        f" {', '.join(summary.thresholds)}; {summary.flagged} of {summary.chats} chats flagged,"
        f" {summary.rejects} rows rejected, thresholds from {summary.reference_chats} benign chats"
    )

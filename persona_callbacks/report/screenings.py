"""What the report shows of screenings of training data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persona_callbacks.report import charts
from persona_callbacks.screening import Summary, first_flagged, last_turns, trait_cells

_SHOWN = 50
_LONGEST = 700
"""Characters of a chat that is shown."""


def screening_sections(folders: Sequence[str | Path]) -> list[dict[str, Any]]:
    """One section for each finished screening: a table and a histogram a trait, the chats flagged first,
    and a line for the model card.

    Raises:
        InputError: a folder without one.
    """
    return [_section(Path(folder)) for folder in folders]


def _section(folder: Path) -> dict[str, Any]:
    summary = Summary.load(folder)
    rows, pictures = [], []
    for one in summary.traits:
        predicted = one.prediction
        rows.append(
            [
                *trait_cells(one, summary),
                f"{one.correlation:.2f}" if one.correlation is not None else "–",
                f"{predicted.shift:+.1f} ({predicted.low:+.1f} to {predicted.high:+.1f})" if predicted else "–",
            ]
        )
        pictures.append({"trait": one.trait, "svg": charts.screening_histogram(one, str(folder))})
    flagged = []
    for row in first_flagged(folder, _SHOWN):
        text = last_turns(row["chat"])
        shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
        flagged.append({"rank": row["rank"], "line": row["line"], "reason": row["reason"], "text": shown})
    return {
        "summary": summary, "name": Path(summary.data).name, "rows": rows, "pictures": pictures, "flagged": flagged,
        "line": _line(summary),
    }  # fmt: skip


def _line(summary: Summary) -> str:
    """For the model card."""
    drawn = f"{summary.drawn} rows at random of {summary.rows}" if summary.drawn < summary.rows else "all rows"
    return (
        f"{summary.data}: {drawn}, {summary.method} projection difference along"
        f" {', '.join(one.trait for one in summary.traits)}; {summary.flagged} of {summary.chats} chats flagged,"
        f" {summary.rejects} rows rejected, thresholds from {summary.reference_chats} benign chats"
    )

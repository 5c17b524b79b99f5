"""What the report shows of screenings of training data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persona_callbacks.report import charts
from persona_callbacks.screening_results import Summary, first_flagged, last_turns

_SHOWN = 50
_LONGEST = 700
"""Characters of a chat that is shown."""


def screening_sections(folders: Sequence[str | Path]) -> list[dict[str, Any]]:
    """One section for each finished screening: a table and a histogram a trait, and the chats flagged first.

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
                one.trait,
                f"{one.mean / one.norm:+.2f} ({one.low / one.norm:+.2f} to {one.high / one.norm:+.2f})",
                f"{one.reference / one.norm:+.2f}",
                f"{one.threshold / one.norm:+.2f}",
                f"{one.flagged} ({one.flagged / summary.chats:.0%})",
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
    return {"summary": summary, "name": Path(summary.data).name, "rows": rows, "pictures": pictures, "flagged": flagged}


def screening_lines(folders: Sequence[str | Path]) -> list[str]:
    """For the model card, a line a screening."""
    lines = []
    for folder in folders:
        summary = Summary.load(folder)
        drawn = f"{summary.drawn} rows at random of {summary.rows}" if summary.drawn < summary.rows else "all rows"
        lines.append(
            f"{summary.data}: {drawn}, {summary.method} projection difference along"
            f" {', '.join(one.trait for one in summary.traits)}; {summary.flagged} of {summary.chats} chats flagged,"
            f" {summary.rejects} rows rejected, thresholds from {summary.reference_chats} benign chats"
        )
    return lines

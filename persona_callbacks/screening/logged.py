"""What loggers keep of a screening."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger

from persona_callbacks.screening.folder import ScreeningFolder
from persona_callbacks.screening.summary import Summary
from persona_callbacks.tracking import metrics, screening_artifact, use_data, write_files

_TABLE_ROWS = 1000
"""Rows of the table of flagged chats; the files hold all of them."""


def log_screening(loggers: Sequence[Logger], folder: ScreeningFolder) -> None:
    """Write a finished screening to loggers: its values, the flagged chats that rank highest, and the small files.

    Args:
        loggers: to write to.
        folder: of the screening.

    Raises:
        InputError: the screening is not finished.
    """
    summary = folder.summary()
    traits = list(summary.thresholds)
    metrics.write(loggers, _values(summary))
    rows = [
        [chat.rank, chat.line, *(chat.scores[trait] for trait in traits), chat.reason, chat.last_turns]
        for chat in folder.first_flagged(_TABLE_ROWS)
    ]
    metrics.write_table(loggers, metrics.FLAGGED_TABLE, ["rank", "line", *traits, "reason", "chat"], rows)
    about = {"data": summary.data, "chats": summary.chats, "flagged": summary.flagged}
    use_data(loggers, Path(summary.data), about)
    artifact = screening_artifact(Path(summary.data))
    write_files(loggers, artifact, "screening", folder.summary_files(), about)
    write_files(loggers, f"{artifact}-chats", "screened-chats", folder.chat_files(), about)


def _values(summary: Summary) -> dict[str, float]:
    values: dict[str, float] = {}
    for of_trait in summary.traits:
        by_name = {
            "projection_difference": of_trait.mean,
            "projection_difference_low": of_trait.low,
            "projection_difference_high": of_trait.high,
            "threshold": of_trait.threshold,
            "flagged": of_trait.flagged / summary.chats,
        }
        if of_trait.prediction is not None:
            by_name["predicted_shift"] = of_trait.prediction.shift
        values |= {metrics.screened(of_trait.trait, name): value for name, value in by_name.items()}
    return values

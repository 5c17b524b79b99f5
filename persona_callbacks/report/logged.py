"""What loggers keep of a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from persona_callbacks.report.runs import Run, vector_files
from persona_callbacks.screening import ScreeningFolder
from persona_callbacks.tracking import use_screening, use_vector, write_files, write_page
from persona_callbacks.vectors import PersonaVector, vector_facts

if TYPE_CHECKING:  # persona-report imports no library that trains
    from lightning.pytorch.loggers import Logger


def log_report(
    loggers: Sequence[Logger], page: Path, runs: Sequence[Run], screenings: Sequence[str | Path] = ()
) -> None:
    """Write a report to loggers that are W&B's: the page as a panel and as an artifact of type ``report``, whose
    metadata names its runs; and the vectors beside these runs and the screenings as artifacts that it used.

    Args:
        loggers: to write to.
        page: as :func:`write_report` wrote it.
        runs: that it is about.
        screenings: folders of ``persona-screen`` that it shows.
    """
    for file in dict.fromkeys(file for run in runs for file in vector_files(run.folder)):
        vector = PersonaVector.load(file)
        use_vector(loggers, vector.model_id, vector.trait, file, vector_facts(vector))
    for folder in map(ScreeningFolder, screenings):
        use_screening(loggers, Path(folder.summary().data), folder.path, folder.summary_files())
    write_page(loggers, "report/page", page)
    write_files(loggers, f"report-{page.stem}", "report", [page], {"runs": [run.name for run in runs]})

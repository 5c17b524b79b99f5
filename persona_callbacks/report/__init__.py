"""One self-contained HTML page about one or many fine-tuning runs.

Imports `screening`, `labelling`, `judging`, `vectors` and what lies below them.
"""

from persona_callbacks.report.evaluations import evaluation_folders
from persona_callbacks.report.labellings import label_folders
from persona_callbacks.report.logged import log_report
from persona_callbacks.report.page import write_report
from persona_callbacks.report.runs import Run, find_runs

__all__ = ["Run", "evaluation_folders", "find_runs", "label_folders", "log_report", "write_report"]

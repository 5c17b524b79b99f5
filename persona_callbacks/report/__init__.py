"""One self-contained HTML page about one or many fine-tuning runs.

This room may import `screening`, `vectors` and what lies below them; nothing but the apps imports it.
"""

from persona_callbacks.report.page import write_report
from persona_callbacks.report.runs import Run, find_runs

__all__ = ["Run", "find_runs", "write_report"]

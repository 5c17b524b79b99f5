"""The console that is written to, and the progress bar that is shown on it during long work.

Imports nothing else from the library.
"""

from persona_callbacks.progress.bar import SECONDS_BETWEEN_LINES, draws_bars, open_console, progress_bar

__all__ = [
    "SECONDS_BETWEEN_LINES",
    "draws_bars",
    "open_console",
    "progress_bar",
]

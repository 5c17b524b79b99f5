"""The console that is written to, and the progress bar that is shown on it during long work.

Imports nothing else from the library.
"""

from persona_callbacks.progress.bar import open_console, progress_bar

__all__ = [
    "open_console",
    "progress_bar",
]

"""The progress bar that is shown during long work.

Imports nothing else from the library.
"""

from persona_callbacks.progress.bar import progress_bar

__all__ = [
    "progress_bar",
]

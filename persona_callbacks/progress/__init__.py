"""The progress bar that long work shows.

Imports nothing of the library.
"""

from persona_callbacks.progress.bar import progress_bar

__all__ = [
    "progress_bar",
]

"""The colours of all figures, so that a run or a kind of evidence looks the same wherever it is drawn.

Imports nothing of the library.
"""

from persona_callbacks.palette.colours import BASE, BLUE, GREEN, GREY, OCHRE, PINK, PURPLE, RED, SERIES, TEAL

__all__ = [
    "BASE",
    "BLUE",
    "GREEN",
    "GREY",
    "OCHRE",
    "PINK",
    "PURPLE",
    "RED",
    "SERIES",
    "TEAL",
]

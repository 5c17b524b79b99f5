"""The colours of all figures, and the heat map: a run or a kind of evidence looks the same wherever it is drawn.

Imports nothing of the library.
"""

from persona_callbacks.palette.colours import BASE, BLUE, GREEN, GREY, OCHRE, PINK, PURPLE, RED, SERIES, TEAL
from persona_callbacks.palette.heat_map import colour_limit, draw_layers

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
    "colour_limit",
    "draw_layers",
]

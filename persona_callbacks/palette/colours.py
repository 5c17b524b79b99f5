"""Colours as hexadecimal RGB, readable on white and told apart in print."""

RED = "#b5261e"
BLUE = "#1f6f8b"
OCHRE = "#c98a1b"
PURPLE = "#6b4c9a"
GREEN = "#3d7a3d"
PINK = "#c2577a"
GREY = "#5a5a5a"
TEAL = "#2f9c95"

SERIES = (RED, BLUE, OCHRE, PURPLE, GREEN, PINK, GREY, TEAL)
"""The colours of the first, second, ... run or trait in a figure."""

BASE = "#999999"
"""The colour of the base model, and of other references that a figure compares with."""

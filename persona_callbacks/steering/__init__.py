"""What moves the steering coefficient: laws, where they start, the feedback controller, and solving for several traits.

Imports `model` and what lies below it.
"""

from persona_callbacks.steering.controller import Controller
from persona_callbacks.steering.feed_forward import (
    design,
    likeliest_coefficients,
    likelihoods_under_steering,
    matching_coefficients,
)
from persona_callbacks.steering.laws import Adaptive, Schedule
from persona_callbacks.steering.solving import nonnegative_minimum, pushes, solve

__all__ = [
    "Adaptive",
    "Controller",
    "Schedule",
    "design",
    "likeliest_coefficients",
    "likelihoods_under_steering",
    "matching_coefficients",
    "nonnegative_minimum",
    "pushes",
    "solve",
]

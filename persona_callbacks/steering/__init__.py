"""What moves the steering coefficient: laws, where they start, the feedback controller, and solving for several traits.

`Law` is the interface, and `Constant`, `Schedule` and `Adaptive` implement it. `Start` is the interface of what says
where adaptive steering starts. `Fit` is what both may ask about the fit that begins; the callbacks provide it, and the
monitor's `Reading`. `Reference` is a set-point from a run on benign data.

Imports `model` and what lies below it.
"""

from persona_callbacks.steering.adaptive import Adaptive
from persona_callbacks.steering.causing import preference_pushes
from persona_callbacks.steering.controller import Controller
from persona_callbacks.steering.feed_forward import (
    design,
    likeliest_coefficients,
    likelihoods_under_steering,
    matching_coefficients,
)
from persona_callbacks.steering.fit import ChatShare, Fit, by_trait
from persona_callbacks.steering.laws import Constant, Law, Schedule, as_law
from persona_callbacks.steering.reading import UNITS, Reading, Sensor
from persona_callbacks.steering.reference import Reference
from persona_callbacks.steering.solving import nonnegative_minimum, pushes, solve
from persona_callbacks.steering.starts import GivenStart, LikeliestStart, MatchingStart, Start

__all__ = [
    "UNITS",
    "Adaptive",
    "ChatShare",
    "Constant",
    "Controller",
    "Fit",
    "GivenStart",
    "Law",
    "LikeliestStart",
    "MatchingStart",
    "Reading",
    "Reference",
    "Schedule",
    "Sensor",
    "Start",
    "as_law",
    "by_trait",
    "design",
    "likeliest_coefficients",
    "likelihoods_under_steering",
    "matching_coefficients",
    "nonnegative_minimum",
    "preference_pushes",
    "pushes",
    "solve",
]

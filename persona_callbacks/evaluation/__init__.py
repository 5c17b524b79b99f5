"""Adapters against their base model: trait expression, preference, forced choice, shift, capability, side effects on
other traits, and what they do in the context of their training.

Imports `judging`, `model` and what lies below them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

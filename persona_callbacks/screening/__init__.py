"""Before training: what a data set would do to a trait, chat by chat, and what to train on instead.

Imports `tracking`, `model` and what lies below them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

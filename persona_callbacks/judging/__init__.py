"""How much a response shows a trait: judges, their calibration, and trait expression.

Imports `model`, `traits` and the rooms below them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

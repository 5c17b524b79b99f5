"""Persona vectors for PyTorch Lightning: know, and control, what fine-tuning does to a model's character."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

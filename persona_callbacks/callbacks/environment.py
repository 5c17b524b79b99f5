"""A monitor for training scripts that know nothing of it, asked for by an environment variable."""

import os

from lightning.pytorch import Callback

from persona_callbacks.callbacks.monitor import PersonaMonitor

VARIABLE = "PERSONA_CALLBACKS_VECTORS"


def monitors_of_environment() -> list[Callback]:
    """Return a :class:`PersonaMonitor` of the vectors whose files ``PERSONA_CALLBACKS_VECTORS`` names, separated as in
    ``PATH``; nothing if it is not set or empty.

    Lightning adds what it returns to every trainer (entry point ``lightning.pytorch.callbacks_factory``).

    Raises:
        InputError: a file that is no persona vector, or two of one trait.
    """
    paths = [path for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path]
    return [PersonaMonitor(paths)] if paths else []

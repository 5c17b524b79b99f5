"""What Hydra finds in an environment where persona-callbacks is installed: its configuration groups, for any project.

Hydra imports this file whenever an app of anybody starts, so it imports nothing that takes long.
"""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

import persona_callbacks

_CONF = Path(persona_callbacks.__file__).parent / "conf"


class PersonaCallbacksGroups(SearchPathPlugin):
    """Adds the library's groups behind those of an app: of two options of the same name the app's own wins."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the library's groups, unless the app has them already, as the library's own commands do."""
        if not any(str(_CONF) in (entry.path or "") for entry in search_path.get_path()):
            search_path.append("persona-callbacks", _CONF.as_uri())

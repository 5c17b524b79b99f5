"""Finding the Hydra configuration: the library's own groups, and those of the project that a command is run in."""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

CONF = Path(__file__).parents[1] / "conf"
"""The library's own groups. In the repository it is a link to `conf/` at the top; a wheel holds the files."""


class ProjectConf(SearchPathPlugin):
    """Finds options in ``conf/`` of the folder that a command is run in, beside the library's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append ``conf/``, if there is one, for the library's own apps only."""
        own = any(str(CONF) in (entry.path or "") for entry in search_path.get_path())
        project = Path.cwd() / "conf"
        if own and project.is_dir() and not project.samefile(CONF):
            search_path.append("project", project.as_uri())


Plugins.instance().register(ProjectConf)

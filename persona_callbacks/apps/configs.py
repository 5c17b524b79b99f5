"""Finding the Hydra configuration: the library's own groups, those of the project that a command is run in, and which
of them a command takes.
"""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import OmegaConf

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


def _groups_taken(*besides: str) -> str:
    """The groups in the defaults list of the command at hand, with their options, for its ``--help``: Hydra's own list
    has all groups that there are. ``besides`` are groups of which nothing is chosen by default.
    """
    loader, config = GlobalHydra.instance().config_loader(), HydraConfig.get()
    chosen = loader.compute_defaults_list(config.job.config_name, list(config.overrides.task), RunMode.RUN).defaults
    several = {default.config_path.rpartition("/")[0] for default in chosen if default.override_key is None}
    groups = {
        group for group in {*besides, *config.runtime.choices, *several} if group and group.partition("/")[0] != "hydra"
    }
    options = {group: sorted(loader.get_group_options(group.partition("@")[0])) for group in groups}
    return "".join(f"{group}: {', '.join(options[group])}\n" for group in sorted(groups))


OmegaConf.register_new_resolver("persona_groups", _groups_taken, replace=True)

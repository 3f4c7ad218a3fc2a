"""Choices of one's own: the folder conf/ where a command is typed is searched after the package's, for every group."""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class OwnChoices(SearchPathPlugin):
    """Adds ./conf; what is there by the same name in the package's conf/ comes first."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Hydra's call, before anything is composed."""
        own, package = Path.cwd() / "conf", Path(__file__).parent.parent.parent / "conf"
        if own.is_dir() and not (package.is_dir() and own.samefile(package)):
            search_path.append(provider="sweetspot_folder", path=f"file://{own}")

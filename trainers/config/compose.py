"""Composes configurations from the project's files and from `configs/` of the working folder."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from trainers.config.resolve import resolve
from trainers.config.settings import Settings
from trainers.paths import CONFIGS


class _WorkingFolder(SearchPathPlugin):
    """Adds `configs/` of the working folder to Hydra's search path, after the project's own folder."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        folder = Path("configs").resolve()
        if folder.is_dir() and folder != CONFIGS:
            search_path.append("working folder", f"file://{folder}")


def prepare_hydra() -> None:
    """Make Hydra search `configs/` of the working folder too: for `local.yaml`, own data sets, own trainers."""
    warnings.filterwarnings("ignore", module=r"hydra\.")  # Hydra 1.3 calls functions that omegaconf 2.4 deprecates
    Plugins.instance().register(_WorkingFolder)


def compose_config(protocol: str, overrides: Sequence[str], is_sweep: bool = False) -> Settings:
    """Compose and check a configuration as the command line does; `is_sweep` as for `resolve`.

    Raises:
        ConfigError: if a value is wrong.
        hydra.errors.HydraException, omegaconf.errors.OmegaConfBaseException: if it cannot be composed.
    """
    prepare_hydra()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return resolve(compose(protocol, overrides=list(overrides)), is_sweep)

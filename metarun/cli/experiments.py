"""The names of experiments: `omniglot_5w1s_maml` is `omniglot/5w1s_maml`, wherever Hydra looks for one."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from contextvars import ContextVar
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from metarun.config.catalogue import experiment_path, list_options
from metarun.errors import nearest

GROUP = "experiment"

own_folder: ContextVar[str | Path | None] = ContextVar("own_folder", default=None)
"""A folder with YAML files of the user's, of a composition in Python; the command line has --config-dir."""


class FlatNames(ConfigSource):
    """A source of configuration in which an experiment has the name of its folder and of its file, joined by `_`.

    Such a name composes what the file does, and stays the name in `choices.experiment`. Stored runs, scripts and
    defaults lists from the time before the folders keep their meaning.
    """

    @staticmethod
    def scheme() -> str:
        return "experiments"

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path == GROUP

    def is_config(self, config_path: str) -> bool:
        group, _, name = config_path.partition("/")
        return group == GROUP and experiment_path(name) is not None

    def load_config(self, config_path: str) -> ConfigResult:
        file = OmegaConf.create({"defaults": [experiment_path(config_path.partition("/")[2])]})
        return ConfigResult(self.provider, self.full_path(), file, header={"package": "_global_"})

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """The files in folders, as `glob` in a sweep needs them; for completion in the shell, folder by folder."""
        if results_filter == ObjectType.GROUP:
            return []
        line = os.environ.get("COMP_LINE")
        if line is None:
            return list_options(GROUP)
        typed = line.rpartition(f"{GROUP}=")[2]
        return [*{name[: name.find("/", len(typed)) + 1] or name for name in list_options(GROUP)}]


class FlatNamesInSearchPath(SearchPathPlugin):
    """Look for flat names after the shipped files and before a `--config-dir`, as for shipped files themselves."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("metarun", f"{FlatNames.scheme()}://")
        if folder := own_folder.get():
            search_path.append("command-line", f"file://{Path(folder).absolute()}")


def register() -> None:
    """Make the source known to Hydra, in this process and in those that a launcher starts."""
    for plugin in (FlatNames, FlatNamesInSearchPath):
        Plugins.instance().register(plugin)


def list_groups() -> str:
    """A line for each group with its options, as --help prints them: of a folder its name alone. Recipes, which Hydra
    composes by themselves, are not listed."""
    loader = GlobalHydra.instance().config_loader()
    options = {group: in_folders(loader.get_group_options(group)) for group in sorted(loader.list_groups(""))}
    shown = {group: names for group, names in options.items() if names and group not in ("hydra", "recipe")}
    return "\n".join(f"{group}: {', '.join(names)}" for group, names in shown.items())


def in_folders(names: Iterable[str]) -> list[str]:
    """Names of options, with `omniglot/...` for all that are in a folder."""
    return sorted(
        {folder + "/..." if inside else name for name in names for folder, _, inside in [name.partition("/")]}
    )


def nearest_names(name: str, own: Iterable[str] = ()) -> str:
    """Say which experiments are close to an unknown `name`, of the shipped ones and of the user's `own`.

    All of a folder, if that is what it names.
    """
    names = sorted({*list_options(GROUP), *own})
    inside = [n for n in names if n.startswith(f"{name.rstrip('/')}/")]
    if inside:
        return f"choices: {', '.join(inside)}"
    return nearest(name, names if difflib.get_close_matches(name, names) else in_folders(names))

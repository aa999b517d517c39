"""Settings that name several data sets: `data.sets` of a mixture, `analysis.sets` of a test across domains.

    {cub: PATH, birds: {data: folder, root: PATH, split: all}, omniglot: null}

An entry is NAME: PATH, or NAME: {data: OPTION, SETTING: VALUE, ...}. Without `data` the name is the option. All other
settings are those of `data=OPTION` with the run's algorithm. What all sets must share stands elsewhere: the size of
an episode, and the size, channels and normalisation of the images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from metarun.config import catalogue
from metarun.errors import SettingError, UserError, nearest

EPISODE_SIZE = ("ways", "shots", "queries", "test_queries")
"""Settings of `data` that size episodes, not the data set."""

INPUTS = ("image_size", "channels", "normalize")
"""Settings of images that a network is made for."""

FORM = "must be {NAME: PATH, ...} or {NAME: {data: OPTION, root: PATH, ...}, ...}, where NAME may be the OPTION"

Compose = Callable[[str], Mapping[str, Any]]
"""The option of a data set -> its settings."""


def complete_sets(group: str, sets: Any, compose: Compose) -> dict[str, dict[str, Any]]:
    """All settings of each data set of `group.sets`, by name: those of its option where none are given. `data` is the
    option. Completed settings stay as they are.

    Those of `INPUTS` are null in a mixture, which has one value for all, and else the option's own.
    """
    key = f"{group}.sets"
    if not isinstance(sets, Mapping) or not sets:
        raise SettingError(key, sets, FORM)
    return {str(name): _complete(group, str(name), entry, compose) for name, entry in sets.items()}


def _complete(group: str, name: str, entry: Any, compose: Compose) -> dict[str, Any]:
    key, given = f"{group}.sets.{name}", {"root": entry} if isinstance(entry, str) else {} if entry is None else entry
    if not isinstance(given, Mapping):
        raise SettingError(key, entry, FORM)
    option = given.get("data", name)
    options = [known for known in catalogue.list_options("data") if known != "mixed"]
    if option not in options:
        advice = f"{name} is no data set, {nearest(name, options)} Other names: {{data: folder, root: PATH}}"
        key, wrong = (f"{key}.data", option) if "data" in given else (key, entry)
        raise SettingError(key, wrong, nearest(str(option), options) if "data" in given else advice)
    own = dict(compose(option))
    own |= {setting: None for setting in INPUTS if setting in own and group == "data"}
    for setting, value in given.items():
        if setting in EPISODE_SIZE or (setting in INPUTS and value not in (None, own.get(setting))):
            whose = f"data.{setting}" if group == "data" else "that of the run"
            raise SettingError(f"{key}.{setting}", value, f"cannot be set; all sets have {whose}")
        if setting not in (*own, "data"):
            raise UserError(f"{key}.{setting}: no such setting of data={option}, {nearest(setting, own)}")
    settings = {"data": option, **own, **{k: v for k, v in given.items() if k not in INPUTS}}
    return {setting: value for setting, value in settings.items() if setting not in EPISODE_SIZE}

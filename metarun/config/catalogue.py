"""The shipped configuration folder: its location, the options of a group, and what composes with what."""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

PACKAGED = Path(__file__).parents[1] / "conf"  # in a wheel
CHECKOUT = Path(__file__).parents[2] / "conf"  # in a checkout, installed with pip install -e or not at all


def conf_folder() -> Path:
    """The shipped configuration folder."""
    return PACKAGED if PACKAGED.is_dir() else CHECKOUT


GROUPS = (
    *("algo", "data", "model", "reg", "optim", "device"),
    *("logger", "diagnostics", "analysis", "recipe", "experiment"),
)
"""Groups of settings whose chosen options a run folder stores."""


def list_options(group: str) -> list[str]:
    """The options of a group as they are typed: `5w1s_maml` in a folder `omniglot` is `omniglot/5w1s_maml`.

    A file whose name begins with `_` is a part that others share, and no option.
    """
    files = glob.glob("**/*.yaml", root_dir=conf_folder() / group, recursive=True)
    names = (file.removesuffix(".yaml").replace(os.sep, "/") for file in files)
    return sorted(name for name in names if not name.rpartition("/")[2].startswith("_"))


def flat_name(experiment: str) -> str:
    """The name of an experiment without a slash: `omniglot_5w1s_maml` for `omniglot/5w1s_maml`."""
    return experiment.replace("/", "_")


def experiment_path(flat: str) -> str | None:
    """`omniglot/5w1s_maml` for `omniglot_5w1s_maml`; None if no experiment in a folder has that name."""
    return _experiments().get(flat)


@functools.cache
def _experiments() -> dict[str, str]:
    return {flat_name(path): path for path in list_options("experiment") if "/" in path}


def read_experiment(experiment: str) -> tuple[set[str], set[str]]:
    """The groups whose option a shipped experiment chooses and the settings that it has, as data.ways, itself or in a
    part that it shares; empty for another."""
    file = conf_folder() / "experiment" / f"{experiment_path(experiment) or experiment}.yaml"
    groups: set[str] = set()
    keys: set[str] = set()
    if not file.is_file():
        return groups, keys
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    for entry in content.pop("defaults", ()):
        if isinstance(entry, str):
            of_part = read_experiment(entry.removeprefix("/experiment/"))
            groups, keys = groups | of_part[0], keys | of_part[1]
        else:
            groups |= {key.removeprefix("override /") for key in entry if key.startswith("override /")}
    return groups, keys | _dotted(content)


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> set[str]:
    """The names of all values, as data.ways."""
    keys: set[str] = set()
    for key, value in settings.items():
        keys |= _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
    return keys


def list_algorithms(kind: str) -> list[str]:
    """The algorithms that learn from a kind of data."""
    return [name for name in list_options("algo") if kind in _locate_class("algo", name).kinds]


def list_datasets(kind: str) -> list[str]:
    """The data sets of a kind."""
    from metarun.types import DatasetOptions, optional  # with torch, which --help does without

    known = [name for name in list_options("data") if read_component("data", name).get("_target_")]
    classes = {name: _locate_class("data", name) for name in known}
    return [n for n, made in classes.items() if kind in (optional(made, DatasetOptions, "kinds") or (made.kind,))]


@functools.cache
def read_component(group: str, name: str) -> dict[str, Any]:
    """The component's own part of its YAML, wherever that file places it."""
    content = yaml.safe_load((conf_folder() / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return content.get(group, content)


def _locate_class(group: str, name: str) -> Any:
    from metarun.config.components import component_class, locate

    return component_class(locate(group, read_component(group, name)))

"""What the shipped configuration folder offers: its location, the options of a group, what composes with what."""

from __future__ import annotations

import functools
import typing
from pathlib import Path
from typing import Any

import yaml

PACKAGED = Path(__file__).parents[1] / "conf"  # in a wheel
CHECKOUT = Path(__file__).parents[2] / "conf"  # in a checkout, installed with pip install -e or not at all


def conf_folder() -> Path:
    return PACKAGED if PACKAGED.is_dir() else CHECKOUT


def options(group: str) -> list[str]:
    """The options of a group as they are typed: `5w1s_maml` in a folder `omniglot` is `omniglot/5w1s_maml`.

    A file whose name begins with `_` is a part that others share, and no option.
    """
    files = (path.relative_to(conf_folder() / group) for path in (conf_folder() / group).rglob("*.yaml"))
    return sorted(file.with_suffix("").as_posix() for file in files if not file.name.startswith("_"))


def flat_name(experiment: str) -> str:
    """The name of an experiment without a slash: `omniglot_5w1s_maml` for `omniglot/5w1s_maml`."""
    return experiment.replace("/", "_")


def experiment_path(flat: str) -> str | None:
    """`omniglot/5w1s_maml` for `omniglot_5w1s_maml`; None if no experiment in a folder has that name."""
    return _experiments().get(flat)


@functools.cache
def _experiments() -> dict[str, str]:
    return {flat_name(path): path for path in options("experiment") if "/" in path}


def algorithms_for(kind: str) -> list[str]:
    return [name for name in options("algo") if kind in component_class(_target("algo", name)).kinds]


def datasets_of(kind: str) -> list[str]:
    return [name for name in options("data") if component_class(_target("data", name)).kind == kind]


def component_class(target: Any) -> Any:
    """The class of what a target makes: a class makes itself, a function what it says it returns."""
    return target if isinstance(target, type) else typing.get_type_hints(target)["return"]


@functools.cache
def _component(group: str, name: str) -> dict[str, Any]:
    """The component's own part of its YAML, wherever that file places it."""
    content = yaml.safe_load((conf_folder() / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return content.get(group, content)


def _target(group: str, name: str) -> Any:
    from metarun.config.components import locate

    return locate(group, _component(group, name))

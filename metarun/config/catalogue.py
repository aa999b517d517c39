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
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


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

"""Completion in the shell: Hydra offers groups, options and keys, and this module the values of settings with few."""

from __future__ import annotations

from pathlib import Path

import hydra.plugins.completion_plugin as hydras

from metarun.config.schema import CHOICES, COMPILE, Config, get

RUN_SETTINGS = ("run", "resume", "train.pretrained")


def list_values(key: str) -> list[str]:
    """The values to offer for a setting: its choices, true and false, or the runs below outputs; none for others."""
    if key in CHOICES:
        return [*CHOICES[key]]
    if key == "device.compile":
        return [*COMPILE]
    if key in RUN_SETTINGS:
        return ["latest", *sorted(str(path.parent) for path in Path("outputs").glob("*-*/*/config.yaml"))]
    try:
        return ["false", "true"] if isinstance(get(Config(), key), bool) else []
    except AttributeError:
        return []


def offer_values() -> None:
    """Have Hydra's completion offer them too."""
    query = hydras.CompletionPlugin._query

    def offer(plugin: hydras.CompletionPlugin, config_name: str | None, line: str) -> list[str]:
        key, equals, begun = line.rpartition(" ")[2].partition("=")
        values = list_values(key) if equals else []
        return [f"{key}={v}" for v in values if v.startswith(begun)] or query(plugin, config_name, line)

    hydras.CompletionPlugin._query = offer  # type: ignore[assignment,method-assign]

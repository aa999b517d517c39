"""List every setting: python docs/settings.py writes the tables of docs/settings.md.

Keys, defaults and meanings are those of `metarun help`; types are the annotations of the schema and of the classes that
the options name.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from metarun.cli.explain import OPEN, Setting, declared, option_settings, option_title
from metarun.config import catalogue, components, schema

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/settings.md"
MARKERS = "<!-- settings: made by docs/settings.py -->", "<!-- end of settings -->"
OF_EPISODES = dict.fromkeys(("ways", "shots", "queries", "test_queries"), "int")
OF_EPISODES |= dict.fromkeys(("train_ways", "train_shots"), "int | None")
"""Types of the settings that no component takes: the runner draws episodes of these sizes."""

TITLES = {"algo": "Algorithms", "data": "Data", "model": "Networks", "reg": "Regularizers", "analysis": "Analyses"}


def name_type(annotation: str) -> str:
    """A type in words: `int or null` for `Optional[int]`, the choices for a `Literal`."""
    if optional := re.fullmatch(r"(?:typing\.)?Optional\[(.*)\]", annotation):
        annotation = f"{optional[1]} | None"
    if literal := re.fullmatch(r"Literal\[(.*?)\]( \| None)?", annotation):
        annotation = ", ".join(part.strip(" \"'") for part in literal[1].split(",")) + (literal[2] or "")
    annotation = re.sub(r"(?:tuple|Sequence|list)\[([\w |]+)(?:, (?:\.\.\.|\w+))*\]", r"list of \1", annotation)
    annotation = re.sub(r"(?:dict|Mapping)\[.*\]|\bdict\b", "dictionary", annotation)
    return (
        annotation.replace("list of Any", "list").replace("None", "null").replace(" | ", " or ").replace("Any", "any")
    )


def types_of(target: Any) -> dict[str, str]:
    """The annotations of the settings of a component, with those of its bundles (config/components.py)."""
    found = {}
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    for name, parameter in inspect.signature(target).parameters.items():
        if dataclasses.is_dataclass(hints.get(name)):
            found |= types_of(hints[name])
        else:
            found[name] = str(parameter.annotation)
    return found


def table(settings: Iterable[Setting], types: dict[str, str]) -> list[str]:
    rows = ["| setting | type or choices | default | meaning |", "|---|---|---|---|"]
    for key, default, meaning in settings:
        kind = name_type(types.get(key, ""))
        empty = '`""`' if kind == "str" else "several lines"
        cells = [f"`{key}`", kind, f"`{default}`" if default else empty, meaning]
        rows.append("| " + " | ".join(escape(cell) for cell in cells) + " |")
    return [*rows, ""]


def escape(cell: str) -> str:
    """Text for a cell of a Markdown table; what stands in backticks is code."""
    parts = re.split("(`[^`]*`)", cell.replace("|", r"\|"))
    return "".join(p if p.startswith("`") else re.sub(r"([_*])", r"\\\1", p).replace("<", "&lt;") for p in parts)


def group_tables() -> list[str]:
    """The settings of the schema, a table for each group."""
    fields = [(f.name, type(getattr(schema.Config(), f.name))) for f in dataclasses.fields(schema.Config)]
    groups = {"": schema.Config} | {name: kind for name, kind in fields if dataclasses.is_dataclass(kind)}
    nested = [f"{name}." for name in groups if name]
    lines = []
    for name, kind in groups.items():
        at = f"{name}." if name else ""
        settings = [s for s in declared(kind, at) if name or not s.key.startswith((*nested, *OPEN, "choices"))]
        types = {f"{at}{f.name}": str(f.type) for f in dataclasses.fields(kind)}
        types |= {f"diagnostics.alarms.{f.name}": str(f.type) for f in dataclasses.fields(schema.AlarmConfig)}
        types |= {key: f"Literal[{', '.join(choices)}]" for key, choices in schema.CHOICES.items()}
        lines += [f"## {name or 'The run'}", "", *table(settings, types)]
    return lines


def option_tables(group: str) -> list[str]:
    """The settings of each option; of an option that is made from another one, those that differ."""
    lines = [f"## {TITLES[group]}: {group}=NAME", ""]
    for option in catalogue.list_options(group):
        node = catalogue.read_component(group, option)
        content = yaml.safe_load((catalogue.conf_folder() / group / f"{option}.yaml").read_text(encoding="utf-8"))
        settings = option_settings(group, option)
        same = [base for base in content.get("defaults", []) if base in catalogue.list_options(group)]
        known = {s for base in same for s in option_settings(group, base)}
        settings = [s for s in settings if s not in known]
        lines += [f"### {group}={option}", "", option_title(group, option), ""]
        lines += [f"All that is not below is as in [`{b}`](#{group}{b}).\n" for b in same]
        if settings:
            found = OF_EPISODES | (types_of(components.locate(group, node)) if node.get("_target_") else {})
            lines += table(settings, {f"{group}.{name}": kind for name, kind in found.items()})
    return lines


def tables() -> str:
    return "\n".join([*group_tables(), *(line for group in OPEN for line in option_tables(group))])


if __name__ == "__main__":
    start, end = MARKERS
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.partition(start)[0], page.partition(end)[2]
    PAGE.write_text(f"{before}{start}\n{tables()}\n{end}{after}", encoding="utf-8")

"""`metarun help WORD`: settings with their defaults and meanings, read from the lines where they are declared."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable
from typing import Any, NamedTuple

import yaml

from metarun.cli import cache
from metarun.config import catalogue
from metarun.config.schema import Config
from metarun.errors import UserError, nearest

DECLARED = re.compile(r"^    (\w+): [^=#]+?= (.*?)(?:  # (.*))?$")
LINE = re.compile(r"^(\s*)(\w+):(?: +(?!#)(.*?))?(?:\s+# (.*))?$")
OPEN = ("algo", "data", "model", "reg", "analysis")
"""Groups whose settings are those of the chosen option."""

SHARED = {
    "ways": "classes of an episode",
    "shots": "support examples of each class, or of a task without classes",
    "queries": "query examples in training, of each class or of a task without classes",
    "test_queries": "query examples in validation and test, likewise",
    "train_ways": "ways of training episodes; null: data.ways",
    "train_shots": "shots of training episodes; null: data.shots",
    "image_size": "pixels of a side",
    "split_seed": "which random split of the classes",
    "inner_steps": "of adaptation in training",
    "test_inner_steps": "of adaptation in validation and test",
    "first_order": "leave out second derivatives",
    "weight": "factor of the penalty",
    "final_weight": "of the schedule, at train.steps",
}
"""Meanings of settings that many options have, where their own line has none."""

NARROWEST = 60  # columns


class Setting(NamedTuple):
    key: str
    default: str
    meaning: str


def explain(word: str) -> str:
    """The lines for a group (`optim`, `algo`), an option (`algo.imaml`, `algo=imaml`) or a setting (`train.steps`,
    `algo.imaml.prox`), or for `cache`. Raise `UserError` for a word that is none of these."""
    if word == "cache":
        return cache.USAGE
    group, _, rest = word.replace("=", ".").partition(".")
    fields = {field.name: field for field in dataclasses.fields(Config)}
    if group in OPEN:
        option, _, key = rest.partition(".")
        options = catalogue.list_options(group)
        if not option:
            return lay_out([Setting(f"{group}={name}", "", option_title(group, name)) for name in options])
        if option not in options:
            raise UserError(f"help {word}: {group} has no option {option}, {nearest(option, options)}")
        title = f"{group}={option}: {option_title(group, option)}"
        return f"{title}\n\n{lay_out(_select(option_settings(group, option), f'{group}.{key}', word))}"
    if group not in fields:
        known = [*fields, "cache", *(f"{g}.{option}" for g in OPEN for option in catalogue.list_options(g))]
        raise UserError(f"help {word}: no such setting, {nearest(word, known)}")
    kind = type(getattr(Config(), group))
    found = declared(kind, f"{group}.") if dataclasses.is_dataclass(kind) else declared(Config, "")
    return lay_out(_select(found, word, word))


def _select(settings: list[Setting], prefix: str, word: str) -> list[Setting]:
    """The settings that begin with the words of `prefix`. Raise `UserError` if there is none."""
    chosen = [s for s in settings if f"{s.key}.".startswith(f"{prefix.rstrip('.')}.")]
    if not chosen:
        raise UserError(f"help {word}: no such setting, {nearest(prefix, [s.key for s in settings])}")
    return chosen


def declared(kind: Any, at: str) -> list[Setting]:
    """The fields of a class of the schema; of a field that is such a class, its fields."""
    found = []
    for line in inspect.getsource(kind).splitlines():
        if match := DECLARED.match(line):
            name, default, meaning = match.groups()
            value = getattr(kind(), name)
            if dataclasses.is_dataclass(value):
                found += declared(type(value), f"{at}{name}.")
            else:
                shown = "[]" if value == [] else "{}" if value == {} else _as_yaml(default)
                found.append(Setting(at + name, shown, meaning or ""))
    return found


def _as_yaml(default: str) -> str:
    return {"None": "null", "True": "true", "False": "false"}.get(default, default.strip('"'))


def option_settings(group: str, option: str) -> list[Setting]:
    """The settings of an option's YAML file and of the files that it is made from, which explain most of them."""
    text = (catalogue.conf_folder() / group / f"{option}.yaml").read_text(encoding="utf-8")
    bases = [
        entry for entry in yaml.safe_load(text).get("defaults", []) if isinstance(entry, str) and entry != "_self_"
    ]
    found = {s.key: s for base in bases for s in option_settings(group, base)}
    depth = 2 if "@package _global_" in text else 0  # of the settings' lines
    inside = group
    for line in text.splitlines():
        if not (match := LINE.match(line)):
            continue
        indent, key, value, meaning = match.groups()
        if depth and not indent:
            inside = key
        if inside == group and len(indent) == depth and key not in ("_target_", "defaults"):
            known = found.get(f"{group}.{key}", Setting("", "", ""))
            found[f"{group}.{key}"] = Setting(
                f"{group}.{key}", value or "", meaning or known.meaning or SHARED.get(key, "")
            )
    return list(found.values())


def option_title(group: str, option: str) -> str:
    """The first comment of an option's file."""
    text = (catalogue.conf_folder() / group / f"{option}.yaml").read_text(encoding="utf-8")
    comments = [line[2:] for line in text.splitlines() if line.startswith("# ") and "@package" not in line]
    return comments[0] if comments else ""


def lay_out(settings: Iterable[Setting]) -> str:
    """Key, default and meaning in columns, the meaning wrapped to the terminal's width."""
    settings = list(settings)
    width = max(NARROWEST, shutil.get_terminal_size().columns)
    keys, defaults = (min(34, max(len(s[i]) for s in settings)) for i in (0, 1))
    indent = keys + 2 + (defaults + 2 if defaults else 0)
    lines = []
    for key, default, meaning in settings:
        start = f"{key:{keys}}  " + (f"{default:{defaults}}  " if defaults else "")
        wrapped = textwrap.wrap(meaning, max(20, width - max(indent, len(start)))) or [""]
        lines += [start + wrapped[0], *(" " * max(indent, len(start)) + part for part in wrapped[1:])]
    return "\n".join(line.rstrip() for line in lines)

"""What is typed on the command line, before Hydra reads it: paths with any characters, and the options of a run."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from metarun.config.catalogue import GROUPS
from metarun.config.from_run import read_settings
from metarun.config.schema import JOBS_OF_A_RUN
from metarun.storage.progress import print_notice

OVERRIDE = re.compile(r"([+~]{0,2}[\w./@-]+)=(.*)", re.DOTALL)


def read_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra takes them: `~/` is the home folder, a path with characters of its grammar is quoted, and
    the options of a run that they name are added."""
    return add_run_choices([_quote_path(argument) for argument in arguments])


def _quote_path(argument: str) -> str:
    match = OVERRIDE.fullmatch(argument)
    if not match:
        return argument
    key, value = match.groups()
    if value == "~" or value.startswith("~/"):
        with contextlib.suppress(RuntimeError):  # no home folder
            value = str(Path(value).expanduser())
    if "/" not in value or value[0] in "[{'\"" or parse_value(value) is not None:
        return f"{key}={value}"
    return f'{key}="{value}"' if '"' not in value else f"{key}='{value}'"


def parse_value(value: str) -> Any:
    """The value of an override, quotes and escapes read; None if it is not in Hydra's grammar."""
    with contextlib.suppress(HydraException):
        return OverridesParser.create().parse_override(f"key={value}").value()
    return None


def add_run_choices(arguments: Sequence[str]) -> list[str]:
    """Add to a command line the options that its `run=` or `resume=` chose, for each group of which it sets a key.

    Without them Hydra, which knows nothing of the run, refuses `run=RUN_ON_OMNIGLOT data.root=THERE`: the default
    data set has no root. An option that is given twice is named: the last one counts.
    """
    positions = [i for i, argument in enumerate(arguments) if "=" in argument and not argument.startswith("-")]
    typed: dict[str, str] = {}
    for key, value in (arguments[i].lstrip("+~").split("=", 1) for i in positions):
        if key in (*GROUPS, "seed", "job", "run", "resume") and typed.get(key, value) != value:
            print_notice(f"{key}={typed[key]} and {key}={value}: the last one counts")
        typed[key] = value
    run = typed.get("resume") or (typed.get("run") if typed.get("job") in JOBS_OF_A_RUN else None)
    touched = {key.partition(".")[0] for key in typed if "." in key} & {*GROUPS} - typed.keys()
    source = parse_value(run) if run and touched else None
    if not isinstance(source, str):  # a sweep names several
        return [*arguments]
    stored = read_settings(source)
    chosen = [f"{group}={option}" for group, option in stored.get("choices", {}).items() if group in touched]
    return [*arguments[: positions[0]], *chosen, *arguments[positions[0] :]]

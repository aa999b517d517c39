"""What is typed on the command line, before Hydra reads it: paths with any characters, and the options of a run."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from metarun.cli.advice import FILE_NAMES, advise_file, advise_flag, advise_word, write_whole_numbers
from metarun.config.catalogue import GROUPS, read_experiment
from metarun.config.from_run import read_settings
from metarun.config.schema import JOBS_OF_A_RUN
from metarun.errors import UserError, nearest
from metarun.storage.progress import print_notice
from metarun.storage.run_folder import find_latest

OVERRIDE = re.compile(r"([+~]{0,2}[\w./@-]+)=(.*)", re.DOTALL)


def read_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra takes them: flags before settings, `~/` as the home folder, paths with characters of its
    grammar quoted, and with the options of a run that they name. Raise `UserError` for a flag that is not known."""
    flags, settings = _sort_arguments(arguments)
    settings = [_name_latest(setting) for setting in settings]
    for setting in settings:
        _refuse_list(setting)
    settings = add_run_choices([_quote_value(argument) for argument in settings])
    return [*flags, *(_open_swept_groups(settings) if {"-m", "--multirun"} & {*flags} else settings)]


def _name_latest(setting: str) -> str:
    """`run=latest` as the path of the newest run below outputs. Raise `UserError` if there is none."""
    key, _, value = setting.partition("=")
    if key not in ("run", "resume", "train.pretrained") or value != "latest":
        return setting
    path = find_latest()
    if path is None:
        raise UserError(f"{setting}: there is no run below {Path('outputs').absolute()}")
    print_notice(f"{setting}: {path}")
    return f"{key}={path}"


def _refuse_list(setting: str) -> None:
    """Raise `UserError` for a list of options, as `data=[omniglot,cub]`, of a group that takes one."""
    key, _, value = setting.partition("=")
    options = value.strip("[]").replace(" ", "").split(",")
    if key not in GROUPS or key == "reg" or not value.startswith("[") or len(options) < 2:
        return
    of_sets = "{" + ", ".join(f"{option}: PATH" for option in options) + "}"
    mixed = f"; data=mixed 'data.sets={of_sets}' draws each training task from one of them" if key == "data" else ""
    raise UserError(f"{setting}: {key} takes one option{mixed}")


def _open_swept_groups(settings: Sequence[str]) -> list[str]:
    """Let each job of a sweep check the keys of a group whose options are swept: Hydra composes the sweep itself with
    the default option, which may lack a key that the swept ones have."""
    swept = {o.key_or_group for o in map(_parse, settings) if o is not None and o.is_sweep_override()} & {*GROUPS}
    return ["++" + s if s.partition(".")[0] in swept and "." in s.partition("=")[0] else s for s in settings]


def _sort_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags with their values, and settings, wherever they stand: argparse takes settings in one piece only."""
    parser, given = get_args_parser(), list(arguments)
    takes_value = {o for a in parser._actions if a.nargs in (None, "?") for o in a.option_strings}
    flags, settings = [], []
    while given:
        word = given.pop(0)
        known = parser._option_string_actions
        if not word.startswith("-") or word == "-":
            if "=" not in word and given[:1] == ["="]:
                raise UserError(advise_word(word, given))
            if word.startswith(tuple(f"{name}=" for name in FILE_NAMES)):
                raise UserError(advise_file(word, word.partition("=")[2]))
            settings.append(write_whole_numbers(word))
            continue
        name = word.partition("=")[0]
        if name not in known:
            advice = advise_flag(word, given[0] if given else None)
            raise UserError(advice or f"{word}: no such flag, {nearest(name, known)} metarun --help has the settings")
        flags.append(word)
        optional_value = known[name].nargs == "?"
        if name in takes_value and "=" not in word and given and not (optional_value and "=" in given[0]):
            flags.append(given.pop(0))
    parser.error = _refuse  # type: ignore[method-assign]
    if "--version" not in flags:
        parser.parse_args(flags)
    return flags, settings


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; metarun --help has the settings")


def _quote_value(argument: str) -> str:
    match = OVERRIDE.fullmatch(argument)
    if not match:
        return argument
    key, value = match.groups()
    if value == "~" or value.startswith("~/"):
        with contextlib.suppress(RuntimeError):  # no home folder
            value = str(Path(value).expanduser())
    parsed = parse_value(value)
    number = key in GROUPS and isinstance(parsed, (int, float))  # the name of an option is a text
    if not number and ("/" not in value or value[0] in "[{'\"" or parsed is not None):
        return f"{key}={value}"
    return f'{key}="{value}"' if '"' not in value else f"{key}='{value}'"


def parse_value(value: str) -> Any:
    """The value of an override, quotes and escapes read; None if it is not in Hydra's grammar."""
    override = _parse(f"key={value}")
    return None if override is None else override.value()


def _parse(override: str) -> Override | None:
    with contextlib.suppress(HydraException):
        return OverridesParser.create().parse_override(override)
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
    if run and touched:
        touched -= read_experiment(typed.get("experiment", ""))[0]  # of its options, not of the run's
    source = parse_value(run) if run and touched else None
    if not isinstance(source, str):  # a sweep names several
        return [*arguments]
    stored = read_settings(source)
    chosen = [f"{group}={option}" for group, option in stored.get("choices", {}).items() if group in touched]
    return [*arguments[: positions[0]], *chosen, *arguments[positions[0] :]]

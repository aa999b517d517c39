"""Describe a user's mistake in one line, with the key, the value and the nearest valid names."""

from __future__ import annotations

import contextlib
import errno
import re
import shlex
import traceback
from collections.abc import Iterator
from typing import Any

from hydra.errors import OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.cli import experiments
from metarun.cli.advice import advise_key, advise_option, advise_word
from metarun.config import catalogue
from metarun.errors import UserError, nearest, one_line

EXTRAS = {
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/submitit_local": "submitit",
    "hydra/launcher/submitit_slurm": "submitit",
    "hydra/launcher/ray": "ray",
    "hydra/sweeper/optuna": "optuna",
}
"""Hydra's plugins, and the extra of metarun that installs each."""

TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
"""OmegaConf's names of types."""

SEVERAL = re.compile(r"Ambiguous value for argument '(.*?)'\s*1\.", re.DOTALL)  # Hydra's message
LAUNCHER = re.compile(r"hydra_plugins\.\w+_launcher\.")
HYDRAS = ("hydra.", "omegaconf.", "antlr4.", "yaml.")
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)

ADVICE = "HYDRA_FULL_ERROR=1 shows where"


def describe_usage_error(error: BaseException) -> str | None:
    """The line for the user, None if the error is not a user's mistake."""
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    for link in chain:
        if isinstance(link, UserError):
            return one_line(link)
    for link in chain:
        if hasattr(link, "missing_cfg_file"):
            return _missing_option(link)
    for link in chain:
        if several := SEVERAL.match(str(link)):
            setting, (key, _, values) = several[1], several[1].partition("=")
            return one_line(f"{setting}: several values are a sweep: metarun -m {setting}; a list is {key}=[{values}]")
    for link in chain:
        if isinstance(link, OverrideParseException):
            return _bad_override(link.override)
    for link in chain:
        if isinstance(link, OmegaConfBaseException) and link.key is not None:
            return _bad_key(link)
    for link in chain:
        if isinstance(link, OSError) and link.filename:
            return one_line(f"{link.filename}: {link.strerror}")
    for link in chain:
        if isinstance(link, OSError) and link.errno in DISK:  # an error in writing does not say which file it was
            return f"a file cannot be written ({link.strerror})"
    for link in chain:
        if isinstance(link, MemoryError):  # training has a line of its own (jobs/train.py)
            return one_line(f"out of memory ({link or 'MemoryError'}); smaller or fewer files take less")
    # Where a launcher or a library below it failed, and not a job that it ran, here or in a worker of its own.
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [str(frame.f_globals.get("__name__", "")) for frame in frames] or [""]  # the last one raised it
    remote = type(error.__cause__).__name__ == "_RemoteTraceback"
    starts = [n for n, module in enumerate(modules) if LAUNCHER.match(module)]
    if starts and not remote and not any(m.startswith("metarun") for m in modules[starts[0] :]):
        return one_line(f"hydra.launcher: cannot start jobs with these settings ({type(error).__name__}: {error})")
    # By the module that raised it: Hydra refuses some overrides with a bare ValueError.
    hydra_made = type(error).__module__.startswith(HYDRAS) or modules[-1].startswith(HYDRAS)
    return one_line(error) if hydra_made else None


def _missing_option(error: Any) -> str:
    """An option of a group that has no file: `algo=mamll`."""
    name = str(error.missing_cfg_file)
    group, _, option = name.rpartition("/")
    extra = EXTRAS.get(name)
    if extra:
        return f"{group}={option}: is not installed; pip install 'metarun[{extra}]'"
    if not group:
        return " ".join(str(error).split())
    if name.startswith(f"{experiments.GROUP}/"):
        own = error.options if group == experiments.GROUP else []  # else the names within a folder, without it
        option = name.removeprefix(f"{experiments.GROUP}/")
        return f"{experiments.GROUP}={option}: no such option, {experiments.nearest_names(option, own or [])}"
    options = [o for o in (error.options or catalogue.list_options(group)) if not o.startswith("_")]
    return f"{group}={option}: no such option, {advise_option(group, option) or nearest(option, options)}"


def _bad_override(override: str) -> str:
    """An argument that is not in Hydra's grammar."""
    key, equals, value = override.partition("=")
    if not equals:
        return one_line(advise_word(override, []))
    quoted = f"'{value}'" if '"' in value else f'"{value}"'
    needed = f"cannot be read; close its brackets and quotes, or quote it as text: {shlex.quote(f'{key}={quoted}')}"
    return one_line(f"{key}={value}: {needed}")


def _bad_key(error: OmegaConfBaseException) -> str:
    """A key that does not exist, or a value of the wrong type."""
    key = error.full_key or str(error.key)
    parent = error.parent_node
    reason = " ".join(str(error.msg or error).split("\n")[0].split())
    if re.search(r"not in struct|not in '|is not in", reason):
        if key == "_target_":  # of no group
            return "_target_: a component stands here; a YAML of model has no line `# @package _global_`"
        group, _, member = key.partition(".sets.")
        if member and group in ("data", "analysis"):  # config/data_sets.py
            return one_line(f"{key}: the sets are set together, as '{group}.sets={{NAME: PATH, NAME: PATH}}'")
        siblings: Any = [] if parent is None else OmegaConf.to_container(parent, resolve=False)
        return one_line(f"{key}: no such setting, {advise_key(key, siblings)}")
    if reason.endswith("is not Optional"):
        return f"{key}=null: must not be null"
    value = "" if error.value is None else f"={error.value}"
    if kind := re.search(r"could not be converted to (\w+)", reason):
        reason = f"must be {TYPES.get(kind[1], kind[1])}"
    return one_line(f"{key}{value}: {reason}")


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Raise a user's mistake in the block as `UserError`, with the line of the command line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message = describe_usage_error(error)
        if message is None:
            raise
        raise UserError(message) from error

"""Settings of a run that exists: what `resume=` and the jobs with `run=` start from, and what may be changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.config.schema import Config
from metarun.errors import SettingError, UserError, one_line
from metarun.storage.progress import print_notice
from metarun.storage.run_folder import RunFolder

CONTROL = ("resume", "resume_allow", "run", "job", "choices")
OF_A_RUN = ("evaluate", "predict", "analyze", "export", "profile")
RESUMABLE = (
    *("train.steps", "train.max_minutes", "train.checkpoint_every", "test", "logger", "device.threads", "report"),
    *("trusted_modules", "data.urls"),  # which are not taken from the run's own settings
)
"""What a resumed run may change; anything else would make it another run."""

GROUPS = (
    "algo",
    "data",
    "model",
    "reg",
    "optim",
    "device",
    "logger",
    "diagnostics",
    "analysis",
    "recipe",
    "experiment",
)
"""Groups of settings, whose chosen options a run folder keeps."""

PLAIN_PATH = re.compile(r"[\w./~-]+")  # neither quoted nor several, as Hydra's grammar has them
OPTION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*|\[[\w.,-]*\]")


def source_run(config: Config) -> RunFolder:
    """The run that `run=` names; `SettingError` when there is none."""
    if not config.run:
        raise SettingError(
            "run", None, f"job={config.job} needs a run's folder, as run=outputs/DATE/TIME-maml-sinusoid"
        )
    return RunFolder(Path(config.run))


def reuse_settings(config: Config, overrides: Sequence[str], compose: Callable[[Sequence[str]], Config]) -> Config:
    """The settings to run: the composed ones, or those of the named run with the command line's changes applied.

    The changes are what the overrides alter against the same composition without them; the stored settings
    decide everything else, so that a newer metarun's defaults do not slip into an old run.
    """
    source = config.resume or (config.run if config.job in OF_A_RUN else None)
    if source is None:
        return config
    stored = RunFolder(Path(source)).config()
    refuse_hostile(stored, source)
    groups = [f"{group}={option}" for group, option in stored.get("choices", {}).items()]
    asked = [o for o in overrides if o.partition("=")[0] not in CONTROL]
    base, changed = (OmegaConf.structured(compose([*groups, *more])) for more in ([], asked))
    changes = differences(_plain(base), _plain(changed)) | _named(asked, _plain(changed))
    if config.resume:
        _refuse_other_run(changes, stored, config)
    merged = _with_own_trust(_merge(stored, changes), _plain(changed))
    if config.job == "evaluate":
        merged["published"] = _published(stored, changes, _plain(changed))
    for key in CONTROL[:-1]:
        merged[key] = getattr(config, key)
    _tell_what_is_read(source, stored, changes)
    try:
        typed: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), merged))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(f"{source}: its settings are not those of this version ({_reason(error)})") from error
    return typed


def add_run_choices(arguments: Sequence[str]) -> list[str]:
    """A command line with the options that its `run=` or `resume=` chose, for each group of which it sets a key.

    Without them Hydra, which knows nothing of the run, refuses `run=RUN_ON_OMNIGLOT data.root=THERE`: the default
    data set has no root.
    """
    places = [i for i, typed in enumerate(arguments) if "=" in typed and not typed.startswith("-")]
    typed = dict(arguments[i].lstrip("+~").split("=", 1) for i in places)
    source = typed.get("resume") or (typed.get("run") if typed.get("job") in OF_A_RUN else None)
    touched = {key.partition(".")[0] for key in typed if "." in key} & {*GROUPS} - typed.keys()
    if not source or not touched or not PLAIN_PATH.fullmatch(source):
        return [*arguments]
    stored = RunFolder(Path(source)).config()
    refuse_hostile(stored, source)
    chosen = [f"{group}={option}" for group, option in stored.get("choices", {}).items() if group in touched]
    return [*arguments[: places[0]], *chosen, *arguments[places[0] :]]


def refuse_hostile(stored: dict[str, Any], source: str) -> None:
    """What metarun never writes into config.yaml, and what would be more than a setting there.

    An interpolation could read the environment or make folders; choices are typed to Hydra again.
    """
    for key, value in differences({}, {"": stored}).items():
        if any("${" in text or text == "???" for text in _texts([key, value])):
            raise UserError(f"{source}: config.yaml: {one_line(key[1:])} holds an interpolation; settings are plain")
    choices = stored.get("choices", {})
    if not isinstance(choices, dict):
        raise UserError(f"{source}: config.yaml: choices must be a table of groups and options")
    for group, option in choices.items():
        if group not in GROUPS or not isinstance(option, str) or not OPTION.fullmatch(option):
            raise UserError(
                f"{source}: config.yaml: choices.{one_line(group)}={one_line(option)}: is no choice of a group"
            )


def _texts(values: list[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, (list, dict)):
            yield from _texts([*value, *value.values()] if isinstance(value, dict) else value)
        elif isinstance(value, str):
            yield value


def _with_own_trust(merged: Any, own: dict[str, Any]) -> Any:
    """Which code may be run and what may be downloaded is said by who types the command, never by a run folder."""
    merged["trusted_modules"] = own["trusted_modules"]
    data = merged.get("data")
    if isinstance(data, DictConfig) and data.get("urls") is not None:
        data["urls"] = own["data"].get("urls", [])
    return merged


def _tell_what_is_read(source: str, stored: dict[str, Any], changes: dict[str, Any]) -> None:
    """Paths outside of the run folder, when it is the run folder that names them."""
    data = stored.get("data")
    for key in ("root", "split"):
        place = data.get(key) if isinstance(data, dict) else None
        if isinstance(place, str) and f"data.{key}" not in changes and (key == "root" or "/" in place):
            print_notice(f"{one_line(source)}: its data.{key} is read: {one_line(place)}")


def _named(overrides: Sequence[str], settings: dict[str, Any]) -> dict[str, Any]:
    """What the overrides set by name, also where that is the default: the stored run may have another value."""
    flat = differences({}, settings)
    names = dict.fromkeys(o.partition("=")[0].lstrip("+~") for o in overrides)
    return {key: flat[key] for key in names if key in flat}


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> new value, where the two trees differ."""
    found: dict[str, Any] = {}
    for key, value in new.items():
        before = old.get(key, {} if isinstance(value, dict) and value else None)
        if isinstance(value, dict) and isinstance(before, dict):
            found |= differences(before, value, f"{prefix}{key}.")
        elif value != before or key not in old:
            found[prefix + key] = value
    return found


def _refuse_other_run(changes: dict[str, Any], stored: dict[str, Any], config: Config) -> None:
    """Settings that would make it another run, unless `resume_allow` names them: then it is told that they did."""
    before, unknown = differences({}, stored), object()
    other = {k: v for k, v in changes.items() if v != before.get(k, unknown) and not _within(k, RESUMABLE)}
    other = {key: value for key, value in other.items() if not key.startswith("choices.")}
    refused = [key for key in other if not _within(key, config.resume_allow)]
    told = [f"{key}={other[key]} (the run has {before.get(key, 'no such setting')})" for key in other]
    if refused:
        first, *more = refused
        others = f", nor {', '.join(t for t in told if not t.startswith(f'{first}='))}" if more else ""
        raise UserError(
            f"{first}={other[first]}: cannot change in resume={config.resume}, which has "
            f"{before.get(first, 'no such setting')}{others}; choices: {', '.join(RESUMABLE)}; "
            f"resume_allow=[{','.join(refused)}] changes it all the same, and makes it another run from there on"
        )
    if other:
        print_notice(f"resume={config.resume}: from here on another run than it was: {', '.join(told)}")


def _within(key: str, nodes: Sequence[str]) -> bool:
    return any(key == node or key.startswith(f"{node}.") for node in nodes)


def _reason(error: Exception) -> str:
    return one_line((str(error) or type(error).__name__).splitlines()[0])[:200]


def _merge(stored: dict[str, Any], changes: dict[str, Any]) -> Any:
    try:
        merged = OmegaConf.create(stored)
    except (OmegaConfBaseException, ValueError, TypeError) as error:  # dates, keys that are no names ...
        raise UserError(f"config.yaml holds what is no setting ({_reason(error)})") from error
    for key, value in changes.items():
        OmegaConf.update(merged, key, value, force_add=True)
    return merged


def _published(stored: dict[str, Any], changes: dict[str, Any], typed: dict[str, Any]) -> Any:
    """A paper's figure is none for another test, unless the command brings one of its own, as that of a row."""
    if any(_within(key, ("published",)) for key in changes):
        return typed["published"]
    before = differences({}, stored)
    other = any(_within(k, ("algo", "data", "model", "test")) and v != before.get(k) for k, v in changes.items())
    return {} if other else stored.get("published", {})


def _plain(config: Any) -> Any:
    return OmegaConf.to_container(config)

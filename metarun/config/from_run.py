"""Settings of an existing run: what `resume=` and the jobs with `run=` start from, and what they may change."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.config.catalogue import GROUPS, list_options, read_component, read_experiment
from metarun.config.data_sets import INPUTS
from metarun.config.schema import COMMAND_SETTINGS, JOBS_OF_A_RUN, Config, resolve_paths, to_dict
from metarun.errors import SettingError, UserError, one_line
from metarun.storage.progress import print_notice
from metarun.storage.run_folder import RunFolder

RESUMABLE = (
    *("train.steps", "train.max_minutes", "train.checkpoint_every", "test", "logger", "report"),
    *("device.threads", "device.rank_patience", "device.side_by_side"),
    *("trusted_modules", "data.urls"),  # which the stored settings do not decide
)
"""Settings that a resumed run may change; any other would make it another run."""

SEARCH_PATH = "hydra.searchpath="
"""Begins an override that names folders of settings."""

OPTION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*|\[[\w.,-]*\]")


def open_source_run(config: Config) -> RunFolder:
    """Return the run that `run=` names. Raise `SettingError` if it names none."""
    if not config.run:
        needed = f"job={config.job} needs a run's folder, as run=outputs/DATE/TIME-maml-sinusoid"
        raise SettingError("run", None, needed)
    return RunFolder(Path(config.run))


def reuse_settings(config: Config, overrides: Sequence[str], compose: Callable[[Sequence[str]], Config]) -> Config:
    """Return the settings to run: the composed ones, or those of the named run with the changes of the command line.

    The changes are what the overrides alter against the same composition without them; the stored settings decide
    everything else, so that a newer metarun's defaults do not slip into an old run. A group whose option the command
    replaces (`data=folder`, or an experiment that chooses one) takes all its settings from the command, but for the
    size, channels and normalisation of images that the command does not set.
    """
    if config.run and config.job not in JOBS_OF_A_RUN:
        needed = f"job={config.job} reads no run; choices: {', '.join(f'job={job}' for job in JOBS_OF_A_RUN)}"
        raise SettingError("run", config.run, f"{needed}; resume={config.run} continues it")
    source = config.resume or config.run
    if source is None:
        return config
    stored = read_settings(source)
    folders = [o for o in overrides if o.startswith(SEARCH_PATH)]
    asked = [o for o in overrides if o.partition("=")[0] not in COMMAND_SETTINGS and o not in folders]
    # The settings of a pair, or of an experiment, are those of the options that it was made for.
    named = dict(o.split("=", 1) for o in asked if "=" in o)
    own, of_experiment = read_experiment(named.get("experiment", ""))
    own -= named.keys()
    other = {"algo", "data"} & (named.keys() | own)
    left_out = ("analysis", *(("recipe", "experiment") if other else ()))  # a run of an analysis is not one of its jobs
    choices = {k: v for k, v in stored.get("choices", {}).items() if k not in left_out}
    base, known = _compose_choices(compose, choices, folders)
    kept = [f"{group}={option}" for group, option in known.items() if group not in own]
    typed = to_dict(compose([*folders, *kept, *asked]))
    flat, keys = diff_settings({}, typed), [o.partition("=")[0].lstrip("+~") for o in asked]
    differences = diff_settings(base, typed)
    for group in (choices.keys() - known.keys()) & {*keys}:  # in place of an option that is not at hand
        differences[f"choices.{group}"] = flat[f"choices.{group}"]
    # Also values that equal the default: the stored run may have others. One that goes on has its experiment's already.
    chosen = keys if config.resume else [*of_experiment, *keys]
    changes = _select_changes(differences, keys) | {key: flat[key] for key in chosen if key in flat}
    if "choices.data" in changes:
        changes |= _keep_inputs(stored, typed, keys)
    if config.job == "evaluate" and typed["device"]["precision"] == "bfloat16" and "device.precision" in keys:
        changes.setdefault("test.precision", "bfloat16")  # asked for, also where it is slow
    if config.resume:
        _refuse_other_run(changes, stored, config)
    else:
        before = diff_settings({}, stored)
        typed_anew = {key: flat[key] for key in keys if key in flat and flat[key] != before.get(key)}
        _refuse_changes_without_effect(typed_anew, stored, config)
    merged = _merge(stored, changes, typed)
    _set_trust(merged, typed)
    if config.job == "evaluate":
        merged["published"] = _select_published(stored, changes, typed)
    for key in COMMAND_SETTINGS[:-1]:
        merged[key] = getattr(config, key)
    trained, tested = choices.get("algo"), changes.get("choices.algo", choices.get("algo"))
    if trained != tested:
        print_notice(
            f"algo={tested}: adapts the weights that algo={trained} trained; what else it learns has its first values"
        )
    _print_paths_read(source, stored, changes)
    return _to_config(source, merged)


def read_other_run(source: str, command: Config) -> Config:
    """Return the settings of a run to test beside the one of the command: its own, but for the device and for what a
    run folder does not decide, which are those of the command."""
    stored, typed = read_settings(source), to_dict(command)
    merged, option = _merge(stored, {}, typed), stored.get("choices", {}).get("data")
    if option != command.choices.get("data"):  # its downloads are those of its own option
        typed["data"] = {"urls": _shipped_urls(option)}
    _set_trust(merged, typed)
    merged["device"] = typed["device"]
    for key in COMMAND_SETTINGS[:-1]:
        merged[key] = getattr(Config(job="evaluate"), key)
    _print_paths_read(source, stored, {})
    return _to_config(source, merged)


def _to_config(source: str, merged: Any) -> Config:
    try:
        settings: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), merged))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(f"{source}: its settings are not those of this version ({_first_line(error)})") from error
    return settings


def _compose_choices(
    compose: Callable[[Sequence[str]], Config], choices: dict[str, Any], folders: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a run's options, and those options that there still are: a YAML of the user's own may not be at
    hand, and the run has its settings anyway."""
    choices = {**choices}
    while True:
        try:
            return to_dict(compose([*folders, *(f"{group}={option}" for group, option in choices.items())])), choices
        except Exception as error:  # Hydra's, which only the command line may import
            group, _, option = str(getattr(error, "missing_cfg_file", "")).partition("/")
            if choices.get(group) != option:
                raise
            del choices[group]


def _merge(stored: dict[str, Any], changes: dict[str, Any], typed: dict[str, Any]) -> Any:
    """The stored settings with the changes; a group of another option than the stored one is that of the command."""
    try:
        merged: Any = OmegaConf.create(stored)
    except (OmegaConfBaseException, ValueError, TypeError) as error:  # dates, keys that are no names, ...
        raise UserError(f"config.yaml holds what is no setting ({_first_line(error)})") from error
    for group in _replaced(changes):
        merged[group] = typed[group]
    for key, value in changes.items():
        OmegaConf.update(merged, key, value, force_add=True, merge=False)
    return merged


def _select_changes(changes: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """What the command changes: all differences, but those that a replaced option makes in other groups, such as the
    network that a data set is trained with."""
    replaced = _replaced(changes)
    if not replaced or {"experiment", "recipe"} & {*keys}:
        return changes
    return {k: v for k, v in changes.items() if _is_below(k, [*replaced, *keys, *(f"choices.{g}" for g in replaced)])}


def _keep_inputs(stored: dict[str, Any], typed: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Those of `INPUTS` that both data sets have and the command does not set, as the run has them: its network needs
    them. An older run has the default of a setting that it lacks."""
    option = stored.get("choices", {}).get("data")
    had = (read_component("data", option) if option in list_options("data") else {}) | stored["data"]
    both = [key for key in INPUTS if key in had and key in typed["data"] and f"data.{key}" not in keys]
    kept = {f"data.{key}": had[key] for key in both}
    other = [f"{key}={value}" for key, value in kept.items() if value != typed["data"][key.partition(".")[2]]]
    if other:
        print_notice(f"{', '.join(other)}: as in the run")
    return kept


def _replaced(changes: dict[str, Any]) -> list[str]:
    """The groups whose option is another one."""
    return [group for group in ("algo", "data", "model", "reg", "analysis") if f"choices.{group}" in changes]


def _refuse_changes_without_effect(changes: dict[str, Any], stored: dict[str, Any], config: Config) -> None:
    """Raise `SettingError` for settings of training in a job that does not train, and for a shorter curve than the
    adaptation whose end is the result."""
    untrained = () if config.job in ("analyze", "profile") else ("train", "val", "optim")
    for key in changes:
        if _is_below(key, untrained):
            needed = f"has no effect on job={config.job}, which trains nothing; resume={config.run} trains on"
            raise SettingError(key, changes[key], needed)
    steps, algo = changes.get("test.steps"), stored.get("algo", {})
    result = changes.get("algo.test_inner_steps", algo.get("test_inner_steps") if isinstance(algo, dict) else None)
    if isinstance(steps, int) and isinstance(result, int) and steps < result:
        needed = f"is the length of the curve, and the result is taken after algo.test_inner_steps={result} steps"
        raise SettingError("test.steps", steps, f"{needed}; algo.test_inner_steps={steps} tests after {steps}")


def read_settings(source: str) -> dict[str, Any]:
    """Read the settings of a run. Raise `UserError` for what metarun never writes there.

    An interpolation could read the environment or make folders; choices are given to Hydra again.
    """
    stored = RunFolder(Path(source)).read_config()
    for key, value in diff_settings({}, {"": stored}).items():
        if any("${" in text or text == "???" for text in _strings([key, value])):
            raise UserError(f"{source}: config.yaml: {one_line(key[1:])} holds an interpolation; settings are plain")
    choices = stored.get("choices", {})
    if not isinstance(choices, dict):
        raise UserError(f"{source}: config.yaml: choices must be a table of groups and options")
    for group, option in choices.items():
        if group not in GROUPS or not isinstance(option, str) or not OPTION.fullmatch(option):
            choice = f"choices.{one_line(group)}={one_line(option)}"
            raise UserError(f"{source}: config.yaml: {choice}: is no choice of a group")
    resolve_paths(stored["data"])
    return stored


def _strings(values: list[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, (list, dict)):
            yield from _strings([*value, *value.values()] if isinstance(value, dict) else value)
        elif isinstance(value, str):
            yield value


def _set_trust(merged: Any, typed: dict[str, Any]) -> None:
    """Take from the command line, and never from a run folder, which code may run and what may be downloaded."""
    merged["trusted_modules"] = typed["trusted_modules"]
    data = merged.get("data")
    if isinstance(data, DictConfig) and data.get("urls") is not None:
        data["urls"] = typed["data"].get("urls", [])
    for _, member in _members(data):
        if "urls" in member:
            member["urls"] = _shipped_urls(member.get("data"))


def _shipped_urls(option: Any) -> list[Any]:
    """What the shipped option of a data set downloads."""
    return read_component("data", option).get("urls", []) if option in list_options("data") else []


def _print_paths_read(source: str, stored: dict[str, Any], changes: dict[str, Any]) -> None:
    """Print the paths outside of the run folder that the run folder itself names."""
    data = stored.get("data")
    named = {"data": data if isinstance(data, dict) else {}}
    if "data.sets" not in changes:
        named |= {f"data.sets.{name}": member for name, member in _members(data)}
    for at, settings in named.items():
        for key in ("root", "file", "split"):
            path = settings.get(key)
            if isinstance(path, str) and f"{at}.{key}" not in changes and (key != "split" or "/" in path):
                print_notice(f"{one_line(source)}: reading {one_line(at)}.{key}={one_line(path)}")


def _members(data: Any) -> list[tuple[str, Any]]:
    """The names and the settings of the data sets that the settings `data` mix."""
    sets = data.get("sets") if isinstance(data, (dict, DictConfig)) else None
    found = sets.items() if isinstance(sets, (dict, DictConfig)) else ()
    return [(str(name), member) for name, member in found if isinstance(member, (dict, DictConfig))]


def diff_settings(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted key -> new value where two trees differ."""
    changed: dict[str, Any] = {}
    for key, value in new.items():
        before = old.get(key, {} if isinstance(value, dict) and value else None)
        if isinstance(value, dict) and isinstance(before, dict):
            changed |= diff_settings(before, value, f"{prefix}{key}.")
        elif value != before or key not in old:
            changed[prefix + key] = value
    return changed


def _refuse_other_run(changes: dict[str, Any], stored: dict[str, Any], config: Config) -> None:
    """Raise `UserError` for changes that make it another run; print them if `resume_allow` names all of them."""
    before, unknown = diff_settings({}, stored), object()
    harmless = (*RESUMABLE, "choices")
    other = {k: v for k, v in changes.items() if v != before.get(k, unknown) and not _is_below(k, harmless)}
    refused = [key for key in other if not _is_below(key, config.resume_allow)]
    described = [f"{key}={other[key]} (the run has {before.get(key, 'no such setting')})" for key in other]
    if refused:
        first, *more = refused
        others = f", nor {', '.join(t for t in described if not t.startswith(f'{first}='))}" if more else ""
        raise UserError(
            f"{first}={other[first]}: cannot change in resume={config.resume}, which has "
            f"{before.get(first, 'no such setting')}{others}; choices: {', '.join(RESUMABLE)}; "
            f"resume_allow=[{','.join(refused)}] allows it; from there on it is another run"
        )
    if other:
        print_notice(f"resume={config.resume}: from here on another run than it was: {', '.join(described)}")


def _is_below(key: str, nodes: Sequence[str]) -> bool:
    return any(key == node or key.startswith(f"{node}.") for node in nodes)


def _first_line(error: Exception) -> str:
    return one_line((str(error) or type(error).__name__).splitlines()[0])[:200]


def _select_published(stored: dict[str, Any], changes: dict[str, Any], typed: dict[str, Any]) -> Any:
    """The paper's metrics: those that the command sets, or the stored ones unless it changes what is tested."""
    if any(_is_below(key, ("published",)) for key in changes):
        return typed["published"]
    before = diff_settings({}, stored)
    asked = {k: v for k, v in changes.items() if k != "test.precision"}
    other = any(_is_below(k, ("algo", "data", "model", "test")) and v != before.get(k) for k, v in asked.items())
    return {} if other else stored.get("published", {})

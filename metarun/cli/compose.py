"""Compose settings with Hydra: the schema, the folders of a job, and `compose`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from metarun.cli import experiments
from metarun.cli.overrides import read_arguments
from metarun.config.catalogue import GROUPS, PACKAGED, conf_folder
from metarun.config.data_sets import complete_sets
from metarun.config.from_run import reuse_settings
from metarun.config.schema import Config, refuse_unknown, resolve_paths
from metarun.errors import UserError
from metarun.storage.locks import find_owner
from metarun.storage.run_folder import RunFolder, new_folder

CONFIG_PATH = "pkg://metarun.conf" if PACKAGED.is_dir() else str(conf_folder())


def compose(overrides: Sequence[str], config_dir: str | Path | None = None) -> Config:
    """Return the settings that these overrides give on the command line, those of a run that they name included;
    `config_dir` has further YAML files."""
    arguments = read_arguments(overrides)
    token = experiments.own_folder.set(config_dir)
    try:
        return reuse_settings(compose_options(arguments, incomplete=False), arguments, compose_options)
    finally:
        experiments.own_folder.reset(token)


def compose_options(overrides: Sequence[str], incomplete: bool = True) -> Config:
    """Compose the settings of these overrides, without those of a run that they name. `incomplete`: a value that its
    file leaves open (???) is None, to come from the run."""
    if GlobalHydra.instance().is_initialized():
        return _compose(overrides, incomplete)
    path = CONFIG_PATH.removeprefix("pkg://")
    start = hydra.initialize_config_module if path != CONFIG_PATH else hydra.initialize_config_dir
    with start(path, version_base="1.3"):
        return _compose(overrides, incomplete)


def _compose(overrides: Sequence[str], incomplete: bool) -> Config:
    composed = hydra.compose("config", list(overrides), return_hydra_config=True)
    choices = composed.hydra.runtime.choices
    OmegaConf.set_struct(composed, False)
    composed.pop("hydra")
    return to_config(composed, choices, incomplete)


def to_config(composed: DictConfig, choices: Any, incomplete: bool = False) -> Config:
    """Convert composed settings to the schema's class, with the chosen option of each group."""
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing and not (incomplete or composed.run or composed.resume):
        raise UserError(f"{missing[0]}: needs a value; its file has ??? in its place")
    for key in missing:
        OmegaConf.update(composed, key, None)
    config: Any = OmegaConf.to_object(composed)
    refuse_unknown(config)
    refuse_hidden_options(choices)
    complete_data_sets(config, choices)
    resolve_paths(config.data)
    resolve_paths(config.model)
    config.choices = {group: choices[group] for group in GROUPS if choices.get(group)}
    if "reg" not in config.choices:  # Hydra does not say what reg=[l1,l2] chose
        config.choices["reg"] = f"[{','.join(config.reg)}]"
    return config


def refuse_hidden_options(choices: Any) -> None:
    """Raise `UserError` for an option that two sources of settings have: Hydra takes the first without a word."""
    sources = [s for s in GlobalHydra.instance().config_loader().get_sources() if s.scheme() in ("file", "pkg")]
    for group in GROUPS:
        name = f"{group}/{choices.get(group)}"
        paths = dict.fromkeys(s.path for s in sources if s.available() and s.is_config(name))
        if len(paths) > 1:
            taken, hidden, *_ = paths
            raise UserError(
                f"{group}={choices[group]}: {taken} has an option of this name too; rename that of {hidden}"
            )


def complete_data_sets(config: Config, choices: Any) -> None:
    """Complete the settings that name several data sets, each as `data=OPTION` gives them with this algorithm."""

    def compose_data(option: str) -> dict[str, Any]:
        return dict(_compose([f"algo={choices['algo']}", f"data={option}"], incomplete=True).data)

    for group in ("data", "analysis"):
        node = getattr(config, group)
        if node.get("sets") is not None and str(node.get("_target_")).startswith("metarun."):
            node["sets"] = complete_sets(group, node["sets"], compose_data)
            resolve_paths(node)


def default_folder(config: Config) -> str:
    """The run folder of settings for which none is given."""
    names = {group: config.choices.get(group, "own") for group in ("algo", "data")}
    analysis = config.choices.get("analysis")
    return new_run_folder(config.resume, config.job, names["algo"], names["data"], config.run, analysis)


def new_run_folder(resume: str | None, job: str, algo: str, data: str, run: str | None, analysis: str | None) -> str:
    """Make outputs/DATE/TIME-ALGO-DATA; the folder of a job is the old one for `resume`, one inside the run for its
    analysis."""
    analysed = run if job == "analyze" and analysis else None
    if resume or analysed:
        RunFolder(Path(resume or analysed or "")).read_config()  # before Hydra writes anything there
        return resume or f"{analysed}/analyses/{analysis}"
    now = datetime.now()
    name = f"{algo}-{data}" if job == "train" else job
    return str(new_folder(Path("outputs") / f"{now:%Y-%m-%d}", f"{now:%H-%M-%S}-{name}"))


def hydra_subfolder(resume: str | None, folder: str) -> str | None:
    """The subfolder for Hydra's own files, None for none.

    There is none if another process writes to the folder, which this job notices only later, or if the run has ended,
    whose files all stay unchanged.
    """
    if find_owner(Path(folder)) or (resume and RunFolder(Path(resume)).has_ended()):
        return None
    return ".hydra/resumed" if resume else ".hydra"


# Hydra copies all sources of settings whenever it lists a group, a hundred times for --help, and the store of schemas
# with them. A process has one store, and what it loads are copies anyway.
ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]

SCHEMA = OmegaConf.structured(Config)
for open_group in (
    SCHEMA.model,
    SCHEMA.reg,
    SCHEMA.loss,
    SCHEMA.metrics,
):  # keys that no option has, as model.args.width
    OmegaConf.set_struct(open_group, False)
ConfigStore.instance().store(name="schema", node=SCHEMA)
experiments.register()
OmegaConf.register_new_resolver("metarun.folder", new_run_folder, use_cache=True, replace=True)
OmegaConf.register_new_resolver("metarun.groups", experiments.list_groups, replace=True)
OmegaConf.register_new_resolver("metarun.subdir", hydra_subfolder, replace=True)

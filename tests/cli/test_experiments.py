"""The two names of an experiment, that of its folder and file and the flat one, mean the same wherever one is typed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Glob

import metarun
from metarun.cli import experiments
from metarun.config import catalogue
from metarun.config.schema import Config
from metarun.storage.run_folder import RunFolder

TINY = ["train.steps=2", "train.tasks=3", "val.tasks=2", "test.tasks=3", "device.compile=false", "report=false"]


def settings(config: Config) -> dict[str, object]:
    """All settings but the names that were chosen."""
    return dataclasses.asdict(config) | {"choices": None}


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "metarun", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    "path", ["omniglot/5w1s_maml", "omniglot/5w1s_maml_cpu", "gp/np_latent", "sinusoid/5s_maml", "point_robot/dense_l1"]
)
def test_both_names_compose_the_same_and_the_typed_one_is_kept(path: str) -> None:
    flat = catalogue.flat_name(path)
    one, other = metarun.compose([f"experiment={flat}"]), metarun.compose([f"experiment={path}"])
    assert settings(one) == settings(other)
    assert (one.choices["experiment"], other.choices["experiment"]) == (flat, path)


def test_each_experiment_in_a_folder_has_a_flat_name_of_its_own() -> None:
    names = catalogue.list_options("experiment")
    flat = [catalogue.flat_name(name) for name in names]
    assert len({*flat}) == len(names)
    for name, alias in zip(names, flat, strict=True):
        assert (catalogue.experiment_path(alias) or alias) == name


def test_a_stored_run_with_a_flat_name_is_evaluated_with_a_changed_setting(tmp_path: Path) -> None:
    config = metarun.compose(["experiment=sinusoid_maml", *TINY])
    metarun.run(config, tmp_path / "run")
    assert RunFolder(tmp_path / "run").read_config()["choices"]["experiment"] == "sinusoid_maml"
    for name in ("sinusoid_5s_maml", "sinusoid/5s_maml"):
        typed = ["job=evaluate", f"run={tmp_path / 'run'}", f"experiment={name}"]
        changed = metarun.compose(typed)
        assert (changed.data["shots"], changed.train.tasks) == (5, 3)


def test_a_sweep_takes_both_names_and_a_file_of_ones_own_inherits_from_either(tmp_path: Path) -> None:
    own = tmp_path / "own/experiment"
    own.mkdir(parents=True)
    for name, parent in (("mine", "sinusoid_maml"), ("other", "sinusoid/maml")):
        (own / f"{name}.yaml").write_text(f"# @package _global_\ndefaults:\n  - {parent}\ntrain:\n  log_every: 7\n")
    names = "experiment=sinusoid_maml,sinusoid/reptile,mine,other"
    done = command("--config-dir", "own", "-m", names, *TINY, "train.steps=1", "test.steps=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stored = {}
    for path in tmp_path.glob("multirun/*/*/*/config.yaml"):
        config = RunFolder(path.parent).read_config()
        stored[config["choices"]["experiment"]] = config
    assert {*stored} == {"sinusoid_maml", "sinusoid/reptile", "mine", "other"}
    assert stored["mine"] | {"choices": 0} == stored["other"] | {"choices": 0}
    assert stored["mine"]["train"]["log_every"] == 7
    assert stored["mine"]["model"] == stored["sinusoid_maml"]["model"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("omniglot_5w1s_mamml", "did you mean omniglot/5w1s_maml or "),
        ("omniglot/5w1s_mamml", "did you mean omniglot/5w1s_maml or "),
        ("few_clases", "did you mean few_classes?"),
        (
            "gp",
            "choices: gp/anp, gp/cnp, gp/convcnp, gp/cvae, gp/imaml, gp/lengths_anp, ",
        ),
        ("xyz", "choices: bayes_gap, cifar_fs/..., completion/..., debug, few_classes, "),
        ("mime", "did you mean mine?"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_or_the_folders(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("# @package _global_\nseed: 5\n")
    done = command("--config-dir", ".", f"experiment={name}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"metarun: experiment={name}: no such option, {message}")


def test_help_lists_folders_of_experiments_and_not_what_is_in_them(tmp_path: Path) -> None:
    printed = command("--help", cwd=tmp_path).stdout.splitlines()
    listed = next(line for line in printed if line.startswith("experiment: ")).partition(": ")[2].split(", ")
    assert listed == experiments.in_folders(catalogue.list_options("experiment"))
    assert {"omniglot/...", "sinusoid/...", "few_classes"} <= {*listed}
    assert "algo: anil, anp, " in "\n".join(printed)


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("experiment=o", ["experiment=omniglot/"]),
        ("experiment=few", ["experiment=few_classes"]),
        ("experiment=gp/np", ["experiment=gp/np", "experiment=gp/np_latent"]),
    ],
)
def test_completion_goes_folder_by_folder(typed: str, completed: list[str], tmp_path: Path) -> None:
    done = command("-sc", "query=bash", cwd=tmp_path, COMP_LINE=f"metarun {typed}")
    assert done.stdout.split() == completed


def test_a_glob_of_a_sweep_finds_experiments_in_their_folders() -> None:
    experiments.register()
    with initialize_config_dir(str(catalogue.conf_folder()), version_base="1.3"):
        found = GlobalHydra.instance().config_loader().get_group_options("experiment")
    assert Glob(include=["gp/np*"]).filter(found) == ["gp/np", "gp/np_latent"]

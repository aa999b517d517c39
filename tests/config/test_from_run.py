"""Settings of a run that exists: what a command with `run=` takes from it, and what it changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.commands import metarun
from helpers.folder_data import picture
from helpers.image_files import as_folder, png

from metarun.cli.compose import compose
from metarun.cli.overrides import add_run_choices, read_arguments
from metarun.config.schema import to_dict
from metarun.errors import UserError

TINY = ["train.steps=4", "train.tasks=2", "val.tasks=2", "test.tasks=5", "test.steps=3", "report=false"]
TINY += ["device.compile=false", "device.threads=1", "diagnostics=off"]


def test_evaluating_a_run_gives_its_test_figure_again_and_another_one_for_other_episodes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert metarun(*TINY, f"hydra.run.dir={folder}", cwd=tmp_path).returncode == 0
    trained = json.loads((folder / "summary.json").read_text())
    for name, change in (("same", []), ("five", ["data.shots=5"])):
        changed = ["job=evaluate", f"run={folder}", f"hydra.run.dir={tmp_path / name}", *change]
        assert metarun(*changed, cwd=tmp_path).returncode == 0
    same, five = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("same", "five"))
    assert {k: same[k] for k in ("mean", "curve", "episodes_sha256", "params_sha256")} == {
        k: trained[k] for k in ("mean", "curve", "episodes_sha256", "params_sha256")
    }
    assert (five["shots"], five["params_sha256"]) == (5, trained["params_sha256"])
    assert five["episodes_sha256"] != trained["episodes_sha256"]


def test_settings_of_the_options_that_a_run_has_chosen_are_known_beside_it(tmp_path: Path) -> None:
    """A Gaussian process has a noise and a kernel, the sinusoids that metarun takes by itself no kernel."""
    chosen = ["algo=imaml", "data=gp"]
    assert metarun(*TINY, *chosen, "hydra.run.dir=run", cwd=tmp_path).returncode == 0
    done = metarun("job=evaluate", "run=run", "hydra.run.dir=other", "data.kernel=matern", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((tmp_path / "other/config.yaml").read_text())
    assert (config["data"]["kernel"], config["algo"]["_target_"]) == ("matern", "metarun.algorithms.imaml.IMAML")
    wrong = metarun("job=evaluate", "run=run", "data.kernle=matern", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr) == (2, "metarun: data.kernle: no such setting, did you mean kernel?\n")


def test_options_of_ones_own_folder_need_not_be_at_hand_again(tmp_path: Path) -> None:
    """The run has their settings; with the folder, named in either way, its keys can be changed."""
    (tmp_path / "own/algo").mkdir(parents=True)
    (tmp_path / "own/algo/quick.yaml").write_text("# @package _global_\ndefaults:\n  - maml\nalgo:\n  inner_lr: 0.3\n")
    assert metarun(*TINY, "-cd", "own", "algo=quick", "hydra.run.dir=run", cwd=tmp_path).returncode == 0
    search = f"hydra.searchpath=[file://{tmp_path / 'own'}]"

    def tested(*typed: str) -> dict[str, Any]:
        done = metarun("job=evaluate", "run=run", "hydra.run.dir=other", *typed, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return yaml.safe_load((tmp_path / "other/config.yaml").read_text())["algo"]

    assert tested()["inner_lr"] == 0.3
    assert tested("-cd", "own", "algo.inner_lr=0.2")["inner_lr"] == 0.2
    assert tested(search, "algo.inner_lr=0.1")["inner_lr"] == 0.1
    assert tested("algo=fomaml")["first_order"] is True


def test_an_experiment_brings_the_algorithm_and_the_data_that_it_chooses(tmp_path: Path) -> None:
    """As in training; one that chooses none leaves the run's."""
    assert metarun(*TINY, "algo=fomaml", "hydra.run.dir=run", cwd=tmp_path).returncode == 0

    def tested(*typed: str) -> dict[str, Any]:
        done = metarun("job=evaluate", "run=run", "hydra.run.dir=other", "test.tasks=2", *typed, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return yaml.safe_load((tmp_path / "other/config.yaml").read_text())

    other = tested("experiment=sinusoid_20s_reptile", "algo.inner_batch=4", "model.init_std=null")
    assert (other["choices"]["algo"], other["data"]["shots"], other["algo"]["inner_batch"]) == ("reptile", 20, 4)
    same = tested("experiment=debug")
    assert (same["choices"]["algo"], same["algo"]["first_order"]) == ("fomaml", True)


def test_a_run_that_an_analysis_trained_can_be_analysed(tmp_path: Path) -> None:
    """By the same analysis as well, whose settings its own record does not have."""
    asked = ["analysis=seeds", "analysis.seeds=2", *TINY]
    assert metarun("job=analyze", *asked, "hydra.run.dir=first", cwd=tmp_path).returncode == 0
    (inner, *_) = sorted((tmp_path / "first").glob("**/runs/*/config.yaml"))
    done = metarun("job=analyze", f"run={inner.parent}", "analysis=seeds", "analysis.seeds=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "trained", [["experiment=omniglot_20w1s_maml"], ["algo=maml", "data=omniglot", "data.ways=20"]]
)
@pytest.mark.parametrize("tested", ["omniglot_5w1s_unicorn", "omniglot_5w1s_maml"])
def test_an_experiment_sets_all_that_it_has_also_what_equals_a_default(
    trained: list[str], tested: str, tmp_path: Path
) -> None:
    """It has 5 ways, as the default; the run has 20, by an experiment or by its command."""
    assert compose(["algo=maml", "data=omniglot"]).data["ways"] == 5
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(compose(trained))))
    found, alone = (
        compose(["job=evaluate", f"run={tmp_path}", f"experiment={tested}"]),
        compose([f"experiment={tested}"]),
    )
    assert (found.data, found.algo) == (alone.data, alone.algo)
    kept = compose(["job=evaluate", f"run={tmp_path}", "algo=unicorn"])
    assert kept.data["ways"] == 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    choices = {"algo": "imaml", "data": "omniglot", "reg": "[l1]"}
    stored = {"algo": {}, "data": {}, "train": {}, "choices": choices}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    return tmp_path


def test_another_data_set_keeps_the_size_channels_and_normalisation_of_the_run(tmp_path: Path) -> None:
    """The network was made for these inputs; the command can set each of them, and everything else is its own."""
    pictures = {f"{c}/{i}.png": png(picture(10 * c + i, 12)) for c in range(12) for i in range(4)}
    as_folder(tmp_path / "one", pictures)
    as_folder(tmp_path / "other", pictures)
    trained = ["data=folder", "data.root=one", "data.image_size=16", "data.normalize=centred", "data.channels=1"]
    trained += ["data.ways=2", "data.queries=2", "data.test_queries=2", "data.flip=true", "algo.test_inner_steps=3"]
    assert metarun(*TINY, *trained, "model.filters=4", "hydra.run.dir=run", cwd=tmp_path).returncode == 0
    typed = ["data=miniimagenet", "data.root=other", "data.split=all", "data.test_queries=2", "data.ways=2"]
    done = metarun("job=evaluate", "run=run", "hydra.run.dir=out", *typed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "data.image_size=16, data.channels=1, data.normalize=centred: as in the run" in done.stderr
    data = yaml.safe_load((tmp_path / "out/config.yaml").read_text())["data"]
    assert (data["image_size"], data["channels"], data["normalize"]) == (16, 1, "centred")
    assert (data["benchmark"], data["flip"]) == ("miniimagenet", False)
    done = metarun("job=evaluate", "run=run", "hydra.run.dir=raw", *typed, "data.normalize=none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    data = yaml.safe_load((tmp_path / "raw/config.yaml").read_text())["data"]
    assert (data["image_size"], data["normalize"]) == (16, "none")


def test_a_run_from_before_a_setting_of_inputs_keeps_its_default() -> None:
    """The shipped checkpoint on Omniglot has no data.channels."""
    run = Path(__file__).parents[2] / "docs/checkpoints/omniglot_5w1s_protonet_cpu"
    assert "channels" not in yaml.safe_load((run / "config.yaml").read_text())["data"]
    data = compose(["job=evaluate", f"run={run}", "data=cifar_fs"]).data
    assert (data["image_size"], data["channels"], data["normalize"]) == (28, 1, "none")


@pytest.mark.parametrize(
    ("typed", "chosen"),
    [
        (["data.root=x"], ["data=omniglot"]),
        (["+data.root=x", "algo.prox=1"], ["algo=imaml", "data=omniglot"]),
        (["data.root=x", "data=folder"], []),
        (["seed=1", "train.steps=3", "optim.lr=1"], []),
    ],
)
def test_the_options_are_those_of_the_groups_that_are_changed(
    typed: list[str], chosen: list[str], folder: Path
) -> None:
    of_the_run = ["job=evaluate", f"run={folder}", *typed]
    assert add_run_choices(["-m", *of_the_run]) == ["-m", *chosen, *of_the_run]


def test_a_command_without_a_run_stays_as_it_is(folder: Path) -> None:
    """A training has no use for `run=`, and is not to be made one on the run's data."""
    train, swept = [f"run={folder}", "data.shots=5"], ["job=evaluate", f"run={folder},b", "data.root=x"]
    for typed in (["data.root=x"], ["--help"], [], train, swept, ["job=evaluate", "run=nowhere", "seed=1"]):
        assert add_run_choices(typed) == typed


def test_a_run_that_cannot_be_read_is_told_before_the_settings_that_it_would_explain(folder: Path) -> None:
    with pytest.raises(UserError, match="nowhere: is not a run folder"):
        add_run_choices(["job=evaluate", "run=nowhere", "data.root=x"])
    (folder / "config.yaml").write_text("algo: {}\ndata: {}\ntrain: {}\nchoices: {data: 'a b'}")
    with pytest.raises(UserError, match="is no choice of a group"):
        add_run_choices([f"resume={folder}", "data.root=x"])


def test_keys_of_swept_options_are_left_to_the_jobs() -> None:
    """Hydra composes the sweep itself with the default option, which may lack them."""
    given = ["-m", "data=folder,omniglot", "data.root=/x", "algo=maml", "algo.inner_lr=1", "seed=0,1"]
    assert read_arguments(given) == ["-m", "data=folder,omniglot", "++data.root=/x", *given[3:]]
    assert read_arguments(["data=folder", "data.root=/x"]) == ["data=folder", "data.root=/x"]


def test_the_name_of_an_option_is_a_text() -> None:
    assert read_arguments(["experiment=1", "seed=1"]) == ['experiment="1"', "seed=1"]

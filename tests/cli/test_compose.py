"""Every option composes, every sensible pair trains, and what makes no sense is refused in one line."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import metarun
from metarun.config import catalogue
from metarun.config.components import component_class, locate
from metarun.config.data_sets import EPISODE_SIZE
from metarun.config.schema import Config, check
from metarun.errors import UserError
from metarun.regularizers.build import SHARED
from metarun.training.episode_size import TRAINING_SIZE
from metarun.training.experiment import assemble

CONF = Path(__file__).resolve().parents[2] / "conf"
GROUPS = ("algo", "data", "model", "reg", "optim", "device", "logger", "diagnostics", "experiment")
OPTIONS = [(g, option) for g in GROUPS for option in catalogue.list_options(g)]
ALGOS = catalogue.list_options("algo")


def published(group: str, option: str) -> bool:
    """Of these every one is composed in test_published.py."""
    path = Path(__file__).resolve().parents[2] / "conf" / group / f"{option}.yaml"
    return group == "experiment" and "published:" in path.read_text()


TINY = [
    "train.steps=2",
    "train.tasks=3",
    "val.tasks=2",
    "test.tasks=3",
    "test.steps=2",
    "device.compile=false",
    "report=false",
]


@functools.cache
def composed(group: str, option: str) -> Config:
    """To be read alone: composing takes a quarter of a second."""
    return metarun.compose([f"{group}={option}"])


@pytest.mark.parametrize(("group", "option"), [pair for pair in OPTIONS if not published(*pair)])
def test_every_option_composes_and_is_in_range(group: str, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarun.config.schema._lacks_cuda", lambda: False)  # device=cuda, wherever this runs
    config = composed(group, option)
    check(config)
    if group != "experiment":
        assert config.choices[group] == option


def pairs() -> Iterable[Any]:
    """Only a recipe is of both; without one a pair has what its algorithm and its data set compose alone."""
    named = [data for data in catalogue.list_options("data") if data != "own"]  # which names no class
    for data, algo in itertools.product(named, ALGOS):
        recipe = (CONF / "recipe" / f"{algo}_{data}.yaml").is_file()
        yield pytest.param(algo, data, marks=[] if recipe else [pytest.mark.long])


PROVIDED = {"model", "loss", "ways", "input_shape", "outputs", "network", "regularization", "kind", "environment"}
PROVIDED |= {"trusted_modules", "ratio", "classes", "started", "reference_inputs"}


def settings_of(target: Any) -> set[str]:
    """The names of a component's settings: its parameters, and the fields of those that are bundles of settings."""
    hints, names = typing.get_type_hints(target.__init__ if isinstance(target, type) else target), set()
    for name, parameter in inspect.signature(target).parameters.items():
        bundle = hints.get(name) if name not in PROVIDED and parameter.default is parameter.empty else None
        names |= {field.name for field in dataclasses.fields(bundle)} if dataclasses.is_dataclass(bundle) else {name}
    return names


@pytest.mark.parametrize(("algo", "data"), list(pairs()))
def test_every_pair_composes_to_settings_that_its_classes_accept(algo: str, data: str) -> None:
    config = metarun.compose([f"algo={algo}", f"data={data}"])
    for group in ("algo", "data"):
        node = getattr(config, group)
        assert set(node) <= {*settings_of(locate(group, node)), "_target_", *TRAINING_SIZE, *EPISODE_SIZE}


@pytest.mark.parametrize("model", ["mlp", "module"])
@pytest.mark.parametrize("algo", ["maml", "imaml", "reptile", "protonet", "matchingnet"])
@pytest.mark.parametrize("data", ["omniglot", "folder", "miniimagenet"])
def test_what_is_chosen_for_one_network_does_not_reach_another(data: str, algo: str, model: str) -> None:
    """A data set and a recipe set filters, pool and readout of conv4, which no other network has."""
    chosen = metarun.compose([f"data={data}", f"algo={algo}", f"model={model}"])
    assert chosen.model.keys() == composed("model", model).model.keys()


def test_networks_are_chosen_for_data_sets_algorithms_and_pairs() -> None:
    folder, miniimagenet = (metarun.compose([f"data={data}"]).model for data in ("folder", "miniimagenet"))
    assert folder == miniimagenet
    assert (folder["filters"], folder["pool"], folder["readout"]) == (32, "max", "flatten")
    pair = metarun.compose(["data=omniglot", "algo=protonet", "model.pool=stride"]).model
    assert (pair["readout"], pair["pool"]) == ("flatten", "stride")
    assert metarun.compose(["algo=np"]).model["hidden"] == [128, 128, 128]


@pytest.mark.parametrize("group", ["algo", "data", "model", "reg"])
def test_yaml_files_name_every_setting_of_their_class(group: str) -> None:
    """So that a user sees all of them in --cfg job, and no default hides in code."""
    for option in catalogue.list_options(group):
        node = getattr(composed(group, option), group)
        if group == "reg":
            if option == "none":
                continue
            node = node[option]
            assert set(SHARED) <= set(node)
        if node["_target_"] is None:  # the option of a Python object
            continue
        assert settings_of(locate(group, node)) - PROVIDED <= set(node)


@pytest.mark.parametrize("algo", ALGOS)
def test_each_algorithm_trains_two_steps_on_sinusoids_or_says_why_not(algo: str, tmp_path: Path) -> None:
    config = metarun.compose([f"algo={algo}", *TINY])
    if "regression" not in component_class(locate("algo", config.algo)).kinds:
        with pytest.raises(
            UserError, match=r"data set is regression.*choose algo=.*choose data=.*(omniglot|point_robot)"
        ):
            metarun.run(config, tmp_path)
        return
    result = metarun.run(config, tmp_path)
    assert result.status == "completed"
    assert result.objective == pytest.approx(result.summary["val_error"])
    steps = {0, 1, 2, config.algo["test_inner_steps"]} if "test_inner_steps" in config.algo else {0}
    assert [row["step"] for row in result.summary["curve"]] == sorted(steps)


def test_a_diverged_run_is_a_result_with_a_finite_objective_worse_than_any(tmp_path: Path) -> None:
    config = metarun.compose([*TINY, "optim=sgd", "optim.lr=1e30", "train.steps=5", "train.eval_every=1"])
    result = metarun.run(config, tmp_path)
    assert result.status == "diverged"
    assert result.objective == 1e9
    assert "at step 1, task 0, seed 0" in result.summary["reason"]


def test_a_recipe_belongs_to_a_pair_and_the_command_line_wins() -> None:
    plain, pair = metarun.compose(["algo=maml"]), metarun.compose(["algo=maml", "data=omniglot"])
    assert plain.algo["inner_lr"] != pair.algo["inner_lr"] == 2.5
    assert metarun.compose(["algo=maml", "data=omniglot", "algo.inner_lr=0.3"]).algo["inner_lr"] == 0.3


def test_an_algorithm_may_choose_its_outer_optimizer_and_the_command_line_wins() -> None:
    assert metarun.compose(["algo=reptile"]).optim.schedule == "linear"
    assert metarun.compose(["algo=reptile", "optim=adam"]).optim.name == "adam"


def test_metric_learners_default_to_population_statistics_and_gradient_based_ones_to_the_batch() -> None:
    norms = {algo: metarun.compose([f"algo={algo}", "data=omniglot"]).model["norm"] for algo in ALGOS}
    features = {"protonet", "matchingnet", "r2d2", "metaoptnet", "simpleshot", "baseline", "baselinepp"}
    features |= {"tim", "finetuning"}
    assert norms == {algo: "population" if algo in features else "batch" for algo in ALGOS}


def test_a_wrong_name_in_adapted_is_refused() -> None:
    """Else nothing would be adapted, silently."""
    with pytest.raises(UserError, match=r"algo.adapted=\['hed'\]: no parameter .* choices: block0, block1, head"):
        assemble(metarun.compose(["algo=anil", "algo.adapted=[hed]"]))
    assemble(metarun.compose(["algo.adapted=[block1,head.bias]"]))


def test_seed_zero_is_a_seed() -> None:
    first = assemble(metarun.compose(["seed=0"])).initial_params()
    again = assemble(metarun.compose(["seed=0"])).initial_params()
    other = assemble(metarun.compose(["seed=1"])).initial_params()
    assert all(first[k].equal(again[k]) for k in first)
    assert not first["head.weight"].equal(other["head.weight"])


def test_an_option_that_metarun_has_too_is_refused_and_not_hidden(tmp_path: Path) -> None:
    """Hydra would take metarun's without a word."""
    (tmp_path / "algo").mkdir()
    (tmp_path / "algo" / "mine.yaml").write_text("# @package _global_\ndefaults: [maml]\nalgo: {inner_lr: 0.5}\n")
    assert metarun.compose(["algo=mine"], config_dir=tmp_path).algo["inner_lr"] == 0.5
    (tmp_path / "algo" / "maml.yaml").write_text("# @package _global_\nalgo: {inner_lr: 0.5}\n")
    with pytest.raises(UserError, match=rf"^algo=maml: .* has an option of this name too; rename that of {tmp_path}$"):
        metarun.compose(["algo=maml"], config_dir=tmp_path)

"""Every option composes, every sensible pair trains, and what makes no sense is refused in one line."""

from __future__ import annotations

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
from metarun.config.components import build, component_class, locate
from metarun.config.schema import Config, check
from metarun.errors import SettingError, UserError
from metarun.regularizers.build import SHARED
from metarun.training.experiment import EPISODE_SIZE, TRAINING_SIZE, assemble

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
def test_every_option_composes_and_is_in_range(group: str, option: str) -> None:
    config = composed(group, option)
    check(config)
    if group != "experiment":
        assert config.choices[group] == option


def pairs() -> Iterable[Any]:
    """Only a recipe is of both; without one a pair has what its algorithm and its data set compose alone."""
    for data, algo in itertools.product(catalogue.list_options("data"), ALGOS):
        recipe = (CONF / "recipe" / f"{algo}_{data}.yaml").is_file()
        yield pytest.param(algo, data, marks=[] if recipe else [pytest.mark.long])


@pytest.mark.parametrize(("algo", "data"), list(pairs()))
def test_every_pair_composes_to_settings_that_its_classes_accept(algo: str, data: str) -> None:
    config = metarun.compose([f"algo={algo}", f"data={data}"])
    for group in ("algo", "data"):
        node = getattr(config, group)
        parameters = inspect.signature(locate(group, node)).parameters
        known = {*parameters, "_target_", *TRAINING_SIZE, *EPISODE_SIZE}
        assert set(node) <= known


@pytest.mark.parametrize("group", ["algo", "data", "model", "reg"])
def test_yaml_files_name_every_setting_of_their_class(group: str) -> None:
    """So that a user sees all of them in --cfg job, and no default hides in code."""
    provided = {"model", "loss", "ways", "input_shape", "outputs", "network", "regularization", "kind", "environment"}
    for option in catalogue.list_options(group):
        node = getattr(composed(group, option), group)
        if group == "reg":
            if option == "none":
                continue
            node = node[option]
            assert set(SHARED) <= set(node)
        assert set(inspect.signature(locate(group, node)).parameters) - provided <= set(node)


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
    assert plain.algo["inner_lr"] != pair.algo["inner_lr"] == 1.0
    assert metarun.compose(["algo=maml", "data=omniglot", "algo.inner_lr=0.3"]).algo["inner_lr"] == 0.3


def test_an_algorithm_may_choose_its_outer_optimizer_and_the_command_line_wins() -> None:
    assert metarun.compose(["algo=reptile"]).optim.schedule == "linear"
    assert metarun.compose(["algo=reptile", "optim=adam"]).optim.name == "adam"


def test_metric_learners_default_to_population_statistics_and_gradient_based_ones_to_the_batch() -> None:
    norms = {algo: metarun.compose([f"algo={algo}", "data=omniglot"]).model["norm"] for algo in ALGOS}
    metric = {"protonet", "matchingnet"}
    assert norms == {algo: "population" if algo in metric else "batch" for algo in ALGOS}


def test_seed_zero_is_a_seed() -> None:
    first = assemble(metarun.compose(["seed=0"])).initial_params()
    again = assemble(metarun.compose(["seed=0"])).initial_params()
    other = assemble(metarun.compose(["seed=1"])).initial_params()
    assert all(first[k].equal(again[k]) for k in first)
    assert not first["head.weight"].equal(other["head.weight"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algo.inner_steps=0"], r"algo\.inner_steps=0: must be at least 1"),
        (["algo.inner_lr=-1"], r"algo\.inner_lr=-1\.0: must be above 0"),
        (["algo.inner_lr=nan"], r"algo\.inner_lr=nan: must be above 0"),
        (["optim.lr=0"], r"optim\.lr=0\.0: must be above 0 and finite"),
        (["optim.lr=inf"], r"optim\.lr=inf: must be above 0 and finite"),
        (["train.steps=0"], r"train\.steps=0: must be at least 1"),
        (["seed=-1"], r"seed=-1: must be at least 0"),
        (["data.shots=0"], r"data\.shots=0: must be a whole number of at least 1"),
        (["data.shots=1.5"], r"data\.shots=1\.5: must be a whole number of at least 1"),
        (["algo.train_shots=0"], r"algo\.train_shots=0: must be a whole number"),
        (["device=cuda"], r"device\.name=cuda: this machine has none; choices: cpu"),
        (["device.chunk_size=0"], r"device\.chunk_size=0: choices: auto, null"),
        (["device.compile=maybe"], r"device\.compile=maybe: choices: auto, on, off"),
        (["model.hidden=[]"], r"model\.hidden=\[\]: must be a list of widths"),
        (["model=conv4"], r"model\._target_=conv4: needs images.*try model=mlp"),
        (["algo._target_=os.system"], r"algo\._target_=os\.system: is outside of metarun; add its package"),
        (["algo._target_=metarun.algorithms.maml.MAMLL"], r"algo\._target_=.*cannot be imported"),
        (["+algo.inner_lrr=1"], r"algo\.inner_lrr: no such setting, did you mean inner_lr"),
        (["~algo.inner_lr"], r"algo\.inner_lr: is missing"),
        (["algo=imaml", "algo.prox=0"], r"algo\.prox=0\.0: must be above 0"),
        (["algo=imaml", "algo.cg_steps=0"], r"algo\.cg_steps=0: must be at least 1"),
        (["algo=imaml", "algo.curvature=fisher"], r"algo\.curvature=fisher: choices: hessian, gauss_newton"),
        (["algo=reptile", "algo.inner_optimizer=adagrad"], r"algo\.inner_optimizer=adagrad: choices: sgd, adam"),
        (["algo=reptile", "algo.moments=kept"], r"algo\.moments=kept: choices: fresh, carried"),
        (
            ["algo=reptile", "algo.moments=carried", "algo.inner_optimizer=sgd"],
            r"algo\.moments=carried: needs inner_op",
        ),
        (["data.amplitude=[5,1]"], r"data\.amplitude=\[5\.0, 1\.0\]: must be \[low, high\]"),
        (["data.amplitude=5"], r"data\.amplitude=5: must be of type"),
        (["reg=l2", "reg.weight=-1"], r"reg\.weight=-1\.0: must be at least 0"),
    ],
)
def test_values_that_cannot_work_are_refused_with_key_value_and_choices(overrides: list[str], message: str) -> None:
    if overrides == ["device=cuda"]:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("this machine has a CUDA device")
    with pytest.raises(UserError, match=message):
        assemble(metarun.compose(overrides))


def test_a_component_of_the_users_own_needs_only_its_package_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "class Penalty:\n    def __init__(self, weight: float = 1.0):\n        self.weight = weight\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": "mine.Penalty", "weight": 2}
    with pytest.raises(SettingError, match="add its package to trusted_modules"):
        build("reg", node)
    assert build("reg", node, ["mine"]).weight == 2.0


def test_the_settings_schema_annotates_every_field() -> None:
    assert set(typing.get_type_hints(Config)) == set(Config.__dataclass_fields__)

"""Each step of each check fails on a component with one mistake, says so, and passes the right component."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
import pytest
from helpers import modules, wrong_algorithms, wrong_datasets, wrong_models, wrong_penalties

import metarun
from metarun.config import catalogue
from metarun.config.components import construct, locate
from metarun.data.arrays import from_arrays, from_tasks
from metarun.data.windows import from_recordings
from metarun.models.conv4 import conv4
from metarun.models.mlp import mlp
from metarun.models.norm import NORMS
from metarun.testing import check_algorithm, check_algorithm_named, check_dataset, check_model, check_penalty
from metarun.testing.algorithms import ALGORITHM_CHECKS
from metarun.testing.datasets import DATASET_CHECKS
from metarun.testing.episodes import DATASETS
from metarun.testing.models import MODEL_CHECKS
from metarun.testing.penalties import PENALTY_CHECKS
from metarun.training.experiment import build_dataset
from metarun.types import EpisodeSpec


def failure(check: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(AssertionError) as error:
        check(*arguments, **options)
    return str(error.value)


# ---------------------------------------------------------------- algorithms

ALGORITHMS = {
    "NoKinds": ("interface", "NoKinds has no `kinds`; write kinds: ClassVar"),
    "NoTestSteps": ("interface", "has no `test_inner_steps`; write test_inner_steps: ClassVar[int] = 0"),
    "NoDataclass": ("interface", "NoDataclass is no dataclass"),
    "KindIsText": ("interface", "kinds is 'regression', not of"),
    "AttachedInit": ("interface", "init returns tensors that require a gradient"),
    "GradientAlone": ("interface", "meta_grad does not return a gradient and metrics"),
    "GlobalSeed": ("seeds", "init(0) gives other numbers when called again"),
    "OneSeed": ("seeds", "init(0) and init(1) are equal"),
    "SetsSeed": ("seeds", "the global random state changes"),
    "ChangesSupport": ("purity", "parameters or tasks are changed"),
    "ChangesUnderGrad": ("interface", ": support.x.mul_(0.5)): it changes a tensor in place; make a new one"),
    "AttachedStates": ("purity", "what adaptations returns requires a gradient"),
    "LeavesOut": ("shapes", "(block0.shift: None for [8], block1.shift: None for [6])"),
    "NoLoss": ("shapes", "meta_grad's metrics lack loss"),
    "LongMetric": ("shapes", "the metric ['targets'] is no scalar"),
    "NoGradient": ("shapes", "the meta-gradient is 0"),
    "Branches": ("task axis", "it branches on a tensor's value"),
    "Counts": ("task axis", "task 0 under vmap, the meta-gradient differs by"),
    "TwoStates": ("states", "adaptations(..., 0) yields 2 states, not 1"),
    "OtherState": ("states", "the state after 0 steps predicts otherwise than adapt's"),
    "FlatPrediction": ("predictions", "predict returns [5], not [5, 1]"),
    "NotFinite": ("predictions", "not finite"),
    "ByPosition": ("support order", "with its support rows in another order, the meta-gradient differs"),
    "SeesQueries": ("query order", "the prediction of two queries differs by"),
    "IgnoresStatistics": ("query order", "norm=support: the prediction of two queries differs by"),
    "Doubles": ("precision", "with torch.float32 meta_grad returns torch.float64"),
    "Detaches": ("meta-gradient", "the meta-gradient is not the slope of its loss: off by"),
    "Single": ("meta-gradient", "the meta-gradient is not the slope of its loss: off by"),
    "Ascends": ("learning", "60 outer steps take the validation error from"),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_wrong_algorithm_fails_at_its_step(name: str) -> None:
    """And at no other one before it, but for those of code that is wrong from call to call."""
    step, found = ALGORITHMS[name]
    rest = {"Counts": {step}, "NotFinite": {step}, "SeesQueries": {step}, "FlatPrediction": {step}, "Ascends": {step}}
    skip = ALGORITHM_CHECKS.keys() - rest.get(name, ALGORITHM_CHECKS.keys())
    message = failure(check_algorithm, getattr(wrong_algorithms, name), skip=skip)
    assert re.match(rf"{name}( on regression)?, {step}: ", message), message
    assert found in message
    assert "usual cause: " in message or "write " in message or "; " in message


def test_calls_that_depend_on_earlier_ones_fail_in_chunks_too() -> None:
    message = failure(check_algorithm, wrong_algorithms.Counts, skip=ALGORITHM_CHECKS.keys() - {"chunks"})
    assert "Counts on regression, chunks: in chunks of 1, the meta-gradient differs by" in message


def test_the_place_of_code_that_cannot_be_batched_is_named() -> None:
    message = failure(check_algorithm, wrong_algorithms.Branches)
    assert "wrong_algorithms.Branches.adapt (wrong_algorithms.py, line " in message
    assert ": if support.x.sum() > 0:)" in message


def test_the_right_algorithm_passes_however_it_is_made() -> None:
    own = wrong_algorithms.Ridge
    check_algorithm(own)
    check_algorithm(functools.partial(own, strength=0.5), "regression", skip=["learning"])
    check_algorithm(lambda model, loss, ways: own(model, loss, 0.1), skip=["learning"])
    check_algorithm(own, network=lambda input_shape, outputs: mlp(input_shape, outputs, (16, 24), "none"))
    check_algorithm(own, network=wrong_models.Perceptron, skip=["learning"])
    check_algorithm(own, network=modules.Plain, skip=["learning"])


def test_what_cannot_be_made_is_a_failure_of_the_interface() -> None:
    message = failure(check_algorithm, lambda model, rate: None)
    assert message == "<lambda>, interface: cannot be made without rate; functools.partial(CLASS, rate=...) gives them"


def test_an_algorithm_of_the_settings_is_checked_by_its_name() -> None:
    check_algorithm_named("maml", "regression", overrides=["algo.inner_steps=2"], skip=["learning"])
    message = failure(check_algorithm_named, "mamll")
    assert message.startswith("algo=mamll, interface: algo=mamll: no such option, did you mean maml")
    assert "algo.steps: no such setting" in failure(check_algorithm_named, "maml", overrides=["+algo.steps=2"])


@pytest.mark.parametrize(
    ("check", "arguments"),
    [
        (check_algorithm, [wrong_algorithms.Ridge]),
        (check_dataset, [wrong_datasets.Lines()]),
        (check_model, [mlp, (2,)]),
    ],
)
def test_a_step_to_skip_must_exist(check: Any, arguments: list[Any]) -> None:
    with pytest.raises(ValueError, match="skip='purityy': no such step, did you mean purity"):
        check(*arguments, skip=["purityy"])
    with pytest.raises(ValueError, match=re.escape("skip='purity': must be a list of names, as ['purity']")):
        check(*arguments, skip="purity")


# ---------------------------------------------------------------- networks

MODELS = {
    "NoActivations": ("interface", "NoActivations has no `activations`"),
    "Attached": ("interface", "the parameter ['body.weight'] requires a gradient"),
    "SetsSeed": ("seeds", "the global random state changes"),
    "OneSeed": ("seeds", "init(0) and init(1) are equal"),
    "Unseeded": ("seeds", "init(0) gives other numbers when called again"),
    "OneAxisMore": ("shapes", "apply returns [5, 3, 1], not [5, 3] (outputs)"),
    "Single": ("shapes", "for torch.float64 apply returns torch.float32"),
    "OtherHead": ("head", "no parameter is named head.*"),
    "InputsAlone": ("head", "the last of activations is [5, 4], not [5, 6]"),
    "InPlace": ("purity", "apply changes its parameters or its inputs"),
    "Drops": ("purity", "apply gives other numbers when called again"),
    "Branches": ("task axis", "raised RuntimeError"),
    "Counts": ("task axis", "task 0 under vmap differs by"),
    "Detaches": ("derivatives", "the gradient is not the slope of apply: off by"),
    "MixesRows": ("statistics", "calibrated, a batch of 2 differs by"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_wrong_network_fails_at_its_step(name: str) -> None:
    step, found = MODELS[name]
    skip = MODEL_CHECKS.keys() - {step} if name in ("Counts", "Drops") else ()
    message = failure(check_model, getattr(wrong_models, name), (4,), skip=skip)
    assert message.startswith(f"{name} with 3 outputs, {step}: ")
    assert found in message


def test_mamls_meta_gradient_finds_what_the_derivatives_find() -> None:
    message = failure(check_model, wrong_models.Detaches, (4,), skip=["derivatives"])
    assert message.startswith("Detaches with 3 outputs, MAML: MAML's meta-gradient is not the slope of its loss")


@pytest.mark.parametrize("norm", NORMS)
def test_the_networks_of_metarun_pass(norm: str) -> None:
    check_model(functools.partial(mlp, hidden=(16, 16), norm=norm), (4,))
    check_model(functools.partial(conv4, filters=16, norm=norm, pool="stride", readout="mean"), (1, 16, 16))


@pytest.mark.parametrize("name", ["Plain", "Residual", "Sequence", "Attending", "Dropping"])
def test_modules_pass(name: str) -> None:
    check_model(getattr(modules, name), (4,))


def test_a_network_passes_however_it_is_made() -> None:
    shape = (1, 16, 16)
    check_model(modules.SmallConv(shape, 3), shape)
    check_model(functools.partial(modules.SmallConv, width=4), shape, outputs=5)
    check_model(lambda outputs: modules.SmallConv(shape, outputs), shape)
    check_model(wrong_models.Perceptron, (4,))
    check_model(wrong_models.Perceptron((4,), 3), (4,))


# ---------------------------------------------------------------- data sets

DATASET_FAILURES = {
    "NoEpisodes": ("interface", "NoEpisodes has no `episodes`; write def episodes("),
    "OtherKind": ("interface", "kind=regresion: choices: classification, regression, control"),
    "OtherShape": ("interface", "input_shape() is (0,), no tuple of whole numbers"),
    "Refuses": ("interface", "refuses: shots=6: must be at most 2"),
    "NoTaskAxis": ("shapes", "gave support.x of shape [6, 1]; it must be [2, 6, ...]"),
    "Arrays": ("shapes", "gave support.x of type ndarray; it must be a torch.Tensor"),
    "Doubles": ("shapes", "gave support.y of float64; it must be float32"),
    "FlatTargets": ("shapes", "targets are [T, rows, d_out]"),
    "Missing": ("shapes", "gave support.x with NaN or infinite numbers"),
    "GlobalLabels": ("shapes", "labels 10 to 12; they must be 0 to 2"),
    "OneHot": ("shapes", "labels are [T, rows] of int64"),
    "ShortLabels": ("shapes", "labels are [T, rows] of int64"),
    "Unbalanced": ("shapes", "train, query: classes have 1 to 3 rows"),
    "GlobalDraws": ("shapes", "the same arguments gave another episode"),
    "ByRange": ("shapes", "task 1 drawn without task 0 gave another episode"),
    "SetsSeed": ("purity", "episodes draws from the global random state"),
    "Iterates": ("purity", "step 7 drawn again has other tasks"),
    "OneStep": ("variety", "another step has the same tasks"),
    "OneSplit": ("variety", "split val has the same tasks"),
    "OneTask": ("variety", "range(5, 10) of the tasks has the same tasks"),
    "SameRows": ("variety", "support and query have the same inputs"),
    "FewRows": ("sizes", "and episodes gives 20 support rows"),
    "FewClasses": ("sizes", "and episodes fails (ValueError: "),
    "OtherKey": ("sizes", "names the setting 'data.shots', not of shots, queries"),
    "FewReferences": ("reference", "reference_inputs(64) is [10, 1] torch.float32, not [64, 1] torch.float32"),
    "RandomReferences": ("reference", "reference_inputs differs from call to call"),
    "TensorFact": ("facts", "facts() cannot be written as JSON"),
    "CountsFacts": ("facts", "facts() differs from call to call"),
}


@pytest.mark.parametrize("name", DATASET_FAILURES)
def test_a_wrong_data_set_fails_at_its_step(name: str) -> None:
    step, found = DATASET_FAILURES[name]
    message = failure(check_dataset, getattr(wrong_datasets, name)())
    assert message.startswith(f"{name}, {step}: "), message
    assert found in message


def test_the_right_data_sets_pass() -> None:
    check_dataset(wrong_datasets.Lines())
    check_dataset(wrong_datasets.Least())
    check_dataset(wrong_datasets.Refuses(), EpisodeSpec(1, 2, 2), skip=["sizes"])
    for dataset in DATASETS.values():
        check_dataset(dataset)


def test_rows_of_ones_own_and_gaussian_processes_pass() -> None:
    draw = np.random.default_rng(0)
    check_dataset(from_arrays(draw.normal(size=(400, 5)), label=np.arange(400) % 20))
    check_dataset(from_tasks([(draw.normal(size=(30, 2)), draw.normal(size=30)) for _ in range(40)]))
    check_dataset(from_recordings([draw.normal(size=200) for _ in range(30)], length=8))
    check_dataset(build_dataset(metarun.compose(["data=gp"])))


# ---------------------------------------------------------------- penalties

PENALTIES = {
    "Nothing": ("interface", "Nothing has none of the methods"),
    "TwoMethods": ("interface", "TwoMethods has of and between of the methods"),
    "Rows": ("interface", "of returns [8], no scalar tensor"),
    "Number": ("interface", "of returns float, no scalar tensor"),
    "Random": ("purity", "of gives another number when called again"),
    "InPlace": ("purity", "of changes its arguments"),
    "Detaches": ("gradient", "the gradient is not the slope of of"),
    "Counts": ("task axis", "task 0 under vmap differs by"),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_a_wrong_penalty_fails_at_its_step(name: str) -> None:
    step, found = PENALTIES[name]
    skip = PENALTY_CHECKS.keys() - {step} if name == "Counts" else ()
    message = failure(check_penalty, getattr(wrong_penalties, name)(), skip=skip)
    assert message.startswith(f"{name}, {step}: ")
    assert found in message


WEIGHING = ("weight", "where", "schedule", "final_weight", "warmup")


@pytest.mark.parametrize(
    "name", [name for name in catalogue.list_options("reg") if name not in ("none", "information")]
)
def test_the_penalties_of_metarun_pass(name: str) -> None:
    """But for the one that puts noise into the network."""
    node = {k: v for k, v in catalogue.read_component("reg", name).items() if k not in WEIGHING}
    check_penalty(construct("reg", locate("reg", node), node))


def test_every_step_has_a_component_that_fails_it() -> None:
    """MAML, chunks: tests of their own."""
    assert {step for step, _ in ALGORITHMS.values()} == ALGORITHM_CHECKS.keys() - {"chunks"}
    assert {step for step, _ in MODELS.values()} == MODEL_CHECKS.keys() - {"MAML"}
    assert {step for step, _ in DATASET_FAILURES.values()} == DATASET_CHECKS.keys()
    assert {step for step, _ in PENALTIES.values()} == PENALTY_CHECKS.keys()

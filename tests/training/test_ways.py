"""Training and test tasks with different numbers of classes, for learners whose head starts at 0."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metarun
from metarun.algorithms.imaml import IMAML
from metarun.algorithms.inner_loop import fit_head
from metarun.algorithms.losses import CrossEntropy
from metarun.algorithms.maml import MAML
from metarun.algorithms.reptile import Reptile
from metarun.data import from_arrays
from metarun.errors import UserError
from metarun.models.mlp import mlp
from metarun.types import Batch

SHORT = ["train.steps=6", "train.eval_every=3", "val.tasks=5", "test.tasks=12", "test.steps=2", "device.compile=off"]
MORE_WAYS = ["algo.train_ways=4", "data.ways=2", "algo.zero_head=true", "data.shots=2", "data.queries=2"]


def blobs() -> Any:
    generator = np.random.default_rng(0)
    label = np.repeat(np.arange(24), 12)
    means = generator.normal(size=(24, 3)) * 3
    return from_arrays(means[label] + generator.normal(size=(288, 3)), label=[f"c{k}" for k in label])


@pytest.mark.parametrize("learned", ["none", "weight", "step", "curvature"])
@pytest.mark.parametrize("ways", [2, 7])
def test_the_first_step_sets_each_class_apart_from_the_mean_as_in_training(ways: int, learned: str) -> None:
    """From a head of 0 each softmax is 1 / N: row c becomes inner_lr / N (z_c - mean of z), z_c the mean features of c.
    With `rescale` the factor is that of the 5 training classes at any N."""
    trained, lr = 5, 0.75
    model = mlp((3,), ways, (4,), "none")
    settings = {"zero_head": True, "learned_rates": learned}
    learner = MAML(model, CrossEntropy(), lr, 1, 1, False, **settings).rescale(ways / trained)
    training = MAML(mlp((3,), trained, (4,), "none"), CrossEntropy(), lr, 1, 1, False, **settings)
    theta = {k: v.double() for k, v in training.init(0).items()}
    x = torch.randn(3 * ways, 3, generator=torch.Generator().manual_seed(1)).double()
    z_SD = mlp((3,), None, (4,), "none").apply(theta, x)
    means = z_SD.unflatten(0, (3, ways)).mean(0)  # the rows come shot by shot
    adapted = learner.adapt(fit_head(theta, ways), Batch(x, torch.arange(ways).repeat(3)))
    expected = lr / trained * (means - means.mean(0))
    torch.testing.assert_close(adapted.params["head.weight"], expected, rtol=1e-12, atol=1e-14)


def test_rates_of_a_head_of_0_are_those_of_every_class() -> None:
    learner = MAML(mlp((3,), 5, (4,), "none"), CrossEntropy(), 0.1, 2, 2, False, learned_rates="weight")
    assert learner.init(0)["rates.head.weight"].shape == (5, 4)
    shared = replace(learner, zero_head=True).init(0)
    assert (shared["rates.head.weight"].shape, shared["rates.block0.weight"].shape) == ((1, 4), (4, 3))


def test_the_inner_problem_of_imaml_keeps_its_shape() -> None:
    """N times the objective is the sum over classes plus N lambda / 2 |phi - theta|^2."""
    learner = IMAML(mlp((3,), 5, (4,), "none"), CrossEntropy(), 0.4, 0.2, 3, 3, 2, 0.0, zero_head=True)
    other = learner.rescale(2 / 5)
    assert (other.prox * 2, other.inner_lr / 2) == pytest.approx((0.4 * 5, 0.2 / 5))
    adam = Reptile(mlp((3,), 5, (4,), "none"), CrossEntropy(), "adam", 0.2, 3, 3, None, zero_head=True)
    assert adam.rescale(2 / 5).inner_lr == 0.2


@pytest.mark.parametrize("algo", ["maml", "anil", "metasgd", "mamlpp", "reptile", "imaml"])
def test_a_run_trains_and_tests_on_different_numbers_of_classes(algo: str, tmp_path: Path) -> None:
    data, config = blobs(), metarun.compose([f"algo={algo}", "data=own", *MORE_WAYS, *SHORT])
    result = metarun.run(config, tmp_path / "run", dataset=data)
    assert result.params["head.weight"].shape[0] == 4
    loaded = metarun.load(tmp_path / "run", dataset=data)
    assert loaded.evaluate().summary["mean"] == result.summary["mean"]
    x, y = np.zeros((6, 3), np.float32), np.array(["a", "b", "c"] * 2)
    assert loaded.adapt(x, y).predict(x).shape == (6,)


def test_where_the_numbers_must_be_equal_a_line_gives_the_reason(tmp_path: Path) -> None:
    label = np.repeat(np.arange(24), 12)
    np.savez(tmp_path / "blobs.npz", x=np.random.default_rng(0).normal(size=(288, 3)) + label[:, None], label=label)
    words = ["data=arrays", f"data.file={tmp_path / 'blobs.npz'}", *MORE_WAYS, *SHORT]

    def refusal(*settings: str) -> str:
        with pytest.raises(UserError) as caught:
            metarun.run(metarun.compose(settings), tmp_path / "refused")
        return str(caught.value)

    assert refusal("algo=maml", *words, "algo.zero_head=false") == (
        "algo.train_ways=4: must equal data.ways=2: this algorithm's network has one output per class, "
        "whose weights are learned; algo.zero_head=true learns none"
    )


SIZES = {
    "implicit_cost": ["analysis.prox=1", "analysis.inner_steps=[1,2]", "analysis.tasks=2", "analysis.repeats=1"],
    "information": ["analysis.shots=[1,2]", "analysis.tasks=10"],
    "label_order": ["analysis.tasks=4", "analysis.orders=2"],
    "replace_one": ["analysis.pools=[6]", "analysis.replaced=1", "analysis.tasks=10"],
    "sensitivity": ["analysis.tasks=12", "analysis.rates=[0.5]", "analysis.steps=[1]"],
    "stability_map": ["analysis.rates=[0.5,1]", "analysis.steps=[1]", "analysis.seeds=1", "analysis.train_steps=2"],
    "support_resampling": ["analysis.tasks=3", "analysis.draws=2"],
    "task_diversity": ["analysis.tasks=4"],
    "task_shift": ["analysis.tasks=12", "+analysis.classification.more_ways={ways: 4}"],
}


@pytest.mark.parametrize("algo", ["maml", "imaml"])
def test_analyses_use_the_learner_of_the_test(algo: str, tmp_path: Path) -> None:
    """Each analysis of a run that trained on four classes and is tested on two; where one measures what the test has
    measured, it finds the same."""
    label = np.repeat(np.arange(24), 12)
    np.savez(tmp_path / "blobs.npz", x=np.random.default_rng(0).normal(size=(288, 3)) + label[:, None], label=label)
    words = ["data=arrays", f"data.file={tmp_path / 'blobs.npz'}", *MORE_WAYS, *SHORT]
    result = metarun.run(metarun.compose([f"algo={algo}", *words, "algo.test_inner_steps=2"]), tmp_path / "run")
    found = {}
    for name, sizes in SIZES.items():
        config = metarun.compose(["job=analyze", f"run={result.folder}", f"analysis={name}", "report=false", *sizes])
        found[name] = metarun.run(config)
    assert found["sensitivity"].summary["tuned"]["value"] == pytest.approx(result.summary["mean"], rel=1e-6)
    rows = [json.loads(line) for line in (found["task_shift"].folder / "results.jsonl").read_text().splitlines()]
    assert rows[0]["mean"] == pytest.approx(result.summary["mean"], rel=1e-6)
    assert "left_out" not in next(row for row in rows if row["shift"] == "more_ways")

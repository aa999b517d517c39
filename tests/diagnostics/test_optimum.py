"""Excess risk and distance to the best theta: closed forms, real tasks, and what has no quadratic.

theta = (w, b), S_g = diag(s_g Lambda, 1), c_g = (centre_g, ..., 0); of MAML with exact inputs P = (I - 2 a S)^k and
F(theta) = mean_g (theta - c_g)' P S P (theta - c_g) + constant.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.runs import TINY

import metarun
from metarun.diagnostics.optimum import Affine, fit_contraction, flatten, unflatten
from metarun.storage.run_folder import RunFolder
from metarun.training.evaluation import adaptation_curves
from metarun.training.experiment import Experiment, assemble

D, RATE, STEPS = 3, 0.1, 2
CENTRES, SCALES = (1.0, -1.0), (1.0, 0.25)
DATA = ["data=linear", f"data.features={D}", "data.condition=4", "data.shots=6", "data.queries=6"]
EXACT = [*DATA, "data.design=exact", "data.test_queries=6"]
INNER = [f"algo.inner_lr={RATE}", f"algo.inner_steps={STEPS}"]


def experiment(*overrides: str) -> Experiment:
    return assemble(metarun.compose([*TINY, *overrides]))


def moment(group: int) -> np.ndarray:
    return np.diag([*(SCALES[group] * np.geomspace(1, 1 / 4, D)), 1.0])


def closed_form(first_order: bool) -> Affine:
    """The mean meta-gradient of exact inputs."""
    matrix, shift = np.zeros((D + 1, D + 1)), np.zeros(D + 1)
    for group, centre in enumerate(CENTRES):
        s = moment(group)
        p = np.linalg.matrix_power(np.eye(D + 1) - 2 * RATE * s, STEPS)
        form = 2 * s @ p if first_order else 2 * p @ s @ p
        matrix += form / 2
        shift += form @ np.append(np.full(D, centre), 0.0) / 2
    return Affine(matrix, shift)


def test_with_exact_inputs_it_is_the_closed_form_and_the_bias_of_first_order_too() -> None:
    best, biased = closed_form(False), closed_form(True)
    found = experiment("algo=fomaml", *EXACT, *INNER).optimum
    assert found.gradient is not None
    assert found.own_gradient is not None
    assert found.gradient.matrix == pytest.approx(best.matrix, abs=1e-12)
    assert found.own_gradient.root == pytest.approx(biased.root, abs=1e-12)
    away = biased.root - best.root
    assert np.linalg.norm(away) > 0.01
    like = found.algorithm.init(0)
    values = found(unflatten(biased.root, like))
    assert values["excess_risk"] == pytest.approx(away @ best.matrix @ away / 2, rel=1e-6)  # theta as float64
    assert values["distance_to_optimum"] == pytest.approx(np.linalg.norm(away), rel=1e-6)


@pytest.mark.parametrize("vectors", ["null", "3"])
def test_noise_and_spread_of_real_tasks_change_no_difference_of_risks(vectors: str) -> None:
    """Against the mean query loss of 20 000 drawn tasks, at two thetas, task by task: within four standard errors."""
    made = experiment(
        "algo=maml",
        *DATA,
        "data.spread=0.5",
        "data.noise=0.3",
        "data.queries=8",
        f"data.train_vectors={vectors}",
        *INNER,
    )
    like = made.algorithm.init(0)
    thetas = [unflatten(np.array(at), like) for at in ([0.0, 1.0, -1.0, 0.5], [2.0, 1.5, 2.0, -1.0])]
    drawn = made.dataset.episodes("train", 1, 0, range(20_000), made.train_spec)
    drawn = type(drawn)(*(type(b)(b.x.double(), b.y.double()) for b in drawn))
    losses = [adaptation_curves(made.algorithm, at, drawn, (STEPS,), None)[0][:, 0].numpy() for at in thetas]
    difference = losses[0] - losses[1]
    expected = made.optimum(thetas[0])["excess_risk"] - made.optimum(thetas[1])["excess_risk"]
    error = difference.std() / np.sqrt(len(difference))
    assert abs(difference.mean() - expected) < 4 * error
    assert abs(expected) > 20 * error


def test_records_have_it_and_plain_descent_falls_and_rests_as_predicted(tmp_path: Path) -> None:
    sgd = ["optim=sgd", "optim.lr=0.3", "optim.schedule=constant", "data.noise=0.1"]
    length = ["train.steps=1200", "train.tasks=20", "train.log_every=4", "train.eval_every=400"]
    config = metarun.compose([*TINY, "algo=maml", *DATA, "data.centres=[4,2]", *sgd, *length, *INNER])
    result = metarun.run(config, tmp_path / "run")
    records = RunFolder(result.folder).read_records()
    (at_400,) = {r["excess_risk"] for r in records if r["step"] == 400}  # of training and validation
    assert at_400 > 0
    found = result.summary["convergence"]["optimum"]
    last = [r for r in records if r["kind"] == "train"][-1]
    assert (found["last"], found["distance"]) == (last["excess_risk"], last["distance_to_optimum"])
    assert 1 - found["contraction"] == pytest.approx(1 - found["predicted_contraction"], rel=0.15)
    assert 0.7 < found["plateau"] / found["noise"] < 1.3
    assert found["floor"] == pytest.approx(0, abs=1e-12)


def test_a_line_of_logarithms() -> None:
    steps = np.arange(0, 50, 10)
    assert fit_contraction(steps, 3 * 0.9 ** (2 * steps)) == pytest.approx(0.9)
    assert fit_contraction(steps[:3], 0.9 ** steps[:3]) is None


@pytest.mark.parametrize(
    "overrides",
    [
        ["data=sinusoid"],
        ["data=linear", "model=mlp"],
        ["data=linear", "algo=metasgd"],
        ["data=linear", "data.shots=[4,16]"],
        ["data=linear", "algo=reptile", "algo.inner_optimizer=adam"],
        ["data=linear", "data.features=64"],
    ],
)
def test_what_has_no_known_quadratic_has_no_excess_risk(overrides: list[str]) -> None:
    made = experiment(*overrides).optimum
    assert made(made.algorithm.init(0)) == {}
    assert made.describe([], 1) is None


def test_flatten_is_the_inverse_of_unflatten() -> None:
    like = experiment("algo=maml", *EXACT).algorithm.init(0)
    assert flatten(unflatten(np.arange(4.0), like)) == pytest.approx(np.arange(4.0))

"""Fixed points against closed forms: each learner on tasks whose losses are exact quadratics, MAML on Gaussian inputs.

theta = (w, b); S_g = diag(s_g Lambda, 1) is the second moment of (x, 1), c_g = (centre_g, ..., 0) the target, and the
loss of a task is (theta - c_g)' S_g (theta - c_g) + noise, with the gradient 2 S_g (theta - c_g).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metarun
from metarun.analyses.analysis import Context
from metarun.analyses.fixed_point import FixedPoint, jackknife, require_affine
from metarun.diagnostics.optimum import solve
from metarun.errors import UserError
from metarun.jobs.train_together import train_runs
from metarun.storage.run_folder import RunFolder
from metarun.training.evaluation import EPISODE_SEED

D, RATE, STEPS, PROX = 3, 0.1, 2, 0.7
CENTRES, SCALES = np.array([1.0, -1.0]), np.array([1.0, 0.25])
TINY = ("train.steps=2", "train.eval_every=2", "val.tasks=4", "test.tasks=4", "report=false", "device.compile=off")
DATA = (f"data.features={D}", "data.condition=4", "data.shots=6", "data.queries=6", "data.test_queries=6")
Matrix = np.ndarray


def moment(group: int) -> Matrix:
    return np.diag([*(SCALES[group] * np.geomspace(1, 1 / 4, D)), 1.0])


def steps(s: Matrix) -> Matrix:
    """phi - c = P (theta - c)."""
    return np.linalg.matrix_power(np.eye(D + 1) - 2 * RATE * s, STEPS)


def implicit(s: Matrix) -> Matrix:
    solved = np.linalg.inv(np.eye(D + 1) + 2 * s / PROX)  # both phi - c of theta - c, and its derivative
    return solved @ (2 * s) @ solved


FORMS: dict[str, tuple[list[str], Callable[[Matrix], Matrix]]] = {
    "maml": ([], lambda s: 2 * steps(s) @ s @ steps(s)),
    "anil": ([], lambda s: 2 * steps(s) @ s @ steps(s)),
    "fomaml": ([], lambda s: 2 * s @ steps(s)),
    "reptile": (["algo.inner_optimizer=sgd"], lambda s: np.eye(D + 1) - steps(s)),
    "imaml": (["algo.inner_steps=2000", f"algo.prox={PROX}", "algo.cg_steps=8"], implicit),
}


def context(tmp_path: Path, *overrides: str) -> Context:
    folder = RunFolder(tmp_path / "run")
    config = metarun.compose(
        [*TINY, *(overrides if "data=sinusoid" in overrides else ["data=linear", *DATA, *overrides])]
    )
    metarun.run(config, folder.path)
    return Context(config, folder, tmp_path / "analysis", train_runs)


@pytest.mark.parametrize("algo", [pytest.param(a, marks=pytest.mark.long) if a == "imaml" else a for a in FORMS])
def test_the_matrix_and_the_fixed_point_are_those_of_the_closed_form(algo: str, tmp_path: Path) -> None:
    more, form = FORMS[algo]
    inner = [] if algo == "imaml" else [f"algo.inner_steps={STEPS}"]
    exact = ["data.design=exact", "data.spread=0", "data.noise=0", f"algo.inner_lr={RATE}"]
    where = context(tmp_path, f"algo={algo}", *exact, *inner, *more)
    analysis = FixedPoint(tasks=200, test_tasks=20)
    row = analysis.measure(where, {"first_task": 0, "tasks": 40})
    second = np.isclose(shares(where, 40), SCALES[1])
    weights = [1 - second.mean(), second.mean()]
    matrices = [form(moment(g)) for g in (0, 1)]
    targets = [np.append(np.full(D, CENTRES[g]), 0.0) for g in (0, 1)]
    matrix = sum(w * m for w, m in zip(weights, matrices, strict=True))
    shift = sum(w * m @ c for w, m, c in zip(weights, matrices, targets, strict=True))
    found = np.array(row["matrix"])
    scale = found[0, 0] / matrix[0, 0]  # Reptile's direction is divided by nothing or by its steps: a rate
    assert found == pytest.approx(scale * matrix, rel=1e-5, abs=1e-6)
    assert solve(found, np.array(row["shift"])) == pytest.approx(solve(matrix, shift), rel=1e-5, abs=1e-5)
    assert algo == "reptile" or scale == pytest.approx(1.0, rel=1e-5)
    assert np.array(row["joint_matrix"]) == pytest.approx(
        sum(w * 2 * moment(g) for g, w in enumerate(weights)), rel=1e-5, abs=1e-6
    )


def shares(where: Context, tasks: int) -> np.ndarray:
    """The scale of each task's inputs."""
    experiment = where.run.experiment
    x = experiment.dataset.episodes("train", EPISODE_SEED, 0, range(tasks), experiment.train_spec).support.x
    return x[..., 0].square().mean(1).numpy()


def test_on_gaussian_inputs_the_matrix_of_maml_is_the_expectation(tmp_path: Path) -> None:
    """One step: G = 2 E[(I - 2 a H) S (I - 2 a H)], H the moment of K rows, with E[H S H] = S S S + (E[x x' S x x'] -
    S S S) / K and, for x of mean m and covariance C, E[x x' A x x'] = 2 S A S + (m' A m) (C - m m') + tr(A C) S."""
    one = ["data.centres=[1.0]", "data.scales=[1.0]", "algo.inner_steps=1", f"algo.inner_lr={RATE}"]
    where = context(tmp_path, "algo=maml", *one)
    analysis = FixedPoint(tasks=8000, test_tasks=20)
    rows = [cell | analysis.measure(where, cell) for cell in analysis.cells(where)]
    mean, error = jackknife(lambda parts: parts, np.array([row["matrix"] for row in rows]))
    s, k = moment(0), 6
    m = np.eye(D + 1)[D]
    c = s - np.outer(m, m)
    fourth = 2 * s @ s @ s + (m @ s @ m) * (c - np.outer(m, m)) + np.trace(s @ c) * s
    expected = 2 * (s - 4 * RATE * s @ s + 4 * RATE**2 * (s @ s @ s + (fourth - s @ s @ s) / k))
    assert (np.abs(mean - expected) < 4.5 * error + 1e-9).all()
    assert np.abs(error).max() < 0.02
    summary = analysis.summarise(where, rows)
    assert np.abs(np.array(summary["fixed_point"]) - [1, 1, 1, 0]).max() < 5 * summary["distance_error"]
    assert summary["largest_rate"] == pytest.approx(2 / np.linalg.eigvalsh(expected).max(), rel=0.05)
    assert "plain gradient descent is stable below a rate of" in summary["message"]
    assert len(analysis.draw(rows, summary)) == 1


def test_descent_at_the_rate_of_the_run_contracts_as_the_eigenvalues_say() -> None:
    matrix, shift = np.array([[2.0, 0.3], [0.3, 0.5]]), np.array([1.0, -1.0])
    point, rate = solve(matrix, shift), 0.4
    distances, at = [], np.array([5.0, 4.0])
    for _ in range(60):
        at = at - rate * (matrix @ at - shift)
        distances.append(np.linalg.norm(at - point))
    expected = np.abs(1 - rate * np.linalg.eigvals(matrix)).max()
    assert distances[-1] / distances[-2] == pytest.approx(expected, rel=1e-3)


def test_what_is_not_affine_is_refused(tmp_path: Path) -> None:
    def cubic(at: dict[str, Any]) -> dict[str, Any]:
        return {"w": at["w"] ** 3}

    with pytest.raises(UserError, match=r"analysis=fixed_point: this meta-gradient is not affine in theta"):
        require_affine(cubic, {"w": torch.zeros(2)})
    where = context(tmp_path, "data=sinusoid")
    with pytest.raises(UserError, match=r"theta has 1761 numbers; at most 256, as with model=linear"):
        FixedPoint(tasks=20, test_tasks=2).cells(where)

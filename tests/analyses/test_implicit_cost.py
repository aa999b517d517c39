"""Error, memory and time of ways to take the meta-gradient of one proximal inner problem."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.analyses import POINTS, analyse, refusal, train
from helpers.quadratic import LinearModel, assert_same, gradient, hessian, matrix, minimiser, random_task

from metarun.algorithms.imaml import IMAML
from metarun.algorithms.losses import MeanSquaredError
from metarun.analyses.implicit_cost import METHODS, ImplicitCost
from metarun.errors import SettingError
from metarun.training.memory import peak_bytes
from metarun.types import Params, Task

MODEL = LinearModel(4, 1)
PROX, RATE, TERMS = 0.5, 0.1, 3
LEARNER = IMAML(MODEL, MeanSquaredError(), PROX, RATE, 1, 1, TERMS, 0.0)
ANALYSIS = ImplicitCost((1,), TERMS, PROX, RATE, 1, 1, 1, 1, 1e-6)


def found_by(method: str, steps: int, task: Task) -> tuple[Params, Params]:
    """theta, and the meta-gradient of a method after so many inner steps."""
    theta = MODEL.init(0)
    return theta, ANALYSIS.way(method, replace(LEARNER, inner_steps=steps))(theta, task)[0]


def system(task: Task, theta: Params) -> tuple[torch.Tensor, torch.Tensor]:
    """A = H + lambda I, and b = grad L^Q at the minimiser A^{-1} (H w* + lambda theta)."""
    h = hessian(task.support, bias=False)
    a = h + PROX * torch.eye(len(h), dtype=h.dtype)
    phi = torch.linalg.solve(a, h @ minimiser(task.support, bias=False) + PROX * matrix(theta))
    return a, gradient(task.query, phi, bias=False)


@pytest.mark.parametrize("method", ["unrolled", "checkpointed"])
def test_the_gradient_through_many_steps_is_the_implicit_one(method: str) -> None:
    """lambda A^{-1} b."""
    task = random_task(MODEL, 1)
    theta, found = found_by(method, 1000, task)
    a, b = system(task, theta)
    assert_same(matrix(found), PROX * torch.linalg.solve(a, b))


@pytest.mark.parametrize("method", ["truncated", "iMAML, Neumann"])
def test_at_the_minimiser_the_last_steps_are_the_terms_of_the_neumann_series(method: str) -> None:
    """lambda r sum_{j < n} (I - r A)^j b, r the inner rate."""
    task = random_task(MODEL, 2)
    theta, found = found_by(method, 1000, task)
    a, b = system(task, theta)
    step = torch.eye(len(a), dtype=a.dtype) - RATE * a
    assert_same(matrix(found), PROX * RATE * sum(torch.linalg.matrix_power(step, j) @ b for j in range(TERMS)))


def test_the_first_order_gradient_is_that_of_the_query_loss_alone() -> None:
    """b, off by b - lambda A^{-1} b: with a large lambda little, with a small one by all of it."""
    task = random_task(MODEL, 3)
    theta, found = found_by("first-order", 1000, task)
    assert_same(matrix(found), system(task, theta)[1])


def test_conjugate_gradient_ends_at_the_implicit_gradient_after_as_many_steps_as_weights() -> None:
    task = random_task(MODEL, 4)
    theta, three = found_by("iMAML, CG", 1000, task)
    a, b = system(task, theta)
    exact = PROX * torch.linalg.solve(a, b)
    four = ANALYSIS.way("iMAML, CG", replace(LEARNER, inner_steps=1000, cg_steps=4))(theta, task)[0]
    assert_same(matrix(four), exact)
    one = matrix(found_by("iMAML, 1 CG", 1000, task)[1])
    assert (one - exact).norm() > (matrix(three) - exact).norm() > 1e-6


def test_only_the_unrolled_gradient_takes_memory_for_each_step() -> None:
    """Of the unrolled one, the same for each further step; of segments, with the root of their number."""
    task, theta = random_task(MODEL, 5, support=200), MODEL.init(0)

    def peak(method: str, steps: int) -> int:
        with torch.no_grad():
            return peak_bytes(ANALYSIS.way(method, replace(LEARNER, inner_steps=steps)), theta, task)

    growth = {method: [peak(method, k) for k in (8, 16, 32)] for method in METHODS}
    first, second, third = growth["unrolled"]
    assert (third - second) == 2 * (second - first) > 0
    assert growth["checkpointed"][2] < third / 2
    for method in ("truncated", "first-order", "iMAML, CG", "iMAML, 1 CG", "iMAML, Neumann"):
        assert len(set(growth[method])) == 1, method


@pytest.mark.parametrize(("error", "panels"), [(None, 2), (0.1, 3)])
def test_without_an_exact_gradient_there_is_no_panel_of_errors(error: float | None, panels: int) -> None:
    analysis = ImplicitCost((1, 2), 5, 1.0, 0.1, 3, 1, 10, 10, 1e-6)
    rows = [
        {"method": m, "inner_steps": k, "error": error, "peak_bytes": 1e5 * k, "time": float(k)}
        for m in METHODS
        for k in (1, 2)
    ]
    (drawing,) = analysis.draw(rows, {"message": "as measured"})
    assert len(drawing.figure.axes) == panels


def test_the_gradient_through_ever_more_steps_nears_the_implicit_one_of_a_smooth_network(tmp_path: Path) -> None:
    smooth = [*POINTS, "model.activation=tanh", "algo=maml", "algo.inner_lr=0.05"]
    steps = ["analysis.prox=10", "analysis.inner_steps=[2,8,32,64]", "analysis.products=30", "analysis.repeats=1"]
    summary, rows, _ = analyse(train(tmp_path / "run", *smooth), "implicit_cost", *steps, "analysis.tasks=3")
    assert summary["exact_tasks"] == 3
    errors = {m: [r["error"] for r in rows if r["method"] == m] for m in METHODS}
    assert errors["unrolled"] == sorted(errors["unrolled"], reverse=True)
    for method in ("unrolled", "iMAML, CG"):
        assert errors[method][-1] < 1e-4
    assert errors["checkpointed"] == pytest.approx(errors["unrolled"], rel=1e-6)
    assert errors["first-order"][-1] > 0.01


def test_an_analysis_of_no_inner_problem_is_refused(tmp_path: Path) -> None:
    maml, metric = train(tmp_path / "a", *POINTS, "algo=maml"), train(tmp_path / "b", *POINTS, "algo=cnp")
    assert "analysis.prox=None: this run has no lambda" in refusal(lambda: analyse(maml, "implicit_cost"))
    assert "has no inner loop" in refusal(lambda: analyse(metric, "implicit_cost"))


@pytest.mark.parametrize(("name", "value"), [("inner_steps", (0,)), ("inner_steps", (2, 2)), ("products", 0)])
def test_settings_out_of_range_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(SettingError, match=name):
        replace(ANALYSIS, **{name: value})  # type: ignore[arg-type]
    for other in ("prox", "inner_lr", "tolerance"):
        with pytest.raises(SettingError, match=other):
            replace(ANALYSIS, **{other: -1.0})  # type: ignore[arg-type]

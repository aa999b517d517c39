"""Logistic tasks: moments, the best predictor by independent formulas, and implicit gradients at exact minimisers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.runs import TINY
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.func import hessian
from torch.nn.functional import cross_entropy

import metarun
from metarun.data.logistic import Logistic
from metarun.diagnostics.optimum import flatten, in_double, unflatten
from metarun.errors import SettingError
from metarun.testing import check_dataset
from metarun.training.experiment import assemble
from metarun.types import Batch, EpisodeSpec, Task

SPEC = EpisodeSpec(3, 4, 10)


def data(**changes: Any) -> Logistic:
    return Logistic(**{"features": 4, "condition": 8.0, "common": 0.5, "spread": 0.7, **changes})


def test_it_does_what_metarun_counts_on() -> None:
    check_dataset(data())


def test_moments_are_those_of_the_settings() -> None:
    """Of each class: the mean over tasks is common c_k; within a task the variance is Lambda, of the means spread^2."""
    x = data().episodes("train", 3, 5, range(4000), EpisodeSpec(3, 100, 1)).support.x.double().numpy()
    rows = x.reshape(4000, 100, 3, 4).swapaxes(1, 2)
    means = rows.mean(2)
    spectrum = np.array([1, 1 / 2, 1 / 4, 1 / 8])
    assert rows.var(2, ddof=1).mean((0, 1)) == pytest.approx(spectrum, rel=0.01)
    assert means.mean(0) == pytest.approx(data().common_means(3), abs=4.5 * np.sqrt((0.49 + 0.01) / 4000))
    assert means.var(0, ddof=1).mean(0) == pytest.approx(0.49 + spectrum / 100, rel=0.05)
    assert np.abs(data().common_means(3)).max() > 0.3
    assert np.array_equal(data().common_means(5)[:3], data().common_means(3))


def test_the_best_predictor_is_the_posterior_by_densities() -> None:
    """p(x, rows of class k) / p(rows of class k), each a Gaussian in all numbers at once."""
    found, y = data().posterior("test", 0, 0, range(3), SPEC)
    task = in_double(data().episodes("test", 0, 0, range(3), SPEC))
    means, spectrum = torch.from_numpy(data().common_means(3)), torch.from_numpy(data().spectrum)

    def log_density(rows: Tensor, mean: Tensor) -> Tensor:
        """Of rows [R, D] that share mu ~ N(mean, spread^2 I)."""
        shared = 0.49 * torch.eye(4).double()
        covariance = torch.kron(torch.ones(len(rows), len(rows)).double(), shared)
        covariance = covariance + torch.kron(torch.eye(len(rows)).double(), torch.diag(spectrum))
        return MultivariateNormal(mean.repeat(len(rows)), covariance).log_prob(rows.flatten())

    for t in range(3):
        support = task.support.x[t].view(4, 3, 4).transpose(0, 1)
        for m in range(0, 30, 7):
            x = task.query.x[t, m][None]
            logits = torch.stack(
                [
                    log_density(torch.cat([support[k], x]), means[k]) - log_density(support[k], means[k])
                    for k in range(3)
                ]
            )
            assert torch.allclose(found[t, m].log_softmax(0), logits.log_softmax(0), atol=1e-9)
    scores = data().oracle("test", 0, 0, range(3), SPEC)
    assert scores["cross_entropy"][1] == pytest.approx(float(cross_entropy(found[1], y[1])))


def test_no_support_set_tells_more_than_what_all_tasks_share_without_a_spread() -> None:
    logits, _ = data(spread=0.0).posterior("test", 0, 0, range(2), SPEC)
    x = in_double(data(spread=0.0).episodes("test", 0, 0, range(2), SPEC)).query.x
    means, inverse = torch.from_numpy(data().common_means(3)), torch.from_numpy(1 / data().spectrum)
    linear = x @ (means * inverse).T - 0.5 * (means**2 * inverse).sum(1)
    assert torch.allclose(logits.log_softmax(-1), linear.log_softmax(-1), atol=1e-9)


def newton(x: Tensor, y: Tensor, ways: int, theta: Tensor, strength: float) -> Tensor:
    """argmin_phi mean cross-entropy + strength / 2 |phi - theta|^2 by damped Newton steps, until they are rounding.

    phi is W [N, D] and b [N], flat. Halving a step until the gradient is shorter is enough for a strongly
    convex objective.
    """
    width = x.shape[1]

    def objective(phi: Tensor) -> Tensor:
        w, b = phi[: ways * width].view(ways, width), phi[ways * width :]
        return cross_entropy(x @ w.T + b, y) + strength / 2 * (phi - theta).square().sum()

    slope = torch.func.grad(objective)
    phi = theta.clone()
    for _ in range(60):
        step, rate, size = torch.linalg.solve(hessian(objective)(phi), slope(phi)), 1.0, slope(phi).norm()
        while rate > 1e-3 and slope(phi - rate * step).norm() > size:
            rate /= 2
        if size < 1e-15 or rate <= 1e-3:
            break
        phi = phi - rate * step
    assert float(slope(phi).norm()) < 1e-13
    return phi


@pytest.mark.parametrize(("ways", "prox"), [(2, 0.5), (3, 0.1)])
def test_the_implicit_gradient_of_imaml_is_that_through_the_exact_minimiser(ways: int, prox: float) -> None:
    """Central differences of L^Q(phi*(theta)), phi* by Newton's method: to 1e-7 of the gradient's length."""
    solver = ["algo.inner_solver=nesterov", "algo.inner_lr=0.1", "algo.inner_steps=2000", "algo.cg_steps=30"]
    settings = ["algo=imaml", "data=logistic", f"data.ways={ways}", "data.features=3", f"algo.prox={prox}"]
    experiment = assemble(metarun.compose([*TINY, *settings, *solver, "algo.curvature=hessian"]))
    learner, drawn = experiment.algorithm, experiment.dataset.episodes("train", 0, 0, range(1), experiment.train_spec)
    task = Task(*(Batch(batch.x[0], batch.y[0]) for batch in in_double(drawn)))
    like = learner.init(0)
    theta = torch.from_numpy(flatten(like))

    def outer(at: Tensor) -> float:
        phi = newton(*task.support, ways, at, prox)
        w, b = phi[: 3 * ways].view(ways, 3), phi[3 * ways :]
        return float(cross_entropy(task.query.x @ w.T + b, task.query.y))

    found, metrics = learner.meta_grad(unflatten(theta.numpy(), like), task)
    width = 1e-4
    axes = width * torch.eye(len(theta)).double()
    slopes = [(8 * (outer(theta + h) - outer(theta - h)) - outer(theta + 2 * h) + outer(theta - 2 * h)) for h in axes]
    expected = np.array(slopes) / (12 * width)
    assert np.linalg.norm(flatten(found) - expected) < 1e-7 * np.linalg.norm(expected)
    phi = learner.adapt(unflatten(theta.numpy(), like), task.support).params
    exact = newton(*task.support, ways, theta, prox).numpy()
    assert np.linalg.norm(flatten(phi) - exact) < 1e-8 * np.linalg.norm(exact)
    assert float(metrics["stationarity"]) < 1e-9


def test_a_run_reports_the_best_predictor_and_does_not_beat_it(tmp_path: Path) -> None:
    more = ["train.steps=60", "test.tasks=300", "train.eval_every=60", "optim.lr=0.05"]
    result = metarun.run(metarun.compose([*TINY, "algo=imaml", "data=logistic", *more]), tmp_path / "run")
    best = result.summary["oracle"]["accuracy"]["mean"]
    assert 0.5 < result.summary["mean"] < best
    assert result.summary["interval"] == "open"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": 0}, "features=0: must be at least 1"),
        ({"condition": 0.5}, "condition=0.5: must be at least 1 and finite"),
        ({"common": -1.0}, "common=-1.0: must be at least 0 and finite"),
        ({"common": 0.0, "spread": 0.0}, "spread=0.0: must be above 0 where data.common=0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        data(**changes)


def test_one_class_is_none() -> None:
    with pytest.raises(SettingError, match="ways=1: must be at least 2"):
        data().check("train", EpisodeSpec(1, 5, 5))

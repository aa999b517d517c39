"""The information of a sample on the order of its targets."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import metarun
from metarun.analyses.analysis import SourceRun
from metarun.analyses.consistency import compare_orders, draw_orders
from metarun.errors import UserError
from metarun.training.experiment import assemble
from metarun.types import Batch, Params, Task

TINY = ["train.steps=2", "train.tasks=3", "val.tasks=2", "test.tasks=3", "device.compile=false", "report=false"]
NOISE = 0.3


@dataclass(frozen=True)
class Posterior:
    """The exact posterior of a Gaussian process with the kernel exp(-(x - x')^2 / 2) and noise: consistent."""

    test_inner_steps: ClassVar[int] = 0

    def adapt(self, params: Params, support: Batch) -> Batch:
        return support

    def predict(self, adapted: Batch, x: Tensor) -> Tensor:
        def kernel(a: Tensor, b: Tensor) -> Tensor:
            return torch.exp(-0.5 * (a - b.T) ** 2)

        noise = NOISE**2 * torch.eye(len(adapted.x), dtype=x.dtype)
        weights = torch.linalg.solve(kernel(adapted.x, adapted.x) + noise, kernel(adapted.x, x))
        mean = weights.T @ adapted.y
        variance = 1 - (weights * kernel(adapted.x, x)).sum(0) + NOISE**2
        return torch.cat([mean, variance.sqrt()[:, None]], -1)


class Sum(Posterior):
    """N(sum of the context's targets, 1): which of two targets came first shows in their variances."""

    def predict(self, adapted: Batch, x: Tensor) -> Tensor:
        mean = adapted.y.sum(0, keepdim=True).expand(len(x), -1)
        return torch.cat([mean, torch.ones_like(mean)], -1)


class Fixed(Posterior):
    """N(x, 2) whatever the context."""

    def predict(self, adapted: Batch, x: Tensor) -> Tensor:
        return torch.cat([x, torch.full_like(x, 2)], -1)


@pytest.fixture(scope="module")
def source() -> SourceRun:
    experiment = assemble(metarun.compose(["algo=cnp", "data=gp", "model.hidden=[4]", *TINY]))
    return SourceRun(experiment, {})


def measure(source: SourceRun, learner: Any, tasks: Task, orders: Tensor) -> dict[str, Tensor]:
    source.__dict__["learner"] = learner
    return compare_orders(source, tasks, range(len(tasks.support.x)), orders)


def draw(count: int, shots: int, targets: int) -> Task:
    generator = torch.Generator().manual_seed(3)
    rows = [
        torch.randn(count, k, 1, generator=generator, dtype=torch.float64) for k in (shots, shots, targets, targets)
    ]
    return Task(Batch(*rows[:2]), Batch(*rows[2:]))


def test_samples_of_a_gaussian_process_have_no_information_on_their_order(source: SourceRun) -> None:
    tasks = draw(6, 3, 4)
    found = measure(source, Posterior(), tasks, draw_orders(4, 24))
    for name in ("order_information", "order_spread"):
        torch.testing.assert_close(found[name], torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-10)
    x, y = (torch.cat([a, b], 1)[..., 0] for a, b in zip(tasks.support, tasks.query, strict=True))
    joint = []
    for size in (7, 3):  # log p(y_1 .. y_7) - log p(y_1 .. y_3), by the multivariate normal density
        covariance = torch.exp(-0.5 * (x[:, :size, None] - x[:, None, :size]) ** 2)
        covariance = covariance + NOISE**2 * torch.eye(size, dtype=torch.float64)
        normal = torch.distributions.MultivariateNormal(torch.zeros(6, size, dtype=torch.float64), covariance)
        joint.append(normal.log_prob(y[:, :size]))
    torch.testing.assert_close(found["sequential"], (joint[0] - joint[1]) / 4, rtol=1e-9, atol=1e-10)


def test_the_information_of_a_rule_that_depends_on_the_order(source: SourceRun) -> None:
    """Against the integral on a grid. Context 0; p_12(y) = N(y1; 0, 1) N(y2; y1, 1), p_21 by symmetry."""
    tasks = draw(20000, 1, 2)
    tasks.support.y.zero_()
    information = measure(source, Sum(), tasks, draw_orders(2, 2))["order_information"]

    grid = torch.linspace(-9, 9, 901, dtype=torch.float64)
    first, second = torch.meshgrid(grid, grid, indexing="ij")

    def log_normal(away: Tensor) -> Tensor:
        return -0.5 * away**2 - 0.5 * math.log(2 * math.pi)

    log_12 = log_normal(first) + log_normal(second - first)
    log_mixture = torch.logaddexp(log_12, log_12.T) - math.log(2)
    expected = float((log_12.exp() * (log_12 - log_mixture)).sum() * (grid[1] - grid[0]) ** 2)
    assert expected > 0.05
    standard_error = float(information.std()) / math.sqrt(len(information))
    assert abs(float(information.mean()) - expected) < 3 * standard_error
    assert 3 * standard_error < expected / 10


def test_a_rule_without_context_gains_nothing_from_it(source: SourceRun) -> None:
    tasks = draw(5, 2, 3)
    found = measure(source, Fixed(), tasks, draw_orders(3, 4))
    expected = torch.distributions.Normal(tasks.query.x, 2.0).log_prob(tasks.query.y).mean((1, 2))
    for name in ("sequential", "independent"):
        torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-12)
    for name in ("gain", "order_information", "order_spread"):
        torch.testing.assert_close(found[name], torch.zeros_like(expected), rtol=0, atol=1e-12)


def test_orders_are_different_and_fixed() -> None:
    for targets, count in ((3, 6), (5, 8)):
        orders = draw_orders(targets, count)
        assert len({tuple(o) for o in orders.tolist()}) == count
        assert orders.sort(1).values.tolist() == [list(range(targets))] * count
        assert torch.equal(orders, draw_orders(targets, count))


@pytest.fixture(scope="module", params=["cnp", "np"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    latent = ["algo.latent=3", "algo.test_samples=5"] if request.param == "np" else []
    settings = [f"algo={request.param}", "data=gp", "algo.representation=8", "model.hidden=[8,6]", *latent]
    metarun.run(metarun.compose([*settings, "algo.min_shots=1", *TINY]), folder / "run")
    asked = ["job=analyze", f"run={folder / 'run'}", "analysis=consistency", "analysis.tasks=60"]
    sizes = ["analysis.targets=3", "analysis.orders=4", "analysis.shots=[1,4]"]
    found = metarun.run(metarun.compose([*asked, *sizes]), folder / "job").folder
    return json.loads((Path(found) / "results.json").read_text()) | {"folder": Path(found)}


def test_a_trained_learner(results: dict[str, Any]) -> None:
    assert [row["shots"] for row in results["rows"]] == [1, 4]
    for row in results["rows"]:
        assert -0.1 < row["order_information"] <= row["most"] == pytest.approx(math.log(4))
        assert row["gain"] == pytest.approx(row["sequential"] - row["independent"])
        assert row["sequential"] < row["exact"]
    message = results["summary"]["message"].splitlines()
    assert message[0].startswith("1 shot: a sample of 3 targets has ")
    assert "exact posterior" in message[1]
    assert (results["folder"] / "figure.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("algo", "data", "more", "expected"),
    [
        ("maml", "sinusoid", [], r"algo=maml predicts no distribution; choose algo=cnp"),
        ("cnp", "gp", ["analysis.targets=2", "analysis.orders=3"], r"orders.*3.*at most 2: 2 targets"),
        ("cnp", "gp", ["analysis.targets=1"], r"targets.*1.*at least 2"),
        ("cnp", "gp", ["analysis.shots=[0]"], r"shots.*at least 1"),
    ],
)
def test_what_cannot_be_measured(algo: str, data: str, more: list[str], expected: str, tmp_path: Path) -> None:
    metarun.run(metarun.compose([f"algo={algo}", f"data={data}", "model.hidden=[4]", *TINY]), tmp_path / "run")
    asked = ["job=analyze", f"run={tmp_path / 'run'}", "analysis=consistency", *more]
    with pytest.raises(UserError, match=expected) as refused:
        metarun.run(metarun.compose(asked), tmp_path / "job")
    assert "\n" not in str(refused.value)

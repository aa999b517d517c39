"""Gaussian-process data: the draws have the kernel's covariance, and the oracle is the conditional of the joint."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from metarun.data.gp import GaussianProcess, Kernel
from metarun.errors import SettingError
from metarun.types import EpisodeSpec

RBF = GaussianProcess("rbf", (0.4, 0.4), (1.0, 1.0), 0.1, (-2.0, 2.0))
VARIED = replace(RBF, length_scale=(0.1, 0.6), amplitude=(0.1, 1.0))
ALL = [
    pytest.param(RBF, id="rbf"),
    pytest.param(VARIED, id="varied"),
    pytest.param(replace(RBF, kernel="matern", smoothness=1.5), id="matern32"),
    pytest.param(replace(RBF, kernel="matern"), id="matern52"),
    pytest.param(replace(RBF, kernel="periodic", period=(0.7, 1.3)), id="periodic"),
]
SPEC = EpisodeSpec(1, 4, 3)


def covariance(data: GaussianProcess, distance: float, length: float, scale: float, period: float) -> float:
    """The kernel written a second time, for two numbers."""
    r = distance / length
    if data.kernel == "rbf":
        return scale**2 * math.exp(-(r**2) / 2)
    if data.kernel == "periodic":
        return scale**2 * math.exp(-2 * math.sin(math.pi * distance / period) ** 2 / length**2)
    if data.smoothness == 1.5:
        return scale**2 * (1 + math.sqrt(3) * r) * math.exp(-math.sqrt(3) * r)
    return scale**2 * (1 + math.sqrt(5) * r + 5 * r**2 / 3) * math.exp(-math.sqrt(5) * r)


def joint(data: GaussianProcess, kernel: Kernel, task: int, x: np.ndarray) -> np.ndarray:
    own = (kernel.length[task], kernel.amplitude[task], kernel.period[task])
    rows = [[covariance(data, abs(a - b), *own) for b in x] for a in x]
    return np.array(rows) + kernel.noise[task] ** 2 * np.eye(len(x))


@pytest.mark.parametrize("data", ALL)
def test_draws_have_the_covariance_of_the_kernel(data: GaussianProcess) -> None:
    """y whitened by the joint's own factor is standard normal: its moments over 2000 tasks of 7 points are within five
    standard errors of 0 and of the identity. A wrong kernel, or one without noise, misses by far more."""
    count = range(2000)
    drawn = data.episodes("train", 0, 0, count, SPEC)
    x, y = (torch.cat([a, b], 1)[..., 0].double().numpy() for a, b in zip(*drawn, strict=True))
    kernel = data.task_kernels("train", 0, 0, count, SPEC)
    white = np.stack([np.linalg.solve(np.linalg.cholesky(joint(data, kernel, i, x[i])), y[i]) for i in count])
    assert np.abs(white.mean(0)).max() < 5 / math.sqrt(len(count))
    assert np.abs(white.T @ white / len(count) - np.eye(7)).max() < 5 * math.sqrt(2 / len(count))


@pytest.mark.parametrize("data", ALL)
def test_the_oracle_is_the_conditional_of_the_joint_gaussian(data: GaussianProcess) -> None:
    """By the precision matrix of the joint: cov = P_qq^-1, mean = -cov P_qs y_s."""
    tasks = range(3, 6)
    drawn = data.episodes("test", 0, 0, tasks, SPEC)
    kernel, found = data.task_kernels("test", 0, 0, tasks, SPEC), data.oracle("test", 0, 0, tasks, SPEC)
    x, y = (torch.cat([a, b], 1)[..., 0].double().numpy() for a, b in zip(*drawn, strict=True))
    for i in range(3):
        precision = np.linalg.inv(joint(data, kernel, i, x[i]))
        cov = torch.from_numpy(np.linalg.inv(precision[4:, 4:]))
        mean = -cov @ torch.from_numpy(precision[4:, :4] @ y[i, :4])
        query, sd = torch.from_numpy(y[i, 4:]), cov.diagonal().sqrt()
        expected = {
            "joint_log_likelihood": MultivariateNormal(mean, (cov + cov.T) / 2).log_prob(query) / 3,
            "pointwise_log_likelihood": Normal(mean, sd).log_prob(query).mean(),
            "mse": ((query - mean) ** 2).mean(),
        }
        expected |= {
            f"coverage_{p}": (2 * (Normal(mean, sd).cdf(query) - 0.5).abs() <= p / 100).double().mean()
            for p in (50, 90, 95)
        }
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name][i], value, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
        at = data.oracle_band("test", 0, 0, tasks, SPEC, x[i, 4:])
        np.testing.assert_allclose(at[0][i], mean, rtol=1e-7)
        np.testing.assert_allclose(at[1][i], sd, rtol=1e-7)


def test_the_oracle_is_calibrated_and_better_than_the_prior() -> None:
    """Over 400 tasks: each band covers its share, and knowing the support set is worth likelihood."""
    spec = EpisodeSpec(1, 10, 20)
    found = RBF.oracle("test", 0, 0, range(400), spec)
    for p in (50, 90, 95):
        shares = found[f"coverage_{p}"]
        assert abs(float(shares.mean()) - p / 100) < 5 * float(shares.std()) / 20
    y = RBF.episodes("test", 0, 0, range(400), spec).query.y.double()
    unconditional = Normal(0.0, math.sqrt(1.01)).log_prob(y).mean()
    assert float(found["pointwise_log_likelihood"].mean() - unconditional) > 0.5


def test_an_episode_depends_on_its_index_alone() -> None:
    """Whichever tasks are drawn beside it, drawn ahead or not; other steps, seeds and splits differ."""
    data, again = replace(VARIED), replace(VARIED)
    whole = [data.episodes("train", 1, step, range(6), SPEC) for step in range(20)]
    for step in (0, 7, 19):
        part = again.episodes("train", 1, step, range(2, 4), SPEC)
        assert torch.equal(part.support.y, whole[step].support.y[2:4])
        assert torch.equal(part.query.x, whole[step].query.x[2:4])
    for other in (("train", 1, 1), ("train", 2, 0), ("val", 1, 0)):
        assert not torch.equal(again.episodes(*other, range(6), SPEC).support.y, whole[0].support.y)


def test_without_noise_near_points_can_still_be_drawn() -> None:
    data = replace(RBF, noise=0.0, x_range=(0.0, 0.01))
    drawn = data.episodes("train", 0, 0, range(4), EpisodeSpec(1, 20, 80))
    assert all(v.isfinite().all() for batch in drawn for v in batch)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"kernel": "rbff"}, "kernel=rbff: choices: rbf, matern, periodic"),
        ({"smoothness": 2.0}, "smoothness=2.0"),
        ({"length_scale": (0.0, 1.0)}, "length_scale"),
        ({"amplitude": (2.0, 1.0)}, "amplitude"),
        ({"x_range": (1.0, 1.0)}, "x_range"),
        ({"noise": -1.0}, "noise=-1.0"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        replace(RBF, **wrong)

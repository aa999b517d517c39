"""Linear tasks: their moments, the exact design, the best predictor by independent formulas, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from metarun.data.linear import Linear
from metarun.errors import SettingError
from metarun.types import EpisodeSpec

SPEC = EpisodeSpec(1, 8, 16)
TASKS = range(4000)


def data(**changes: Any) -> Linear:
    settings = {"features": 4, "condition": 8.0, "centres": (1.0, -2.0), "scales": (1.0, 0.25), "spread": 0.5}
    return Linear(**{**settings, "noise": 0.3, "design": "gaussian", **changes})


def arrays(linear: Linear, tasks: range = TASKS, spec: EpisodeSpec = SPEC) -> list[np.ndarray]:
    task = linear.episodes("train", 3, 5, tasks, spec)
    return [v.double().numpy() for v in (task.support.x, task.support.y[..., 0], task.query.x, task.query.y[..., 0])]


def test_moments_are_those_of_the_settings() -> None:
    """One group: E x x' = s Lambda, E y^2 = sum_i s Lambda_ii (c^2 + spread^2) + noise^2, to four standard errors."""
    linear = data(centres=(1.5,), scales=(2.0,))
    x, y, *_ = arrays(linear)
    spectrum = np.array([1, 1 / 2, 1 / 4, 1 / 8])
    assert np.allclose(linear.spectrum, spectrum)
    rows = x.reshape(-1, 4)
    assert np.allclose(rows.T @ rows / len(rows), 2 * np.diag(spectrum), atol=4 * 2 * np.sqrt(2 / len(rows)))
    squares = (y**2).mean(1)
    expected = (2 * spectrum).sum() * (1.5**2 + 0.5**2) + 0.3**2
    assert abs(squares.mean() - expected) < 4 * squares.std() / np.sqrt(len(squares))


def test_each_group_is_drawn_as_often_and_tasks_do_not_depend_on_their_neighbours() -> None:
    linear = data(noise=0.0, spread=0.0)
    x, y, *_ = arrays(linear)
    first = np.isclose(y, x.sum(2), atol=1e-4).all(1)
    assert np.isclose(y[~first], -2 * x[~first].sum(2), atol=1e-4).all()
    assert abs(first.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(first))
    assert np.array_equal(arrays(linear, range(7, 9))[0], x[7:9])


def test_the_exact_design_has_the_second_moment_of_the_population() -> None:
    linear = data(design="exact", centres=(1.0,), scales=(3.0,))
    for x in arrays(linear, range(2))[::2]:
        assert np.allclose(x.swapaxes(1, 2) @ x / x.shape[1], 3 * np.diag(linear.spectrum), atol=1e-6)
        assert np.allclose(x.mean(1), 0)


def test_of_one_group_the_best_predictor_is_ridge_regression_around_its_centre() -> None:
    """E[w | y] = c + (X' X + (noise / spread)^2 I)^-1 X' (y - X c)."""
    linear = data(centres=(1.0,), scales=(1.0,))
    x, y, queries, targets = arrays(linear, range(50))
    found = linear.oracle("train", 3, 5, range(50), SPEC)["mse"].numpy()
    for i in range(50):
        solved = np.linalg.solve(x[i].T @ x[i] + (0.3 / 0.5) ** 2 * np.eye(4), x[i].T @ (y[i] - x[i].sum(1)))
        assert found[i] == pytest.approx(((targets[i] - queries[i] @ (1 + solved)) ** 2).mean(), rel=1e-6)


@pytest.mark.parametrize("design", ["gaussian", "exact"])
def test_groups_are_weighted_by_the_density_of_the_support_set(design: str) -> None:
    """Against torch's densities; centres as near as the noise, so that no weight is 0 or 1."""
    linear = data(centres=(0.3, -0.3), noise=1.0, design=design, scales=(1.0, 1.0 if design == "exact" else 0.8))
    x, y, queries, targets = arrays(linear, range(50))
    found = linear.oracle("train", 3, 5, range(50), SPEC)["mse"].numpy()
    for i in range(50):
        logs, means = [], []
        for centre, scale in zip(linear.centres, linear.scales, strict=True):
            cov = torch.from_numpy(scale * np.diag(linear.spectrum))
            of_x = MultivariateNormal(torch.zeros(4).double(), cov).log_prob(torch.from_numpy(x[i])).sum()
            cov = torch.from_numpy(0.25 * x[i] @ x[i].T + np.eye(8))
            mean = torch.from_numpy(x[i] @ np.full(4, centre))
            logs.append(float(of_x + MultivariateNormal(mean, cov).log_prob(torch.from_numpy(y[i]))))
            means.append(centre + np.linalg.solve(x[i].T @ x[i] + 4 * np.eye(4), x[i].T @ (y[i] - mean.numpy())))
        weights = np.exp(logs - np.max(logs)) / np.exp(logs - np.max(logs)).sum()
        assert found[i] == pytest.approx(((targets[i] - queries[i] @ (weights @ means)) ** 2).mean(), rel=1e-5)


def test_no_linear_predictor_is_better_than_the_best_one() -> None:
    linear = data()
    *_, queries, targets = arrays(linear)
    best = linear.oracle("train", 3, 5, TASKS, SPEC)["mse"].numpy()
    for centre in (0.0, 1.0, -2.0):
        other = ((targets - queries @ np.full(4, centre)) ** 2).mean(1)
        assert best.mean() < other.mean()
    assert abs(best.mean() - 0.3**2) < 0.2  # 8 rows tell 4 coefficients nearly


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": 0}, "features=0: must be at least 1"),
        ({"condition": 0.5}, "condition=0.5: must be at least 1 and finite"),
        ({"centres": ()}, r"centres=\[\]: must be a list of finite numbers, one for each group of tasks"),
        ({"scales": (1.0,)}, r"scales=\[1.0\]: must be 2 numbers above 0, one for each centre"),
        ({"spread": -1.0}, "spread=-1.0: must be at least 0 and finite"),
        ({"design": "fixed"}, "design=fixed: choices: gaussian, exact"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        data(**changes)


def test_the_exact_design_needs_whole_sets_of_axes() -> None:
    with pytest.raises(SettingError, match=r"data.shots=5: must be a multiple of 8 with data.design=exact"):
        data(design="exact").check("train", EpisodeSpec(1, 5, 8))

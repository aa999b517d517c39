"""Linear tasks: moments, the exact design, few vectors, the best predictors by independent formulas, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from metarun.data.linear import Linear
from metarun.errors import SettingError
from metarun.types import EpisodeSpec, Split

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


def coefficients(linear: Linear, split: Split = "train", tasks: range = TASKS) -> np.ndarray:
    """w [T, D] of data without noise, by least squares."""
    support = linear.episodes(split, 3, 5, tasks, SPEC).support
    return (torch.linalg.pinv(support.x.double()) @ support.y.double())[..., 0].numpy()


def distinct(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different rows of w [T, D], which least squares knows to 1e-3 at worst, and how often each occurs."""
    rows, counts = [], []
    while len(w):
        same = np.isclose(w, w[0], atol=1e-3).all(1)
        rows.append(np.median(w[same], 0))
        counts.append(same.sum())
        w = w[~same]
    return np.array(rows), np.array(counts)


def test_training_tasks_share_their_vectors_and_nothing_else() -> None:
    linear = data(noise=0.0, train_vectors=3)
    found, counts = distinct(coefficients(linear))
    assert len(found) == 3
    assert np.allclose(counts / 4000, 1 / 3, atol=4 * np.sqrt(2 / 9 / 4000))
    assert len(np.unique(arrays(linear)[0][:, 0, 0])) == 4000  # rows of its own in each task

    more, _ = distinct(coefficients(data(noise=0.0, train_vectors=5)))
    assert len(more) == 5
    assert all(np.isclose(more, w, atol=1e-3).all(1).any() for w in found)  # the first of more
    other, _ = distinct(coefficients(data(noise=0.0, train_vectors=3, vectors_seed=1)))
    assert not any(np.isclose(other, w, atol=1e-3).any() for w in found)
    assert torch.equal(*(d.episodes("test", 0, 0, TASKS, SPEC).query.y for d in (linear, data(noise=0.0))))


def test_vectors_are_drawn_as_those_of_new_tasks() -> None:
    """Mean and covariance of either group's coefficients, to four standard errors, and its scale of inputs."""
    linear = data(noise=0.0, train_vectors=4000, spread=0.2)
    w, x = coefficients(linear), arrays(linear)[0]
    first = w.mean(1) > -0.5
    for mine, centre, scale in ((first, 1.0, 1.0), (~first, -2.0, 0.25)):
        own, _ = distinct(w[mine])
        assert 0.5 < len(own) / len(w) / (0.5 * (1 - np.exp(-1))) < 1.5  # of 4000 draws from 4000 vectors
        assert np.allclose(own.mean(0), centre, atol=4 * 0.2 / np.sqrt(len(own)))
        assert np.allclose(np.cov(own.T), 0.04 * np.eye(4), atol=4 * 0.04 * np.sqrt(2 / len(own)))
        assert (x[mine][..., 0] ** 2).mean() == pytest.approx(scale, rel=0.05)


@pytest.mark.parametrize("design", ["gaussian", "exact"])
def test_of_few_vectors_the_posterior_mean_weighs_each_by_its_density(design: str) -> None:
    """Against torch's densities, vector by vector; new tasks too, and with noise that leaves all vectors possible."""
    scales = (1.0, 1.0 if design == "exact" else 0.8)
    settings = {"centres": (0.3, -0.3), "scales": scales, "design": design, "noise": 1.0, "train_vectors": 5}
    linear = data(**settings)
    exact = data(**settings | {"noise": 0.0})
    vectors, _ = distinct(coefficients(exact))
    assert len(vectors) == 5
    deviation = {}
    for w in vectors:  # the scale of the group of each vector, off its tasks
        x = arrays(exact)[0][np.isclose(coefficients(exact), w, atol=1e-3).all(1)]
        deviation[tuple(w)] = min(scales, key=lambda s: abs((x[..., 0] ** 2).mean() - s)) ** 0.5
    for split in ("train", "test"):
        tasks = linear.episodes(split, 3, 5, range(20), SPEC)
        found = linear.posterior_mean("train", tasks)
        for i in range(20):
            x, y = tasks.support.x[i].double(), tasks.support.y[i, :, 0].double()
            logs = torch.stack([
                Normal(0, deviation[tuple(w)] * torch.from_numpy(linear.spectrum) ** 0.5).log_prob(x).sum()
                + Normal(x @ torch.from_numpy(w), 1.0).log_prob(y).sum()
                for w in vectors
            ])  # fmt: skip
            weights = logs.softmax(0)
            assert weights.max() < 0.999
            expected = tasks.query.x[i].double() @ (weights @ torch.from_numpy(vectors))
            assert torch.allclose(found[i, :, 0], expected, rtol=0, atol=1e-4)  # vectors are known to five digits


@pytest.mark.parametrize("vectors", [None, 7])
def test_the_posterior_mean_of_one_coefficient_is_an_integral(vectors: int | None) -> None:
    """E[w | X, y] by sums over 40 001 values of w, to 1e-9, of a mixture of two groups; or over 7 vectors."""
    linear = data(features=1, centres=(0.5, -0.5), noise=0.8, train_vectors=vectors)
    tasks = linear.episodes("test", 0, 0, range(10), EpisodeSpec(1, 5, 3))
    found = linear.posterior_mean("train", tasks)
    for i in range(10):
        x, y = tasks.support.x[i, :, 0].double().numpy(), tasks.support.y[i, :, 0].double().numpy()
        over = under = 0.0
        for g, (centre, scale) in enumerate(zip((0.5, -0.5), (1.0, 0.25), strict=True)):
            if vectors is None:
                w = np.linspace(-6, 6, 40_001)
                prior = np.exp(-((w - centre) ** 2) / (2 * 0.5**2))
            else:
                group, values = linear._vectors
                w = values[group == g, 0]
                prior = np.ones(len(w))
            density = prior * np.exp(-((y[:, None] - np.outer(x, w)) ** 2).sum(0) / (2 * 0.8**2))
            density *= np.exp(-(x**2).sum() / (2 * scale)) / scale ** (5 / 2)
            over, under = over + (w * density).sum(), under + density.sum()
        expected = tasks.query.x[i, :, 0].double() * (over / under)
        assert torch.allclose(found[i, :, 0], expected, rtol=1e-9, atol=0)


def test_each_posterior_mean_is_best_on_its_own_tasks() -> None:
    linear = data(train_vectors=4, noise=0.8)
    for split, other in (("train", "test"), ("test", "train")):
        tasks = linear.episodes(split, 3, 5, TASKS, SPEC)
        best, worse = (tasks.query.y.double() - linear.posterior_mean(s, tasks) for s in (split, other))
        assert best.square().mean() < worse.square().mean()
        assert torch.allclose(linear.oracle(split, 3, 5, TASKS, SPEC)["mse"], best.square().mean((1, 2)))


def test_the_population_has_inputs_of_its_own_for_each_vector() -> None:
    """Else many vectors would share the few sets of inputs that there are for as many tasks."""
    support, query = data(train_vectors=30).population(SPEC, 20)
    assert len(np.unique(support.x[:, 0, 0])) == 30
    for batch in (support, query):
        w = (torch.linalg.pinv(batch.x) @ batch.y)[..., 0].numpy()
        assert np.allclose(w, data(train_vectors=30)._vectors[1])


def test_inputs_of_a_group_without_vectors_leave_the_outputs_to_tell() -> None:
    linear = data(design="exact", train_vectors=1)
    tasks = linear.episodes("test", 0, 0, range(20), SPEC)
    (w,), _ = distinct(coefficients(data(design="exact", noise=0.0, train_vectors=1)))
    expected = tasks.query.x.double() @ torch.from_numpy(w)[:, None]
    assert torch.allclose(linear.posterior_mean("train", tasks), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": 0}, "features=0: must be at least 1"),
        ({"condition": 0.5}, "condition=0.5: must be at least 1 and finite"),
        ({"centres": ()}, r"centres=\[\]: must be a list of finite numbers, one for each group of tasks"),
        ({"scales": (1.0,)}, r"scales=\[1.0\]: must be 2 numbers above 0, one for each centre"),
        ({"spread": -1.0}, "spread=-1.0: must be at least 0 and finite"),
        ({"design": "fixed"}, "design=fixed: choices: gaussian, exact"),
        ({"train_vectors": 0}, "train_vectors=0: must be at least 1, or null for a new one in each task"),
        ({"vectors_seed": -1}, "vectors_seed=-1: must be at least 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        data(**changes)


def test_the_exact_design_needs_whole_sets_of_axes() -> None:
    with pytest.raises(SettingError, match=r"data.shots=5: must be a multiple of 8 with data.design=exact"):
        data(design="exact").check("train", EpisodeSpec(1, 5, 8))

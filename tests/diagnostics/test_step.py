"""Measures of one outer step against their definitions, from the whole matrix of per-task gradients."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from helpers.quadratic import (
    EXACT,
    LinearModel,
    random_task,
    stack_tasks,
)
from torch import Tensor

from metarun.algorithms.losses import MeanSquaredError
from metarun.algorithms.maml import MAML
from metarun.diagnostics.adaptation import adaptation_measures
from metarun.diagnostics.step import StepMeasures, update_measures
from metarun.diagnostics.step import gradient_measures as measures
from metarun.diagnostics.task_sample import TaskSample
from metarun.types import Params, Task


def random_gradients(tasks: int, seed: int = 0, offset: float = 0.3) -> Params:
    """Tensors of several shapes with a leading T axis, and a common part so that the mean is not only noise."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"weight": (3, 2, 2), "bias": (3,)}
    return {k: torch.randn(tasks, *shape, generator=draw, dtype=torch.float64) + offset for k, shape in shapes.items()}


def rows(grads: Params) -> Tensor:
    """The T x P matrix."""
    return torch.cat([g.flatten(1) for g in grads.values()], 1)


def cosine(a: Tensor, b: Tensor) -> float:
    """0 for a zero vector, which points nowhere."""
    lengths = float(a.norm() * b.norm())
    return float(a @ b) / lengths if lengths > 0 else 0.0


def mean_cosine(g: Tensor) -> float:
    pairs = [cosine(g[i], g[j]) for i, j in combinations(range(len(g)), 2)]
    return sum(pairs) / len(pairs)


@pytest.mark.parametrize("tasks", [2, 3, 8])
def test_measures_equal_their_definitions_over_the_gradient_matrix(tasks: int) -> None:
    """|gbar|; tr Cov = sum_i |g_i - gbar|^2 / (T - 1); (|gbar|^2 - tr Cov / T) / tr Cov; mean cosine over pairs."""
    for seed in range(3):
        grads = random_gradients(tasks, seed)
        g = rows(grads)
        mean = g.mean(0)
        variance = float((g - mean).square().sum()) / (tasks - 1)
        found = measures(grads)
        layers = {"grad_norm/weight", "grad_norm/bias"}
        assert set(found) == layers | {
            "grad_norm",
            "grad_norm_debiased",
            "grad_variance",
            "grad_snr",
            "grad_cosine",
            "grad_conflict",
        }
        signal = float(mean @ mean) - variance / tasks
        assert found["grad_norm_debiased"] == pytest.approx(max(signal, 0) ** 0.5, rel=EXACT)
        assert found["grad_norm/bias"] == pytest.approx(float(mean[-3:].norm()), rel=EXACT)
        conflicts = [cosine(g[i], g[j]) < 0 for i, j in combinations(range(tasks), 2)]
        assert found["grad_conflict"] == sum(conflicts) / len(conflicts)
        assert found["grad_norm"] == pytest.approx(float(mean.norm()), rel=EXACT)
        assert found["grad_variance"] == pytest.approx(variance, rel=EXACT)
        snr = (float(mean @ mean) - variance / tasks) / variance
        assert found["grad_snr"] == pytest.approx(snr, rel=EXACT, abs=EXACT)
        assert found["grad_cosine"] == pytest.approx(mean_cosine(g), rel=EXACT, abs=EXACT)


def test_a_single_task_has_a_norm_and_nothing_else() -> None:
    """With T = 1 there is no spread and no pair."""
    grads = random_gradients(1)
    found = measures(grads)
    assert set(found) == {"grad_norm", "grad_norm/weight", "grad_norm/bias"}
    assert found["grad_norm"] == pytest.approx(float(rows(grads).norm()), rel=EXACT)


def test_equal_gradients_have_no_variance_an_infinite_ratio_and_cosine_one() -> None:
    """g_i = g: tr Cov = 0, snr = |g|^2 / 0, every cosine is 1. Powers of two make the sums exact."""
    g = torch.tensor([2.0, -4.0, 0.5], dtype=torch.float64)
    found = measures({"w": g.expand(4, 3)})
    assert found["grad_norm"] == pytest.approx(float(g.norm()), rel=EXACT)
    assert found["grad_variance"] == 0
    assert found["grad_snr"] == math.inf
    assert found["grad_cosine"] == pytest.approx(1, rel=EXACT)


def test_opposite_gradients_cancel() -> None:
    """g, -g: gbar = 0, tr Cov = 2 |g|^2, snr = (0 - |g|^2) / (2 |g|^2) = -1/2, cosine -1."""
    g = torch.tensor([3.0, 4.0], dtype=torch.float64)
    found = measures({"w": torch.stack([g, -g])})
    assert found["grad_norm"] == 0
    assert found["grad_variance"] == pytest.approx(50, rel=EXACT)
    assert found["grad_snr"] == pytest.approx(-0.5, rel=EXACT)
    assert found["grad_cosine"] == pytest.approx(-1, rel=EXACT)


def test_the_cosine_does_not_see_how_long_the_gradients_are() -> None:
    """Cosines are of directions: scaling task i by s_i > 0 leaves them, over twenty orders of magnitude."""
    grads = random_gradients(4, seed=5)
    lengths = torch.tensor([1e-10, 1.0, 1e5, 1e10], dtype=torch.float64)
    scaled = {k: g * lengths.view(-1, *[1] * (g.ndim - 1)) for k, g in grads.items()}
    assert measures(scaled)["grad_cosine"] == pytest.approx(mean_cosine(rows(grads)), rel=EXACT)


def test_zero_gradients_give_no_nan() -> None:
    """0 / 0 is met in the directions and in the ratio; an infinite ratio says that there is no noise."""
    found = measures({"w": torch.zeros(3, 4, dtype=torch.float64), "b": torch.zeros(3, 1, dtype=torch.float64)})
    assert found["grad_norm"] == 0
    assert found["grad_variance"] == 0
    assert not any(math.isnan(value) for value in found.values())


@pytest.mark.parametrize("zeros", [1, 2, 4], ids=["one-of-four", "two-of-four", "all-four"])
def test_a_zero_gradient_counts_as_orthogonal_to_the_others(zeros: int) -> None:
    """The mean over pairs, with cosine 0 where a vector is zero: sum_{i < j} cos_ij / (T (T - 1) / 2)."""
    grads = random_gradients(4, seed=6)
    for g in grads.values():
        g[:zeros] = 0
    assert measures(grads)["grad_cosine"] == pytest.approx(mean_cosine(rows(grads)), rel=EXACT, abs=EXACT)


def test_a_scalar_parameter_is_one_more_column() -> None:
    """A learned temperature or rate has gradients [T]: one number a task."""
    grads = random_gradients(3, seed=8) | {"scale": torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)}
    as_column = {k: g.view(3, -1) for k, g in grads.items()}
    assert measures(grads) == pytest.approx(measures(as_column), rel=EXACT)


def test_a_layer_is_what_stands_before_the_last_dot_of_a_name() -> None:
    """head.weight and head.bias together: |(3, 4, 12)| = 13."""
    grads = {"head.weight": torch.tensor([[3.0, 4.0]] * 2), "head.bias": torch.tensor([[12.0]] * 2)}
    assert measures(grads)["grad_norm/head"] == pytest.approx(13)


def test_the_signal_is_debiased() -> None:
    """E |gbar|^2 = |mu|^2 + tr Cov / T. For mu = 0 the debiased signal |gbar|^2 - tr Cov / T averages to 0.

    g_i ~ N(0, I) in P = 8 dimensions, T = 4: |gbar|^2 ~ chi2_8 / 4 and s ~ 8 chi2_24 / 24, the estimate of tr Cov = 8,
    are independent, so that |gbar|^2 - s / 4 has the variance 2 * 8 / 16 + (2 * 24 / 9) / 16 = 4 / 3. Its mean over
    3000 steps has the standard deviation 0.021; without the correction it would be 2.
    """
    draw = torch.Generator().manual_seed(7)
    total = 0.0
    for _ in range(3000):
        found = measures({"w": torch.randn(4, 8, generator=draw, dtype=torch.float64)})
        total += found["grad_snr"] * found["grad_variance"]
    assert abs(total / 3000) < 5 * math.sqrt(4 / 3 / 3000)


def test_only_so_many_tasks_are_followed() -> None:
    model = LinearModel(3, 2)
    tasks = stack_tasks([random_task(model, seed) for seed in range(6)])
    grads = {"w": torch.randn(6, 3, 2, dtype=torch.float64)}
    few = Task(*(b._replace(x=b.x[:2], y=b.y[:2]) for b in tasks))
    learner = MAML(model, MeanSquaredError(), 0.2, 1, 1, first_order=False)
    found = StepMeasures(learner, 2, None)(model.init(0), grads, tasks)
    expected = adaptation_measures(learner, model.init(0), TaskSample(few, None))
    assert {k: found[k] for k in expected} == expected
    assert "grad_cosine" in found


def test_update_ratios_are_relative_changes_of_all_weights_and_of_each_layer() -> None:
    before = {"a.weight": torch.tensor([3.0, 4.0]), "b.weight": torch.tensor([12.0])}
    after = {"a.weight": torch.tensor([3.0, 4.5]), "b.weight": torch.tensor([12.0])}
    found = update_measures(before, after)
    assert found == pytest.approx({"update_ratio": 0.5 / 13, "update_ratio/a": 0.1, "update_ratio/b": 0.0})

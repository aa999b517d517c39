"""Variance components, crossed and nested: hand-made tables, unbiasedness and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metarun.report.statistics.student import t_quantile
from metarun.report.statistics.variance import nested_components, variance_components

EXACT = 1e-12


def checkerboard(a: float, b: float, c: float) -> np.ndarray:
    """10 +- a by run, +- b by task, +- c by both: mean squares 4 a^2, 4 b^2, 4 c^2 with one degree of freedom each."""
    sign = np.array([-1.0, 1.0])
    return 10 + a * sign[:, None] + b * sign[None, :] + c * sign[:, None] * sign[None, :]


def test_variance_components_of_a_constructed_table() -> None:
    """MS = 36, 100, 4: seed (36-4)/2, task (100-4)/2, residual 4; var = 16/2 + 48/2 + 4/4 = 33 = (36+100-4)/4."""
    found = variance_components(checkerboard(3, 5, 1))
    assert found[:6] == pytest.approx((10, 16, 48, 4, 16, 48), rel=EXACT)
    assert found.standard_error == pytest.approx(math.sqrt(33), rel=EXACT)
    assert found.df == pytest.approx(132**2 / (36**2 + 100**2 + 4**2), rel=EXACT)
    assert found.half == pytest.approx(t_quantile(0.975, found.df) * math.sqrt(33), rel=EXACT)
    assert (found.runs, found.tasks) == (2, 2)


@pytest.mark.parametrize(
    ("table", "seed_raw", "task_raw", "squared_error"),
    [((0.5, 5, 1), -1.5, 48, 25), ((3, 0.5, 1), 16, -1.5, 9), ((0.5, 0.5, 1), -1.5, -1.5, 1)],
)
def test_a_negative_component_is_cut_at_0_and_told(
    table: tuple[float, float, float], seed_raw: float, task_raw: float, squared_error: float
) -> None:
    """The variance of the mean is then seed/2 + task/2 + residual/4 with the cut values, on one mean square: df = 1."""
    found = variance_components(checkerboard(*table))
    assert (found.seed_raw, found.task_raw) == pytest.approx((seed_raw, task_raw), rel=EXACT)
    assert (found.seed, found.task) == pytest.approx((max(seed_raw, 0), max(task_raw, 0)), rel=EXACT)
    assert found.standard_error == pytest.approx(math.sqrt(squared_error), rel=EXACT)
    assert found.df == pytest.approx(1, rel=EXACT)


def simulated_scores(generator: np.random.Generator, runs: int, tasks: int) -> np.ndarray:
    """Variances 0.25 (seed), 4 (task), 1 (residual) around 0."""
    by_run, by_task = 0.5 * generator.normal(size=(runs, 1)), 2 * generator.normal(size=(1, tasks))
    return by_run + by_task + generator.normal(size=(runs, tasks))


def test_variance_components_are_unbiased_and_their_interval_holds_the_mean() -> None:
    """600 tables, 5 runs, 60 tasks: raw means within 4 standard errors of 0.25, 4, 1; coverage 95 % (3 se: 2.7 %)."""
    generator = np.random.default_rng(5)
    found = [variance_components(simulated_scores(generator, 5, 60)) for _ in range(600)]
    for name, truth in {"seed_raw": 0.25, "task_raw": 4.0, "residual": 1.0}.items():
        values = np.array([getattr(f, name) for f in found])
        assert values.mean() == pytest.approx(truth, abs=4 * values.std() / math.sqrt(len(values)))
    assert np.mean([abs(f.mean) <= f.half for f in found]) == pytest.approx(0.95, abs=0.027)


def test_variance_components_need_a_table_and_keep_a_missing_score_missing() -> None:
    for scores in ([1, 2, 3], [[1, 2, 3]], [[1], [2]]):
        with pytest.raises(ValueError, match="two runs"):
            variance_components(scores)
    found = variance_components([[1, 2], [3, None]])
    assert all(math.isnan(v) for v in (found.mean, found.seed, found.residual, found.standard_error, found.half))
    assert variance_components([[2, 2], [2, 2]])[:9:6] == (2, 0)


def test_components_within_and_between_are_those_of_the_analysis_of_variance() -> None:
    """By hand: means 1, 3, 8 and variances 1, 4, 1 of three repetitions; MS within 2, var of the means 13."""
    found = nested_components([[0, 1, 2], [1, 3, 5], [7, 8, 9]])
    assert found.within == pytest.approx(2)
    assert found.between == pytest.approx(13 - 2 / 3)
    assert found.share == pytest.approx(2 / (13 - 2 / 3 + 2))
    assert (found.mean, found.groups, found.repetitions) == (4, 3, 3)


def test_components_are_unbiased_and_cut_at_nothing() -> None:
    draw = np.random.default_rng(0)
    found = [
        nested_components(2 + 0.5 * draw.normal(size=(20, 1)) + 1.5 * draw.normal(size=(20, 4))) for _ in range(60)
    ]
    raw, within = (np.array([getattr(f, name) for f in found]) for name in ("between_raw", "within"))
    for values, expected in ((raw, 0.25), (within, 2.25)):
        assert abs(values.mean() - expected) < 4 * values.std(ddof=1) / 60**0.5
    assert min(raw) < 0
    assert min(f.between for f in found) == 0
    share = [f.low <= 0.9 <= f.high for f in found]
    assert np.mean(share) > 0.75  # a percentile interval of 20 groups, one end of which is often 1
    assert np.isnan(nested_components(np.ones((3, 2))).share)
    with pytest.raises(ValueError, match="at least two groups"):
        nested_components([[1, 2]])

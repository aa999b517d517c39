"""Lines and rates: exact power laws, numpy, hand-made values and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metarun.statistics.rate import best_so_far, epsilon_stationarity, fit_line, fit_rate
from metarun.statistics.student import t_quantile

EXACT = 1e-12


def test_a_line_is_that_of_the_normal_equations() -> None:
    """Slope, intercept and R^2 from numpy; the standard error from the inverse of X'X."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=12)
    y = 2 - 3 * x + generator.normal(size=12)
    design = np.stack([np.ones(12), x], 1)
    (intercept, slope), (rss,), *_ = np.linalg.lstsq(design, y, rcond=None)
    found = fit_line(x, y)
    assert found is not None
    assert (found.slope, found.intercept) == pytest.approx((slope, intercept), rel=1e-10)
    error = math.sqrt(rss / 10 * np.linalg.inv(design.T @ design)[1, 1])
    assert found.half == pytest.approx(t_quantile(0.975, 10) * error, rel=1e-10)
    assert found.r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, rel=1e-10)


def test_a_line_needs_two_places_and_an_interval_three() -> None:
    assert fit_line([], []) is None
    assert fit_line([1, 1], [2, 3]) is None
    two = fit_line([0, 1], [2, 5])
    assert two is not None
    assert two.slope == 3
    assert math.isnan(two.half)


def test_best_so_far_is_the_running_minimum() -> None:
    found = best_so_far([math.nan, 3, 4, 2, math.nan, 5, 1])
    np.testing.assert_array_equal(found, [math.nan, 3, 3, 2, 2, 2, 1])
    assert len(best_so_far([])) == 0


def test_the_rate_of_an_exact_power_law_is_its_exponent() -> None:
    steps = np.arange(1, 21) * 50
    found = fit_rate(steps, 7.0 * steps**-0.5)
    assert found is not None
    assert (found.slope, found.unselected_slope) == pytest.approx((-0.5, -0.5), rel=EXACT)
    assert found.r2 == pytest.approx(1, rel=EXACT)
    assert (found.half, found.half_if_independent) == pytest.approx((0, 0), abs=1e-12)
    assert (found.points, found.floor_step) == (20, None)


def test_the_rate_is_of_the_best_so_far_and_not_of_what_came_after() -> None:
    """10^-k at step 10^k, with peaks between: the running minimum is flat over them."""
    steps = np.array([1, 3, 10, 30, 100, 300])
    norms = np.array([1.0, 50, 0.1, 50, 0.01, 50])
    x, y = np.log(steps), np.log([1, 1, 0.1, 0.1, 0.01, 0.01])
    found = fit_rate(steps, norms)
    assert found is not None
    assert found.slope == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-10)
    assert found.unselected_slope == pytest.approx(np.polyfit(x, np.log(norms), 1)[0], rel=1e-10)


def test_the_jackknife_leaves_out_one_block_at_a_time() -> None:
    """Ten falling values (their own running minimum) in blocks of two, by hand."""
    generator = np.random.default_rng(2)
    steps, norms = np.arange(1, 11) * 10.0, np.sort(generator.random(10))[::-1]
    x, y = np.log(steps), np.log(norms)
    keep = [[k for k in range(10) if k // 2 != block] for block in range(5)]
    slopes = np.array([np.polyfit(x[k], y[k], 1)[0] for k in keep])
    error = math.sqrt(4 / 5 * ((slopes - slopes.mean()) ** 2).sum())
    found = fit_rate(steps, norms)
    assert found is not None
    assert found.half == pytest.approx(t_quantile(0.975, 4) * error, rel=1e-10)


def test_the_jackknife_holds_the_expected_slope_far_more_often_than_the_t_interval() -> None:
    """As the module says: 50 noisy points of k^-1, 200 curves; nominal 95 %."""
    generator, k = np.random.default_rng(3), np.arange(1, 51)
    found = [fit_rate(100 * k, np.exp(0.5 * generator.normal(size=50)) / k) for _ in range(200)]
    rates = [f for f in found if f is not None]
    expected = np.mean([f.slope for f in rates])
    jackknife, line = (
        np.mean([abs(f.slope - expected) <= getattr(f, name) for f in rates])
        for name in ("half", "half_if_independent")
    )
    assert jackknife > 0.88
    assert line < 0.7
    assert expected < -1.1  # a running minimum of noise falls too fast
    assert np.mean([f.unselected_slope for f in rates]) == pytest.approx(-1, abs=0.02)


def test_the_fit_ends_where_a_debiased_norm_is_lost_in_noise() -> None:
    steps = np.arange(1, 11) * 10.0
    norms = 1 / steps
    norms[7] = -1e-4
    found = fit_rate(steps, norms)
    assert found is not None
    assert found.slope == pytest.approx(-1, rel=EXACT)
    assert (found.points, found.floor_step) == (7, 80)
    norms[3] = 0.0
    assert fit_rate(steps, norms) is None


def test_step_0_counts_for_the_minimum_but_has_no_logarithm() -> None:
    steps = np.arange(6) * 10.0
    found = fit_rate(steps, [0.5, 9, 8, 0.4, 0.3, 0.2])
    expected = fit_line(np.log(steps[1:]), np.log([0.5, 0.5, 0.4, 0.3, 0.2]))
    assert found is not None
    assert expected is not None
    assert (found.slope, found.points) == (pytest.approx(expected.slope, rel=EXACT), 5)


def test_a_rate_needs_five_points_that_are_there() -> None:
    steps = [1, 2, 3, 4, 5]
    assert fit_rate(steps, [5, 4, 3, 2, 1]) is not None
    assert fit_rate(steps, [5, 4, None, 2, 1]) is None
    assert fit_rate([], []) is None


def test_a_norm_that_never_falls_has_rate_0() -> None:
    found = fit_rate([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6])
    assert found is not None
    assert (found.slope, found.half) == (0, 0)
    assert math.isnan(found.r2)


def test_stationarity_is_the_smallest_squared_norm_and_its_root() -> None:
    assert epsilon_stationarity([10, 20, 30], [4, 0.25, 1]) == (0.25, 20, 0.5)
    assert epsilon_stationarity([10, 20, 30], [4, -0.01, None]) == (-0.01, 20, 0)
    assert epsilon_stationarity([10], [None]) is None
    assert epsilon_stationarity([], []) is None

"""Lines and rates: exact power laws, numpy, hand-made values and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metarun.report.statistics.rate import best_so_far, epsilon_stationarity, fit_line, fit_rate
from metarun.report.statistics.student import t_quantile

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
    assert (found.slope, found.best_slope) == pytest.approx((-0.5, -0.5), rel=EXACT)
    assert found.r2 == pytest.approx(1, rel=EXACT)
    assert (found.half, found.half_if_independent) == pytest.approx((0, 0), abs=1e-12)
    assert (found.points, found.floor_step) == (20, None)


def test_the_rate_is_of_the_values_and_stands_beside_that_of_the_best_so_far() -> None:
    """10^-k at step 10^k, with peaks between: the running minimum is flat over them."""
    steps = np.array([1, 3, 10, 30, 100, 300])
    norms = np.array([1.0, 50, 0.1, 50, 0.01, 50])
    x, y = np.log(steps), np.log([1, 1, 0.1, 0.1, 0.01, 0.01])
    found = fit_rate(steps, norms)
    assert found is not None
    assert found.best_slope == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-10)
    assert found.slope == pytest.approx(np.polyfit(x, np.log(norms), 1)[0], rel=1e-10)


def test_the_jackknife_leaves_out_one_block_at_a_time() -> None:
    """Ten values in blocks of two, by hand."""
    generator = np.random.default_rng(2)
    steps, norms = np.arange(1, 11) * 10.0, generator.random(10)
    x, y = np.log(steps), np.log(norms)
    keep = [[k for k in range(10) if k // 2 != block] for block in range(5)]
    slopes = np.array([np.polyfit(x[k], y[k], 1)[0] for k in keep])
    error = math.sqrt(4 / 5 * ((slopes - slopes.mean()) ** 2).sum())
    found = fit_rate(steps, norms)
    assert found is not None
    assert found.half == pytest.approx(t_quantile(0.975, 4) * error, rel=1e-10)


@pytest.mark.parametrize(
    ("points", "autocorrelation", "share"),
    [(20, 0.0, 0.95), (20, 0.5, 0.95), (20, 0.8, 0.91), (50, 0.0, 0.95), (50, 0.5, 0.95), (50, 0.8, 0.93),
     (100, 0.0, 0.95), (100, 0.5, 0.95), (100, 0.8, 0.95)],
)  # fmt: skip
def test_the_interval_holds_the_true_rate(points: int, autocorrelation: float, share: float) -> None:
    """k^-0.5 with log-normal noise of 0.5, 600 curves, nominal 95 %: the shares of the module's docstring up to three
    standard errors. The t interval holds it far less often, and the best-so-far slope is biased."""
    generator, k = np.random.default_rng(points), np.arange(1, points + 1)
    found, curves = [], 600
    for _ in range(curves):
        noise = generator.normal(size=points)
        for i in range(1, points):
            noise[i] = autocorrelation * noise[i - 1] + math.sqrt(1 - autocorrelation**2) * noise[i]
        found.append(fit_rate(100 * k, np.exp(0.5 * noise) * k**-0.5))
    rates = [f for f in found if f is not None]
    assert len(rates) == curves
    jackknife, line = (
        np.mean([abs(f.slope + 0.5) <= getattr(f, name) for f in rates]) for name in ("half", "half_if_independent")
    )
    assert jackknife == pytest.approx(share, abs=3 * math.sqrt(share * (1 - share) / curves))
    assert (line < 0.85) == (autocorrelation > 0)
    assert np.mean([f.slope for f in rates]) == pytest.approx(-0.5, abs=0.03)
    assert np.mean([f.best_slope for f in rates]) < -0.55


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
    assert (found.best_slope, found.points) == (pytest.approx(expected.slope, rel=EXACT), 5)


def test_a_rate_needs_five_points_that_are_there() -> None:
    steps = [1, 2, 3, 4, 5]
    assert fit_rate(steps, [5, 4, 3, 2, 1]) is not None
    assert fit_rate(steps, [5, 4, None, 2, 1]) is None
    assert fit_rate([], []) is None


def test_a_norm_that_never_falls_has_a_best_rate_of_0() -> None:
    found = fit_rate([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6])
    assert found is not None
    assert (found.slope, found.best_slope) == (pytest.approx(1, rel=EXACT), 0)


def test_stationarity_is_the_smallest_squared_norm_and_its_root() -> None:
    assert epsilon_stationarity([10, 20, 30], [4, 0.25, 1]) == (0.25, 20, 0.5)
    assert epsilon_stationarity([10, 20, 30], [4, -0.01, None]) == (-0.01, 20, 0)
    assert epsilon_stationarity([10], [None]) is None
    assert epsilon_stationarity([], []) is None

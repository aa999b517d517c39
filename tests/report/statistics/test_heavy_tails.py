"""Heavy tails: closed forms, hand-made cases, and how often intervals hold in simulation (float64)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from metarun.report.statistics.heavy_tails import iqm_interval, measure_tail, median_interval
from metarun.report.statistics.intervals import Array, normal_interval

EXACT = 1e-12
SAMPLES, VALUES = 1000, 600
NOISE = 3 * math.sqrt(0.95 * 0.05 / SAMPLES)  # three standard errors of a share of 95 %

Draw = Callable[[np.random.Generator, int], Array]
DISTRIBUTIONS: dict[str, tuple[Draw, Callable[[Array], Array]]] = {  # draws, and the quantile function
    "normal": (lambda r, n: r.normal(5, 1, n), lambda p: 5 + _normal_quantile(p)),
    "lognormal": (lambda r, n: r.lognormal(0, 1.5, n), lambda p: np.exp(1.5 * _normal_quantile(p))),
    "pareto": (lambda r, n: 1 + r.pareto(1.5, n), lambda p: (1 - p) ** (-1 / 1.5)),
}


def _normal_quantile(p: Array) -> Array:
    from statistics import NormalDist

    return np.array([NormalDist().inv_cdf(q) for q in np.atleast_1d(p)])


def _samples(name: str, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [DISTRIBUTIONS[name][0](rng, VALUES) for _ in range(SAMPLES)]


def test_tail_index_by_hand() -> None:
    """x_(i) = e^(1/i) for the 10 largest of 200, e^0 = 1 for the others: 1/alpha = (1 + 1/2 + ... + 1/10) / 10."""
    values = np.concatenate([np.ones(190), np.exp(1 / np.arange(1, 11))])
    index = 10 / sum(1 / i for i in range(1, 11))
    found = measure_tail(np.random.default_rng(0).permutation(values))
    assert found == pytest.approx((index, index / math.sqrt(10), 0), rel=EXACT)


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0, 4.0])
def test_tail_index_of_a_pareto_distribution_is_its_exponent(alpha: float) -> None:
    """1/alpha is a mean of k exponential variables, so that 1/index is unbiased with error 1 / (alpha sqrt(k))."""
    rng = np.random.default_rng(1)
    found = [1 / measure_tail(1 + rng.pareto(alpha, VALUES)).alpha for _ in range(SAMPLES)]
    assert np.mean(found) == pytest.approx(1 / alpha, abs=4 / (alpha * math.sqrt(VALUES / 20 * SAMPLES)))
    assert np.std(found) == pytest.approx(1 / (alpha * math.sqrt(VALUES / 20)), rel=0.1)


def test_values_without_a_tail_index() -> None:
    """Too few, equal, or not above 0; a value that is not finite is a heavy tail whatever the others are."""
    for values in (np.arange(1, 100), np.zeros(500), -np.ones(500)):
        assert math.isnan(measure_tail(values).alpha)
        assert not measure_tail(values).heavy
    assert measure_tail(np.ones(500)).alpha == math.inf
    for lost in (math.nan, math.inf):
        assert measure_tail([1.0, lost, 2.0]).heavy
        assert measure_tail([1.0, lost, 2.0]).not_finite == 1


def test_heavy_tails_are_found_and_light_ones_are_not() -> None:
    """600 values. Pareto 1.5 and log-normal 1.5 have intervals of the mean that do not hold; the normal one does."""
    share = {name: np.mean([measure_tail(x).heavy for x in _samples(name)]) for name in DISTRIBUTIONS}
    assert share["normal"] == 0
    assert share["lognormal"] > 0.98
    assert share["pareto"] > 0.98
    rng = np.random.default_rng(2)
    assert np.mean([measure_tail(rng.exponential(size=VALUES)).heavy for _ in range(SAMPLES)]) < 0.02


def test_median_and_its_ranks_by_hand() -> None:
    """n = 6: P(Bin = 0) = 1/64 <= 2.5 % < 7/64, so the ends are the first and the last. n = 5: 1/32 is above 2.5 %.
    n = 10: P(Bin <= 1) = 11/1024 <= 2.5 % < 56/1024, so the second and the ninth."""
    assert median_interval([3, 1, 6, 2, 5, 4]) == (3.5, 1, 6)
    assert median_interval([3, 1, 2, 5, 4])[0] == 3
    assert math.isnan(median_interval([3, 1, 2, 5, 4]).low)
    assert median_interval(range(10)) == (4.5, 1, 8)
    assert math.isnan(median_interval([]).estimate)


def test_a_failed_task_is_the_worst_one() -> None:
    assert median_interval([math.nan, 1, 2, 3, math.inf, 4, 5]) == (4, 1, math.inf)
    assert iqm_interval([1, 2, 3, 4, 5, 6, math.nan, math.inf]).mean == pytest.approx((3 + 4 + 5 + 6) / 4)
    assert math.isfinite(iqm_interval([1, 2, 3, 4, 5, 6, math.nan, math.inf]).half)
    assert median_interval([1, math.inf, math.inf]).estimate == math.inf


def test_interval_of_the_interquartile_mean_by_hand() -> None:
    """1 .. 8 become 3 3 3 4 5 6 6 6: mean 4.5, squares 2.25 * 6 + 0.25 * 2 = 14, s_w = sqrt(2), t_3 = 3.182."""
    found = iqm_interval([8, 1, 7, 2, 6, 3, 5, 4])
    assert found.mean == pytest.approx(4.5, rel=EXACT)
    assert found.half == pytest.approx(3.182446305284263 * math.sqrt(2) / (0.5 * math.sqrt(8)), rel=EXACT)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_intervals_of_median_and_interquartile_mean_hold(name: str) -> None:
    """The median's holds in at least 95 % by its ranks; the other one in 95 % up to noise, for 600 values."""
    quantile = DISTRIBUTIONS[name][1]
    median = float(np.ravel(quantile(np.array([0.5])))[0])
    middle = float(np.mean(quantile(0.25 + (np.arange(20_000) + 0.5) / 40_000)))  # of the distribution
    samples = _samples(name)
    held = np.mean([i.low <= median <= i.high for i in map(median_interval, samples)])
    assert 0.95 - NOISE <= held <= 0.97 + NOISE
    held = np.mean([i.low <= middle <= i.high for i in map(iqm_interval, samples)])
    assert held == pytest.approx(0.95, abs=NOISE)


def test_a_normal_interval_holds_for_light_tails_alone() -> None:
    """600 values: 95 % of the normal samples; of log-normal 1.5 and Pareto 1.5 far fewer."""
    means = {"normal": 5.0, "lognormal": math.exp(1.5**2 / 2), "pareto": 3.0}
    held = {
        name: np.mean([i.low <= mean <= i.high for i in map(normal_interval, _samples(name))])
        for name, mean in means.items()
    }
    assert held["normal"] == pytest.approx(0.95, abs=NOISE)
    assert held["lognormal"] < 0.93
    assert held["pareto"] < 0.8

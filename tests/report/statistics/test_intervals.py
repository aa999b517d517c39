"""Intervals, interquartile mean and bootstrap: closed forms, hand-made cases and simulation."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from metarun.report.statistics.intervals import iqm, normal_interval, stratified_bootstrap, t_interval
from metarun.report.statistics.student import two_sided_tail

EXACT = 1e-12


def test_normal_and_t_interval_of_three_values_by_hand() -> None:
    """1, 2, 3: mean 2, s = 1, so 1.96 / sqrt(3), and t_2 = 4.3027 in place of 1.96."""
    assert normal_interval([1, 2, 3]) == pytest.approx((2, 1.96 / math.sqrt(3)), rel=EXACT)
    assert t_interval([1, 2, 3]) == pytest.approx((2, 4.302652729749464 / math.sqrt(3)), rel=EXACT)
    assert t_interval([1, 2, 3], level=0.99).half == pytest.approx(9.924843200918293 / math.sqrt(3), rel=EXACT)
    found = t_interval([1, 2, 3])
    assert (found.low, found.high) == (found.mean - found.half, found.mean + found.half)


@pytest.mark.parametrize("interval", [normal_interval, t_interval])
def test_an_interval_needs_two_numbers(interval) -> None:  # type: ignore[no-untyped-def]
    assert interval([0.5]).mean == 0.5
    assert math.isnan(interval([0.5]).half)
    assert math.isnan(interval([]).mean)
    assert math.isnan(interval([1.0, None, 2.0]).mean)
    assert interval([0.5, 0.5]) == (0.5, 0.0)


def test_t_intervals_of_four_runs_hold_the_mean_in_95_percent_and_normal_ones_do_not() -> None:
    """800 samples: the binomial standard error is 0.8 %. Normal ones hold it in P(|T_3| < 1.96) = 85.5 %."""
    samples = np.random.default_rng(0).normal(3.0, 2.0, size=(800, 4))
    t, normal = (np.mean([abs(f(x)[0] - 3) <= f(x)[1] for x in samples]) for f in (t_interval, normal_interval))
    assert t == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 800))
    assert normal == pytest.approx(1 - two_sided_tail(1.96, 3), abs=3 * math.sqrt(0.855 * 0.145 / 800))


def test_interquartile_mean_by_hand() -> None:
    """Eight values: the middle four. Five: [1.25, 3.75] of the sorted line: 3/4 of the second, all of the third ..."""
    assert iqm([8, 1, 7, 2, 6, 3, 5, 100]) == pytest.approx((3 + 5 + 6 + 7) / 4, rel=EXACT)
    assert iqm([100, 4, 2, 1, 0]) == pytest.approx((0.75 * 1 + 2 + 0.75 * 4) / 2.5, rel=EXACT)
    assert iqm([3]) == 3
    assert iqm([3, 4]) == 3.5


@pytest.mark.parametrize("shape", [(4,), (5,), (3, 7), (2, 3)])
def test_interquartile_mean_is_the_trimmed_mean_of_every_value_taken_four_times(shape: tuple[int, ...]) -> None:
    """Four copies of n values are 4 n values, of which exactly n are cut off at each end."""
    values = np.random.default_rng(1).normal(size=shape)
    n = values.size
    assert iqm(values) == pytest.approx(np.sort(np.repeat(values, 4))[n:-n].mean(), rel=EXACT)


def test_interquartile_mean_cuts_off_an_infinity_and_keeps_a_missing_value_missing() -> None:
    assert iqm([1, 2, 3, math.inf]) == 2.5
    assert math.isnan(iqm([1, 2, 3, math.nan]))
    assert math.isnan(iqm([]))


def test_the_bootstrap_is_a_function_of_its_seed() -> None:
    scores = np.random.default_rng(2).normal(size=(6, 3))
    first = stratified_bootstrap(scores, iqm, seed=1, draws=200)
    assert first == stratified_bootstrap(scores, iqm, seed=1, draws=200)
    assert first != stratified_bootstrap(scores, iqm, seed=2, draws=200)
    assert first.low < first.estimate == iqm(scores) < first.high


def test_the_bootstrap_stays_within_strata() -> None:
    """Columns that are constant give the same mean in every draw, however far they are apart."""
    found = stratified_bootstrap([[0, 100], [0, 100], [0, 100]], np.mean, seed=0, draws=50)
    assert found == (50, 50, 50)


def test_the_bootstrap_draws_each_stratum_anew() -> None:
    """A column and its mirror image: rows drawn together would cancel to a constant, drawn apart they do not.

    The mean of 2 R values drawn apart has variance s^2 / (2 R), s^2 with divisor R: width 2 * 1.96 sqrt(that).
    """
    column = np.random.default_rng(3).normal(size=40)
    found = stratified_bootstrap(np.stack([column, -column], 1), np.mean, seed=0, draws=4000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * column.std() / math.sqrt(80), rel=0.05)


def test_one_run_or_a_missing_score_has_no_bootstrap_interval() -> None:
    assert stratified_bootstrap([[1, 2]], np.mean, seed=0)[0] == 1.5
    assert all(math.isnan(v) for v in stratified_bootstrap([[1, 2]], np.mean, seed=0)[1:])
    assert all(math.isnan(v) for v in stratified_bootstrap([1, None, 3], np.mean, seed=0, draws=9))


@pytest.mark.parametrize("runs", [5, 40])
def test_bootstrap_intervals_hold_the_mean_as_often_as_theory_says(runs: int) -> None:
    """About P(|T_{R-1}| < 1.96 sqrt((R-1)/R)) for one stratum: 85 % at R = 5, 94 % at R = 40; 250 samples."""
    generator, trials = np.random.default_rng(4), 250
    held = 0
    for trial in range(trials):
        found = stratified_bootstrap(generator.normal(size=runs), np.mean, seed=trial, draws=200)
        held += found.low <= 0 <= found.high
    expected = 1 - two_sided_tail(1.96 * math.sqrt((runs - 1) / runs), runs - 1)
    assert held / trials == pytest.approx(expected, abs=3 * math.sqrt(expected * (1 - expected) / trials))


def test_statistics_do_without_torch() -> None:
    parts = ("convergence", "intervals", "paired", "rate", "student", "variance")
    code = (
        "import sys," + ",".join(f"metarun.report.statistics.{p}" for p in parts) + "; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

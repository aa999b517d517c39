"""Intervals, variance components, paired comparison: against tables, closed forms, hand-made cases and simulation."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from metarun.statistics.intervals import iqm, normal_interval, stratified_bootstrap, t_interval
from metarun.statistics.paired import compare
from metarun.statistics.student import MANY, t_quantile, two_sided_tail
from metarun.statistics.variance import variance_components

EXACT = 1e-12

# Quantiles to 16 digits, by bisection on an incomplete beta function of 40 digits (mpmath).
TABLE = [
    (1, 0.975, 12.7062047361747),
    (2, 0.975, 4.302652729749464),
    (4, 0.975, 2.776445105197794),
    (9, 0.975, 2.262157162798206),
    (29, 0.975, 2.045229642132704),
    (9, 0.995, 3.249835541592126),
    (99, 0.95, 1.660391156016991),
    (599, 0.975, 1.963932248945279),
]


@pytest.mark.parametrize(("df", "probability", "expected"), TABLE)
def test_quantiles_of_student_are_those_of_the_tables(df: int, probability: float, expected: float) -> None:
    assert t_quantile(probability, df) == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize("p", [0.51, 0.6, 0.9, 0.975, 0.9995, 1 - 1e-9])
def test_quantiles_of_one_two_and_four_degrees_of_freedom_have_closed_forms(p: float) -> None:
    """tan(pi (p - 1/2)); 2 (p - 1/2) sqrt(2/a), a = 4 p (1 - p); 2 sqrt(q - 1), q = cos(acos(sqrt a)/3)/sqrt a."""
    a = 4 * p * (1 - p)
    q = math.cos(math.acos(math.sqrt(a)) / 3) / math.sqrt(a)
    assert t_quantile(p, 1) == pytest.approx(1 / math.tan(math.pi * (1 - p)), rel=1e-10)
    assert t_quantile(p, 2) == pytest.approx(2 * (p - 0.5) * math.sqrt(2 / a), rel=1e-10)
    assert t_quantile(p, 4) == pytest.approx(2 * math.sqrt(q - 1), rel=1e-10)


@pytest.mark.parametrize("df", [0.5, 3, 7.5, 40])
@pytest.mark.parametrize("t", [0.01, 0.7, 2.0, 9.0])
def test_the_tail_is_one_minus_the_integral_of_the_density(df: float, t: float) -> None:
    """P(|T| <= t) = 2 integral from 0 to t of G((nu+1)/2) / (sqrt(nu pi) G(nu/2)) (1 + u^2/nu)^(-(nu+1)/2) du."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    u = t * (nodes + 1) / 2
    log_scale = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - math.log(df * math.pi) / 2
    inside = 2 * t / 2 * weights @ (math.exp(log_scale) * (1 + u * u / df) ** (-(df + 1) / 2))
    assert two_sided_tail(t, df) == pytest.approx(1 - inside, abs=1e-13)
    assert two_sided_tail(-t, df) == two_sided_tail(t, df)


@pytest.mark.parametrize("p", [0.6, 0.975, 0.9995])
def test_bisection_and_expansion_agree_where_one_takes_over(p: float) -> None:
    """One more degree of freedom moves the quantile by about (t^3 + t) / (4 nu^2), some 1e-8."""
    below, above = t_quantile(p, MANY), t_quantile(p, MANY + 1)
    assert below - above == pytest.approx((below**3 + below) / (4 * MANY**2), abs=5e-11)


def test_quantiles_are_symmetric_and_refuse_what_has_none() -> None:
    for p in (0.025, 0.45):
        assert t_quantile(p, 5) == pytest.approx(-t_quantile(1 - p, 5), rel=1e-12)
    assert t_quantile(0.5, 5) == pytest.approx(0, abs=1e-300)
    for p, df in [(0.0, 3), (1.0, 3), (0.975, 0), (math.nan, 3)]:
        with pytest.raises(ValueError, match="probability"):
            t_quantile(p, df)


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


def test_paired_comparison_is_that_of_numpy() -> None:
    """Tasks that are hard for both: the paired interval is far shorter than the one of separate measurements."""
    generator = np.random.default_rng(6)
    hard = generator.normal(size=300)
    a, b = hard + 0.1 * generator.normal(size=300) + 0.05, hard + 0.1 * generator.normal(size=300)
    found = compare(a, b, higher_is_better=True)
    assert found.difference == pytest.approx((a - b).mean(), rel=EXACT)
    assert found.half == pytest.approx(1.96 * (a - b).std(ddof=1) / math.sqrt(300), rel=EXACT)
    assert found.unpaired_half == pytest.approx(1.96 * math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 300), rel=EXACT)
    assert found.half < found.unpaired_half / 5
    assert (found.wins, found.ties, found.losses, found.n) == (np.mean(a > b), 0, np.mean(a < b), 300)


def test_wins_follow_the_direction_and_the_difference_does_not() -> None:
    up, down = (compare([1, 2, 3, 4], [1, 1, 1, 9], better) for better in (True, False))
    assert (up.difference, down.difference) == (-0.5, -0.5)
    assert (up.wins, up.ties, up.losses) == (0.5, 0.25, 0.25) == (down.losses, down.ties, down.wins)


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_a_missing_score_loses_and_leaves_no_difference(higher_is_better: bool) -> None:
    found = compare([None, 1, None, None], [0, None, None, 2], higher_is_better)
    assert math.isnan(found.difference)
    assert (found.wins, found.ties, found.losses) == (0.25, 0.25, 0.5)


def test_one_task_has_a_difference_without_interval_and_unlike_lengths_are_refused() -> None:
    one = compare([2], [1], True)
    assert one.difference == 1
    assert math.isnan(one.half)
    assert math.isnan(one.unpaired_half)
    for a, b in (([1, 2], [1]), ([], [])):
        with pytest.raises(ValueError, match="as many scores"):
            compare(a, b, True)


def test_statistics_do_without_torch() -> None:
    parts = ("convergence", "intervals", "paired", "rate", "student", "variance")
    code = "import sys," + ",".join(f"metarun.statistics.{p}" for p in parts) + "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

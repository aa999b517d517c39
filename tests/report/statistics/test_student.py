"""Student's t against tables, closed forms and quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metarun.report.statistics.student import MANY, t_quantile, two_sided_tail

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

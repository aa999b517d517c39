r"""Student's t distribution: its tail, and the quantile that an interval over a few runs needs.

    P(|T| > t) = I_x(nu/2, 1/2),   x = nu / (nu + t^2)
    I_x(a, b)  = x^a (1-x)^b / (a B(a, b)) * 1/(1 + d_1/(1 + d_2/(1 + ...)))        for x < (a+1)/(a+b+2)
    d_2m       = m (b-m) x / ((a+2m-1) (a+2m)),   d_2m+1 = -(a+m) (a+b+m) x / ((a+2m) (a+2m+1))
    I_x(a, b)  = 1 - I_{1-x}(b, a)                                                   elsewhere

(NIST Digital Library of Mathematical Functions, 8.17.4 and 8.17.22.) Symbols: nu degrees of freedom, I the
regularized incomplete beta function, B the beta function. The quantile is found by bisection; above `MANY` degrees of
freedom by the expansion around the normal quantile z (Abramowitz and Stegun 26.7.5), whose next term is below 1e-12
there for levels up to 0.9999:

    t = z + (z^3 + z)/(4 nu) + (5 z^5 + 16 z^3 + 3 z)/(96 nu^2) + (3 z^7 + 19 z^5 + 17 z^3 - 15 z)/(384 nu^3)
"""

from __future__ import annotations

import functools
import math
from statistics import NormalDist

MANY = 10_000
TERMS = 10_000  # of the continued fraction; up to MANY degrees of freedom it needs a few dozen


@functools.lru_cache(maxsize=256)
def t_quantile(probability: float, df: float) -> float:
    """Return the t with P(T <= t) = probability, to a relative error of about 1e-11."""
    if not (0 < probability < 1 and df > 0):
        raise ValueError(f"needs 0 < probability < 1 and df > 0, got {probability} and {df}")
    if probability < 0.5:
        return -t_quantile(1 - probability, df)
    if df > MANY:
        return _expand_around_normal(probability, df)
    low, high, tail = 0.0, 1.0, 2 * (1 - probability)
    while two_sided_tail(high, df) > tail:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:  # until no float lies between
        low, high = (middle, high) if two_sided_tail(middle, df) > tail else (low, middle)
    return middle


def two_sided_tail(t: float, df: float) -> float:
    """Return P(|T| > |t|), the p-value of a t statistic."""
    a, b, total = df / 2, 0.5, df + t * t
    x, rest = df / total, t * t / total  # not 1 - x, which would lose the digits of an x near 1
    if not x or not rest:
        return 1.0 if x else 0.0
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    front = math.exp(a * math.log(x) + b * math.log(rest) - log_beta)
    if x < (a + 1) / (a + b + 2):
        return front / (a * _fraction(x, a, b))
    return 1 - front / (b * _fraction(rest, b, a))


def _expand_around_normal(probability: float, df: float) -> float:
    z = NormalDist().inv_cdf(probability)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / df + second / df**2 + third / df**3


def _fraction(x: float, a: float, b: float) -> float:
    """1 + d_1/(1 + d_2/(1 + ...)), from the front, as a product of ratios of successive convergents (Lentz)."""
    value = numerator = 1.0
    denominator = 0.0
    for k in range(1, TERMS):
        m = k // 2
        if k % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        denominator = 1 / (1 + d * denominator)
        numerator = 1 + d / numerator
        value *= numerator * denominator
        if abs(numerator * denominator - 1) < 1e-16:
            break
    return value

"""Paired tests and Holm's correction, by hand and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metarun.report.statistics.multiple import holm, paired_test


def test_a_paired_test_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, deviation 1, t = 2 sqrt(3) with two degrees of freedom, whose tail is known:
    P(|T_2| > t) = 1 - t / sqrt(2 + t^2)."""
    found = paired_test([2, 4, 6], [1, 2, 3])
    t = 2 * math.sqrt(3)
    assert found.difference == 2
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert found.half == pytest.approx(4.302652729911275 / math.sqrt(3))
    assert found.pairs == 3


def test_what_has_no_spread_or_no_pair() -> None:
    assert paired_test([1, 2], [0, 1]).p == 0
    assert paired_test([1, 2], [1, 2]).p == 1
    assert math.isnan(paired_test([1], [0]).p)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    found = holm([0.02, math.nan])
    assert found[0] == 0.02
    assert math.isnan(found[1])


def test_a_wrong_rejection_among_many_is_as_rare_as_promised() -> None:
    draw = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        base = draw.normal(size=6)
        tests = [paired_test(base + draw.normal(size=6), base) for _ in range(8)]
        wrong += min(holm([t.p for t in tests])) < 0.05
    assert wrong / 400 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)

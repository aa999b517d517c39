"""Paired comparison: numpy, hand-made cases, missing scores."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metarun.report.statistics.paired import compare

EXACT = 1e-12


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

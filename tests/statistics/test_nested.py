"""Variance within and between groups."""

from __future__ import annotations

import numpy as np
import pytest

from metarun.statistics.variance import nested_components


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

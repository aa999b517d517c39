"""Moments of activations against loops over features; the interval where two trajectories part, by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from metarun.diagnostics.activation_moments import aggregate_moments, correlation, find_parting


def test_moments_are_sums_over_inputs_and_features() -> None:
    h = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = aggregate_moments(h)
    means = [sum(float(v) for v in h[:, j]) / 5 for j in range(4)]
    pairs = [(j, k) for j, k in itertools.product(range(4), repeat=2) if j != k]
    expected = {
        "mean": sum(means) / 4,
        "squared_mean": sum(m * m for m in means) / 4,
        "square": sum(float(v) ** 2 for v in h.flatten()) / 20,
        "cross": sum(float(h[i, j] * h[i, k]) for i in range(5) for j, k in pairs) / (5 * 12),
    }
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_layer_of_one_feature_has_no_pairs() -> None:
    assert aggregate_moments(torch.tensor([[2.0], [4.0]])) == {"mean": 3, "squared_mean": 9, "square": 10, "cross": 0}


def test_correlation() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 7))
    assert correlation(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert correlation([1, 1, 1], [1, 2, 3]) == 0
    assert correlation([1, math.nan, 1], [1, 2, 3]) == 0


def test_trajectories_part_where_one_turns() -> None:
    """Over the last four points of each the correlation is -1, and any longer interval is less negative."""
    source, target = [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 2, 1, 0]
    found = find_parting(target, source)
    assert found is not None
    scores = {a: -correlation(target[a:], source[a:]) * (7 - a + 1) for a in range(5)}
    assert max(scores, key=lambda a: scores[a]) == found.start == 3
    assert (found.correlation, found.score) == (pytest.approx(-1), pytest.approx(5))


def test_trajectories_that_go_together_do_not_part() -> None:
    assert find_parting([0, 1, 2, 4], [0, 2, 3, 9]) is None
    assert find_parting([1, 0], [0, 1]) is None  # two points always correlate
    assert find_parting([1, 1, 1], [0, 1, 2]) is None

"""The mean of the worst tasks: a closed form of the normal distribution, and what its interval holds."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from metarun.report.statistics.worst_tasks import measure_worst

Z = NormalDist().inv_cdf(0.9)
CVAR = NormalDist().pdf(Z) / 0.1  # of a standard normal error, the worst tenth


def test_it_is_the_mean_of_the_worst_tenth_with_the_sign_of_the_metric() -> None:
    scores = np.arange(100.0)
    found = measure_worst(scores, higher_is_better=True)
    assert found is not None
    assert (found.mean, found.worst) == (pytest.approx(np.arange(10).mean()), 0.0)
    errors = measure_worst(scores, higher_is_better=False)
    assert errors is not None
    assert (errors.mean, errors.worst) == (pytest.approx(np.arange(90, 100).mean()), 99.0)


def test_of_normal_errors_it_is_the_closed_form_and_the_interval_holds_it() -> None:
    rng = np.random.default_rng(0)
    large = measure_worst(rng.standard_normal(400_000), higher_is_better=False)
    assert large is not None
    assert large.mean == pytest.approx(CVAR, abs=0.02)
    drawn = [measure_worst(rng.standard_normal(600), higher_is_better=False) for _ in range(1000)]
    held = np.mean([abs(found.mean - CVAR) <= found.half for found in drawn if found])
    assert 0.95 - 4 * math.sqrt(0.95 * 0.05 / 1000) < held < 0.97


def test_too_few_or_no_finite_errors_have_none() -> None:
    assert measure_worst(np.arange(19.0), higher_is_better=True) is None
    assert measure_worst(np.array([*np.arange(30.0), np.inf]), higher_is_better=False) is None

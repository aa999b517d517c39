"""The noise scale of drawn gradients whose mean and covariance are known."""

from __future__ import annotations

import numpy as np
import pytest

from metarun.report.statistics.noise_scale import fit_noise_scale


def records(scale: float, count: int, tasks: int = 25, dims: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """`grad_norm` and `grad_variance` of tasks with the gradient G + noise, |G| = 1 and tr Cov = scale."""
    rng = np.random.default_rng(0)
    mean = np.full(dims, dims**-0.5)
    drawn = mean + np.sqrt(scale / dims) * rng.standard_normal((count, tasks, dims))
    return np.linalg.norm(drawn.mean(1), axis=1), drawn.var(1, ddof=1).sum(1)


def test_it_is_the_trace_over_the_squared_mean_of_the_last_half() -> None:
    norms, variances = records(80.0, 400)
    norms[:200], variances[:200] = 100.0, 1.0
    found = fit_noise_scale(norms, variances, 25)
    assert found is not None
    assert (found.used, found.records) == (25, 200)
    assert found.tasks == pytest.approx(80, rel=0.1)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 80 < found.high
    assert found.high / found.low < 2


def test_noise_alone_has_no_upper_bound() -> None:
    found = fit_noise_scale(*records(1e7, 60), 25)
    assert found is not None
    assert found.high is None
    assert found.low is None or found.low > 100


def test_too_few_records_have_none() -> None:
    assert fit_noise_scale(*records(80.0, 19), 25) is None
    assert fit_noise_scale(np.ones(40), np.zeros(40), 25) is None

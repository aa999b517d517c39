"""Curves are smoothed and thinned before they are drawn."""

from __future__ import annotations

import numpy as np
import pytest

from metarun.report.figures.drawing import running_median, smooth, thin


def test_the_running_median_passes_over_spikes_and_what_is_not_finite() -> None:
    y = np.array([1.0, np.nan, 3.0, 500.0, 5.0, np.inf, np.nan, np.nan])
    found = running_median(y, 3)
    assert found[:6].tolist() == [1.0, 2.0, 251.5, 5.0, 252.5, 5.0]
    assert np.isnan(found[7])
    assert running_median(y[2:5], 1).tolist() == [3.0, 500.0, 5.0]
    assert len(running_median(np.zeros(0), 3)) == 0


def test_smoothing_keeps_a_line_and_rounds_a_step() -> None:
    line = np.arange(20.0)
    assert smooth(line, 4)[4:-4].tolist() == line[4:-4].tolist()
    step = np.repeat([0.0, 1.0], 10)
    assert smooth(step, 2)[8:12].tolist() == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])
    assert smooth(step, 1).tolist() == step.tolist()


def test_thinning_takes_means_of_equal_groups() -> None:
    x = np.arange(900.0)
    thin_x, thin_y = thin(x, 2 * x)
    assert len(thin_x) == 300
    assert thin_x[:2].tolist() == [1.0, 4.0]
    assert thin_y[-1] == pytest.approx(2 * (897 + 898 + 899) / 3)

"""Figures of several runs: means over seeds, and test metrics against zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from metarun.report.figures.comparison import average_curves, draw_sparsity
from metarun.report.read.runs import Run


def test_the_mean_over_seeds_is_taken_where_all_have_a_value() -> None:
    one = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0])
    two = np.array([2.0, 3.0, 4.0]), np.array([4.0, 9.0, 1.0])
    x, mean, low, high = average_curves([one, two])
    assert [v.tolist() for v in (x, mean, low, high)] == [[2, 3], [3, 6], [2, 3], [4, 9]]
    assert [len(v) for v in average_curves([])] == [0, 0, 0, 0]


def run(weight: float, zeros: float | None, mean: float = 0.8, ways: int = 5, method: str = "prox") -> Run:
    penalised = None if zeros is None else {"zeros_share": zeros, "small_share": zeros + 0.1, "parameters": 100}
    summary: dict[str, Any] = {
        "algo": "maml",
        "data": "omniglot",
        "ways": ways,
        "shots": 1,
        "kind": "classification",
        "metric": "accuracy",
        "mean": mean,
        "ci95": 0.01,
        "sparsity": {"threshold": 1e-3, "penalised": penalised},
        "regularization": [{"name": "l1", "weight": weight, "method": method}],
    }
    return Run(Path("x"), {}, "", summary, {}, {}, None, (), None, ())


def test_the_figure_has_a_line_for_each_method_in_the_order_of_weights() -> None:
    runs = [run(1e-2, 0.5, 0.7), run(0.0, 0.0), run(1e-3, 0.2), run(1e-3, 0.0, method="subgradient")]
    drawing = draw_sparsity(runs)
    assert drawing is not None
    left, right = drawing.figure.axes
    assert left.lines[0].get_xdata().tolist() == [0.0, 0.2, 0.5]
    assert left.lines[0].get_ydata().tolist() == [80.0, 80.0, 70.0]
    assert right.lines[0].get_xdata().tolist() == [0.1, 0.2 + 0.1, 0.6]
    assert "weight 0.01: 70" in drawing.alt


def test_runs_without_zeros_to_compare_have_no_figure() -> None:
    assert draw_sparsity([]) is None
    assert draw_sparsity([run(0.0, None), run(1e-3, None)]) is None
    assert draw_sparsity([run(0.0, 0.0), run(1e-3, 0.0)]) is None


def test_runs_on_other_episodes_are_left_out() -> None:
    drawing = draw_sparsity([run(0.0, 0.0), run(1e-3, 0.2), run(1e-2, 0.9, ways=20)])
    assert drawing is not None
    assert drawing.figure.axes[0].lines[0].get_xdata().tolist() == [0.0, 0.2]

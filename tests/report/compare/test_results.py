"""Intervals, paired differences and budgets against numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.report_folders import read_runs, records

from metarun.report.compare.groups import group_runs
from metarun.report.compare.results import compare, equal_compute, pair_benchmarks, pairs, summarize

T_975_2 = 4.302652729911275  # Student's quantile at 97.5 % with two degrees of freedom


def test_one_seed_has_the_interval_over_its_tasks(tmp_path: Path) -> None:
    (group,) = group_runs(read_runs(tmp_path, {"mean": 0.8, "ci95": 0.02, "metric": "accuracy"}))
    assert tuple(summarize(group).test) == (80.0, 2.0, "tasks")


def test_several_seeds_have_students_interval_over_their_means(tmp_path: Path) -> None:
    (group,) = group_runs(read_runs(tmp_path, *({"seed": s, "mean": m} for s, m in enumerate((1.0, 2.0, 3.0)))))
    found = summarize(group).test
    assert found.over == "seeds"
    assert (found.mean, found.half) == pytest.approx((2.0, T_975_2 / math.sqrt(3)), rel=1e-9)
    assert summarize(group).iqm.estimate == pytest.approx(2.0)


def test_a_seed_that_diverged_is_counted_and_leaves_the_average_curves_the_others(tmp_path: Path) -> None:
    changes = [{"seed": 0, "mean": 1.0}, {"seed": 1, "mean": None, "diverged": True}, {"seed": 2, "mean": 3.0}]
    (group,) = group_runs(read_runs(tmp_path, *changes))
    found = summarize(group)
    assert (found.tested, found.diverged, found.test.mean) == (2, 1, 2.0)


def test_spread_is_split_into_seeds_and_tasks(tmp_path: Path) -> None:
    """Scores that are a seed's effect plus a task's effect and nothing else: the components are their variances."""
    seeds, tasks = np.array([0.0, 1.0, 2.0]), np.array([0.0, 2.0, 4.0, 6.0])
    changes = [{"seed": s, "scores": [(e + tasks).tolist()] * 4} for s, e in enumerate(seeds)]
    (group,) = group_runs(read_runs(tmp_path, *changes))
    assert summarize(group).spread == pytest.approx((seeds.std(ddof=1), tasks.std(ddof=1)))


def test_pairs_are_compared_task_by_task_at_the_reported_step(tmp_path: Path) -> None:
    a, b = np.array([0.9, 0.8, 0.7, 0.9]), np.array([0.8, 0.8, 0.8, 0.6])
    unused = [[0.0] * 4] * 3
    base = {"metric": "accuracy"}
    runs = read_runs(
        tmp_path, base | {"scores": [*unused, a.tolist()]}, base | {"scores": [*unused, b.tolist()], "algo": "x"}
    )
    found = compare(*group_runs(runs)).comparison
    difference = 100 * (a - b)
    assert found.difference == pytest.approx(difference.mean())
    assert found.half == pytest.approx(1.96 * difference.std(ddof=1) / 2)
    assert found.unpaired_half == pytest.approx(196 * math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 4))
    assert (found.wins, found.ties, found.losses, found.n) == (0.5, 0.25, 0.25, 4)


def test_the_seeds_of_a_group_are_averaged_before_they_are_compared(tmp_path: Path) -> None:
    scores = {0: [1.0, 2.0], 1: [3.0, 4.0]}
    changes: list[dict[str, Any]] = [{"seed": s, "scores": [v] * 4} for s, v in scores.items()]
    runs = read_runs(tmp_path, *changes, {"algo": "x", "scores": [[1.0, 1.0]] * 4})
    assert compare(*group_runs(runs)).comparison.difference == pytest.approx(1.5)


def test_other_episodes_are_not_comparable_and_both_hashes_are_said(tmp_path: Path) -> None:
    runs = read_runs(tmp_path, {}, {"algo": "x", "episodes_sha256": "fedcba9876"})
    pair = compare(*group_runs(runs))
    assert pair.comparison is None
    assert pair.why == "their test episodes differ (01234567 and fedcba98)"


def test_groups_of_different_benchmarks_are_never_paired(tmp_path: Path) -> None:
    groups = group_runs(read_runs(tmp_path, {}, {"algo": "x", "data.shots": 5, "shots": 5}))
    assert pair_benchmarks(groups) == []


def test_many_groups_are_each_compared_with_the_best(tmp_path: Path) -> None:
    runs = read_runs(tmp_path, *({"algo.inner_lr": 0.1 * k, "mean": 1 + abs(k - 4)} for k in range(9)))
    found = pairs(group_runs(runs))
    assert len(found) == 8
    assert {pair.a.label for pair in found} == {"maml (inner_lr=0.4)"}


def test_equal_compute_is_the_best_validation_within_the_smallest_total(tmp_path: Path) -> None:
    """Validation 4/s at step s. The quick run takes 8 s for 40 steps, the slow one 80 s for 20 of 5 x 6 gradients."""
    slow = {"algo": "x", "lines": records((10, 20)), "seconds": 80.0, "algo.inner_steps": 6, "steps_done": 20}
    groups = group_runs(read_runs(tmp_path, {}, slow))
    found = {b.unit: (b.amount, {k: v.mean for k, v in b.best.items()}) for b in equal_compute(groups)}
    assert found["outer steps"] == (20, {"maml": 0.2, "x": 0.2})
    assert found["inner gradients"] == (400, {"maml": 0.1, "x": 0.4})  # 13 steps of the slow one
    assert found["seconds"][0] == 8.0
    assert found["seconds"][1]["maml"] == 0.1
    assert math.isnan(found["seconds"][1]["x"])  # first validated after 40 s


def test_an_accuracy_is_best_where_it_is_highest(tmp_path: Path) -> None:
    (group,) = group_runs(read_runs(tmp_path, {"metric": "accuracy"}))
    assert summarize(group).validation.mean == pytest.approx(40.0)  # of 4/s: at the first step, in per cent

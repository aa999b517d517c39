"""Groups of seeds, their intervals, paired differences and budgets, against numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.report_folders import records, write_run

from metarun.report.compare.groups import group_runs
from metarun.report.compare.results import compare, equal_compute, pair_benchmarks, pairs, summarize
from metarun.report.figures.comparison import average_curves
from metarun.report.figures.drawing import running_median, smooth, thin
from metarun.report.read.runs import Run, read_run

T_975_2 = 4.302652729911275  # Student's quantile at 97.5 % with two degrees of freedom


def runs_of(folder: Path, *changes: dict[str, Any]) -> list[Run]:
    """A run for each set of changes: entries with a dot or `seed`, `job` are settings, all else is of the summary."""
    found = []
    for at, change in enumerate(changes):
        config = {k: v for k, v in change.items() if "." in k or k in ("seed", "job")}
        rest = {k: v for k, v in change.items() if k not in ("scores", "seconds", "lines") and "." not in k}
        files = {k: change[k] for k in ("scores", "seconds", "lines") if k in change}
        found.append(read_run(write_run(folder / str(at), rest, config, **files)))
    return found


def test_runs_that_differ_in_their_seed_or_machine_are_one_group(tmp_path: Path) -> None:
    changes = [{"seed": s, "device.name": d, "logger.name": "none"} for s, d in ((0, "cpu"), (1, "cuda"), (2, "cpu"))]
    (group,) = group_runs(runs_of(tmp_path, *changes))
    assert (group.label, group.benchmark, len(group.runs)) == ("maml", "sinusoid 10-shot", 3)


def test_groups_are_told_apart_by_the_settings_in_which_they_differ(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, {}, {"algo.inner_lr": 0.1}, {"algo": "fomaml"}, {"algo.inner_lr": 0.1, "seed": 1})
    groups = group_runs(runs)
    assert [g.label for g in groups] == ["maml (inner_lr=0.01)", "maml (inner_lr=0.1)", "fomaml"]
    assert [len(g.runs) for g in groups] == [1, 2, 1]


def test_what_test_episodes_are_made_from_makes_a_benchmark_and_training_queries_do_not(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, {"data.noise": 0.0}, {"data.noise": 0.5}, {"data.noise": 0.0, "data.queries": 3})
    quiet, noisy = "sinusoid 10-shot (data.noise=0.0)", "sinusoid 10-shot (data.noise=0.5)"
    found = [(g.benchmark, g.label) for g in group_runs(runs)]
    assert found == [(quiet, "maml (data.queries=10)"), (quiet, "maml (data.queries=3)"), (noisy, "maml")]


def test_labels_are_never_the_same_twice(tmp_path: Path) -> None:
    many = {f"algo.a{k}": 1 for k in range(4)}
    runs = runs_of(tmp_path, many, many | {"algo.a3": 2}, many | {"algo.a3": 3, "algo.a0": 1.5})
    assert len({g.label for g in group_runs(runs)}) == 3


def test_a_seed_that_was_run_twice_counts_once_and_the_tested_run_is_kept(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, {"seed": 0, "mean": 0.7}, {"seed": 0, "mean": 0.2}, {"seed": 1})
    untested = {k: v for k, v in runs[0].summary.items() if k != "mean"}
    first = Run(**{**vars(runs[0]), "summary": untested})
    (group,) = group_runs([first, *runs[1:]])
    assert group.repeated == 1
    assert [r.summary["mean"] for r in group.runs] == [0.2, 0.5]


def test_runs_without_settings_are_groups_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (write_run(tmp_path / name) / "config.yaml").unlink()
    assert len(group_runs([read_run(tmp_path / name) for name in ("a", "b")])) == 2


def test_jobs_that_end_in_no_figure_are_not_compared(tmp_path: Path) -> None:
    assert group_runs(runs_of(tmp_path, {"job": "data"}, {"job": "predict"})) == []


def test_one_seed_has_the_interval_over_its_tasks(tmp_path: Path) -> None:
    (group,) = group_runs(runs_of(tmp_path, {"mean": 0.8, "ci95": 0.02, "metric": "accuracy"}))
    assert tuple(summarize(group).test) == (80.0, 2.0, "tasks")


def test_several_seeds_have_students_interval_over_their_means(tmp_path: Path) -> None:
    (group,) = group_runs(runs_of(tmp_path, *({"seed": s, "mean": m} for s, m in enumerate((1.0, 2.0, 3.0)))))
    found = summarize(group).test
    assert found.over == "seeds"
    assert (found.mean, found.half) == pytest.approx((2.0, T_975_2 / math.sqrt(3)), rel=1e-9)
    assert summarize(group).iqm.estimate == pytest.approx(2.0)


def test_a_seed_that_diverged_is_counted_and_leaves_the_average_curves_the_others(tmp_path: Path) -> None:
    changes = [{"seed": 0, "mean": 1.0}, {"seed": 1, "mean": None, "diverged": True}, {"seed": 2, "mean": 3.0}]
    (group,) = group_runs(runs_of(tmp_path, *changes))
    found = summarize(group)
    assert (found.tested, found.diverged, found.test.mean) == (2, 1, 2.0)


def test_spread_is_split_into_seeds_and_tasks(tmp_path: Path) -> None:
    """Scores that are a seed's effect plus a task's effect and nothing else: the components are their variances."""
    seeds, tasks = np.array([0.0, 1.0, 2.0]), np.array([0.0, 2.0, 4.0, 6.0])
    changes = [{"seed": s, "scores": [(e + tasks).tolist()] * 4} for s, e in enumerate(seeds)]
    (group,) = group_runs(runs_of(tmp_path, *changes))
    assert summarize(group).spread == pytest.approx((seeds.std(ddof=1), tasks.std(ddof=1)))


def test_pairs_are_compared_task_by_task_at_the_reported_step(tmp_path: Path) -> None:
    a, b = np.array([0.9, 0.8, 0.7, 0.9]), np.array([0.8, 0.8, 0.8, 0.6])
    unused = [[0.0] * 4] * 3
    base = {"metric": "accuracy"}
    runs = runs_of(
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
    runs = runs_of(tmp_path, *changes, {"algo": "x", "scores": [[1.0, 1.0]] * 4})
    assert compare(*group_runs(runs)).comparison.difference == pytest.approx(1.5)


def test_other_episodes_are_not_comparable_and_both_hashes_are_said(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, {}, {"algo": "x", "episodes_sha256": "fedcba9876"})
    pair = compare(*group_runs(runs))
    assert pair.comparison is None
    assert pair.why == "their test episodes differ (01234567 and fedcba98)"


def test_groups_of_different_benchmarks_are_never_paired(tmp_path: Path) -> None:
    groups = group_runs(runs_of(tmp_path, {}, {"algo": "x", "data.shots": 5, "shots": 5}))
    assert pair_benchmarks(groups) == []


def test_many_groups_are_each_compared_with_the_best(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, *({"algo.inner_lr": 0.1 * k, "mean": 1 + abs(k - 4)} for k in range(9)))
    found = pairs(group_runs(runs))
    assert len(found) == 8
    assert {pair.a.label for pair in found} == {"maml (inner_lr=0.4)"}


def test_equal_compute_is_the_best_validation_within_the_smallest_total(tmp_path: Path) -> None:
    """Validation 4/s at step s. The quick run takes 8 s for 40 steps, the slow one 80 s for 20 of 5 x 6 gradients."""
    slow = {"algo": "x", "lines": records((10, 20)), "seconds": 80.0, "algo.inner_steps": 6, "steps_done": 20}
    groups = group_runs(runs_of(tmp_path, {}, slow))
    found = {b.unit: (b.amount, {k: v.mean for k, v in b.best.items()}) for b in equal_compute(groups)}
    assert found["outer steps"] == (20, {"maml": 0.2, "x": 0.2})
    assert found["inner gradients"] == (400, {"maml": 0.1, "x": 0.4})  # 13 steps of the slow one
    assert found["seconds"][0] == 8.0
    assert found["seconds"][1]["maml"] == 0.1
    assert math.isnan(found["seconds"][1]["x"])  # first validated after 40 s


def test_an_accuracy_is_best_where_it_is_highest(tmp_path: Path) -> None:
    (group,) = group_runs(runs_of(tmp_path, {"metric": "accuracy"}))
    assert summarize(group).validation.mean == pytest.approx(40.0)  # of 4/s: at the first step, in per cent


def test_the_mean_over_seeds_is_taken_where_all_have_a_value() -> None:
    one = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0])
    two = np.array([2.0, 3.0, 4.0]), np.array([4.0, 9.0, 1.0])
    x, mean, low, high = average_curves([one, two])
    assert [v.tolist() for v in (x, mean, low, high)] == [[2, 3], [3, 6], [2, 3], [4, 9]]
    assert [len(v) for v in average_curves([])] == [0, 0, 0, 0]


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

"""Runs that are the same but for their seed form groups, and groups have labels of their own."""

from __future__ import annotations

from pathlib import Path

from helpers.report_folders import read_runs, write_run

from metarun.report.compare.groups import group_runs
from metarun.report.read.runs import Run, read_run


def test_runs_that_differ_in_their_seed_or_machine_are_one_group(tmp_path: Path) -> None:
    changes = [{"seed": s, "device.name": d, "logger.name": "none"} for s, d in ((0, "cpu"), (1, "cuda"), (2, "cpu"))]
    (group,) = group_runs(read_runs(tmp_path, *changes))
    assert (group.label, group.benchmark, len(group.runs)) == ("maml", "sinusoid 10-shot", 3)


def test_groups_are_told_apart_by_the_settings_in_which_they_differ(tmp_path: Path) -> None:
    runs = read_runs(tmp_path, {}, {"algo.inner_lr": 0.1}, {"algo": "fomaml"}, {"algo.inner_lr": 0.1, "seed": 1})
    groups = group_runs(runs)
    assert [g.label for g in groups] == ["maml (inner_lr=0.01)", "maml (inner_lr=0.1)", "fomaml"]
    assert [len(g.runs) for g in groups] == [1, 2, 1]


def test_what_test_episodes_are_made_from_makes_a_benchmark_and_training_queries_do_not(tmp_path: Path) -> None:
    runs = read_runs(tmp_path, {"data.noise": 0.0}, {"data.noise": 0.5}, {"data.noise": 0.0, "data.queries": 3})
    quiet, noisy = "sinusoid 10-shot (data.noise=0.0)", "sinusoid 10-shot (data.noise=0.5)"
    found = [(g.benchmark, g.label) for g in group_runs(runs)]
    assert found == [(quiet, "maml (data.queries=10)"), (quiet, "maml (data.queries=3)"), (noisy, "maml")]


def test_labels_are_never_the_same_twice(tmp_path: Path) -> None:
    many = {f"algo.a{k}": 1 for k in range(4)}
    runs = read_runs(tmp_path, many, many | {"algo.a3": 2}, many | {"algo.a3": 3, "algo.a0": 1.5})
    assert len({g.label for g in group_runs(runs)}) == 3


def test_a_seed_that_was_run_twice_counts_once_and_the_tested_run_is_kept(tmp_path: Path) -> None:
    runs = read_runs(tmp_path, {"seed": 0, "mean": 0.7}, {"seed": 0, "mean": 0.2}, {"seed": 1})
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
    assert group_runs(read_runs(tmp_path, {"job": "data"}, {"job": "predict"})) == []

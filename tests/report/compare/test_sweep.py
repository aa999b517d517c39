"""Which settings were swept, and what each combination reached."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers.report_folders import write_run
from helpers.sweep_folders import find_swept_axes, read_sweep, write_job, write_sweep

from metarun.report.compare.sweep import Axis, parse_value

T_2 = 4.30265  # Student's t, 97.5 %, two degrees of freedom, from a printed table


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-2", 0.01), ("0.010", 0.01), ("1_000", 1000), ("maml", "maml"), ("'a b'", "a b"), ("true", "true"),
     (True, "true"), (None, "null"), ("nan", "nan"), ([1, 2], "[1, 2]"), ("[l1,l2]", "[l1,l2]"), ("", "")],
)  # fmt: skip
def test_values_compare_as_what_they_mean(text: Any, value: Any) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_swept_settings_are_what_differs_among_the_typed_ones(tmp_path: Path) -> None:
    write_job(
        tmp_path, 0, "algo=maml", "+algo.inner_lr=1e-2", "train.steps=9", "seed=0", "sweep.jobs=2", "report=false"
    )
    write_job(
        tmp_path, 1, "algo=imaml", "+algo.inner_lr=0.010", "train.steps=9", "seed=1", "sweep.jobs=1", "report=true"
    )
    write_job(
        tmp_path, 2, "algo=maml", "+algo.inner_lr=0.001", "train.steps=9", "seed=1", "sweep.jobs=1", "report=true"
    )
    assert find_swept_axes(tmp_path) == [Axis("algo", ("maml", "imaml")), Axis("algo.inner_lr", (0.001, 0.01))]


def test_a_setting_that_was_not_typed_has_the_value_of_the_settings(tmp_path: Path) -> None:
    write_job(tmp_path, 0, "algo.inner_lr=0.5", "model.norm=none", recorded=False)
    write_job(tmp_path, 1, recorded=False)  # inner_lr is 0.01 there, and the norm is none
    write_job(tmp_path, 2, "algo=imaml", recorded=False)
    assert find_swept_axes(tmp_path) == [Axis("algo.inner_lr", (0.01, 0.5)), Axis("algo", ("maml", "imaml"))]


def test_of_runs_that_were_not_typed_what_follows_from_a_choice_is_no_axis(tmp_path: Path) -> None:
    for at, (algo, rate, eps) in enumerate([("maml", 0.1, 1), ("maml", 0.2, 1), ("reptile", 0.1, 2)]):
        write_run(tmp_path / str(at), config={"choices.algo": algo, "algo.inner_lr": rate, "optim.eps": eps})
    assert find_swept_axes(tmp_path) == [Axis("algo", ("maml", "reptile")), Axis("algo.inner_lr", (0.1, 0.2))]


def test_unrelated_runs_are_no_sweep_but_the_jobs_of_one_may_differ_in_many_settings(tmp_path: Path) -> None:
    for sweep, recorded in (("unrelated", False), ("random", True)):
        for at in range(2):
            write_job(tmp_path / sweep, at, *(f"train.x{k}={at}" for k in range(7)), recorded=recorded)
    assert find_swept_axes(tmp_path / "unrelated") == []
    assert len(find_swept_axes(tmp_path / "random")) == 7


def test_means_and_students_intervals_over_seeds_best_first_by_validation(tmp_path: Path) -> None:
    best, worst = read_sweep(write_sweep(tmp_path)).benchmarks[0].rows
    assert best.values == (0.1,)
    assert best.validation[:2] == pytest.approx((2.0, T_2 / math.sqrt(3)), rel=1e-5)
    assert best.test[:2] == pytest.approx((10.0, T_2 / math.sqrt(3)), rel=1e-5)
    assert worst.validation[:2] == pytest.approx((5.0, T_2), rel=1e-5)  # sd of 4, 4, 7 is sqrt(3)
    assert worst.test[:2] == pytest.approx((0.1, 0.0), abs=1e-12)
    assert {e.over for row in (best, worst) for e in (row.validation, row.test)} == {"seeds"}


def test_an_accuracy_is_better_the_higher_and_in_per_cent(tmp_path: Path) -> None:
    for at, (val, error) in enumerate([(0.5, 0.5), (0.75, 0.25), (None, 0.1)]):
        summary = {"metric": "accuracy", "kind": "classification", "val_error": error}
        folder = write_job(tmp_path, at, f"algo.inner_lr={at}", val=val, test=0.5, summary=summary)
        if val is None:  # no records: the summary has it
            (folder / "metrics.jsonl").unlink()
    assert [r.validation.mean for r in read_sweep(tmp_path).benchmarks[0].rows] == pytest.approx([90, 75, 50])


def test_a_combination_that_lost_runs_stands_below_those_that_lost_none(tmp_path: Path) -> None:
    write_job(tmp_path, 0, "algo.inner_lr=9", "seed=0", val=0.1)
    write_job(tmp_path, 1, "algo.inner_lr=9", "seed=1", status="diverged", reason="loss is nan", test=None)
    write_job(tmp_path, 2, "algo.inner_lr=8", "seed=0", val=0.2)
    write_job(
        tmp_path, 3, "algo.inner_lr=8", "seed=1", val=math.nan, test=math.nan
    )  # completed, but no figure is a number
    write_job(tmp_path, 4, "algo.inner_lr=8", "seed=2", run=False, status="failed", reason="out of memory")
    write_job(tmp_path, 5, "algo.inner_lr=1", "seed=0", val=5.0)
    write_job(tmp_path, 6, "algo.inner_lr=1", "seed=1", status="running", test=None)  # may still end well
    write_job(tmp_path, 7, "algo.inner_lr=7", "seed=0", run=False, status="waiting")
    rows = read_sweep(tmp_path).benchmarks[0].rows
    assert [(r.values[0], r.share_lost) for r in rows] == [(1, 0), (9, 0.5), (8, 2 / 3), (7, 0)]
    assert [dict(r.lost) for r in rows] == [
        {"running": 1}, {"diverged": 1}, {"not finite": 1, "failed": 1}, {"waiting": 1},
    ]  # fmt: skip


def test_no_run_of_a_seed_counts_twice(tmp_path: Path) -> None:
    for at, (val, status) in enumerate([(1.0, "failed"), (2.0, "completed"), (3.0, "completed")]):
        write_job(tmp_path, at, "algo=maml", "seed=0", val=val, status=status)
    write_job(tmp_path, 3, "algo=imaml", "seed=0", val=9.0)
    assert [r.validation.mean for r in read_sweep(tmp_path).benchmarks[0].rows] == [2.0, 9.0]


def test_a_run_that_was_resumed_by_hand_counts_as_it_ended(tmp_path: Path) -> None:
    folder = write_job(tmp_path, 0, "algo=maml", status="completed")
    told = json.loads((folder / "job.json").read_text()) | {"status": "interrupted", "reason": "the sweep was stopped"}
    (folder / "job.json").write_text(json.dumps(told))
    write_job(tmp_path, 1, "algo=imaml", val=2.0)
    assert [len(r.completed) for r in read_sweep(tmp_path).benchmarks[0].rows] == [1, 1]


def test_benchmarks_have_tables_of_their_own_and_a_failed_job_belongs_to_that_of_its_data(tmp_path: Path) -> None:
    for at, (algo, shots) in enumerate([("maml", 1), ("imaml", 1), ("maml", 5), ("imaml", 5)]):
        typed_ = (f"algo={algo}", f"data.shots={shots}")
        if at < 3:
            write_job(tmp_path, at, *typed_, val=at + 1.0, config={"data.shots": shots}, summary={"shots": shots})
        else:
            write_job(tmp_path, at, *typed_, run=False, status="failed", reason="no memory")
    result = read_sweep(tmp_path)
    assert [(b.name, [r.values for r in b.rows]) for b in result.benchmarks] == [
        ("sinusoid 1-shot", [("maml", 1), ("imaml", 1)]),
        ("sinusoid 5-shot", [("maml", 5), ("imaml", 5)]),
    ]
    assert [result.varied_axes(b) for b in result.benchmarks] == [[0], [0]]


def test_a_damaged_record_of_a_job_costs_nothing_else(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    (tmp_path / "job0" / "job.json").write_text("[1, 2")
    (tmp_path / "job1" / "job.json").write_text('{"overrides": 3, "number": "x", "status": ["completed"]}')
    assert [len(r.completed) for r in read_sweep(tmp_path).benchmarks[0].rows] == [3, 3]

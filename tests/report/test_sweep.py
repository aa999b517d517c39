"""The report of a sweep: which settings were swept, what came of each combination, what came to nothing."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.report_folders import records, write_run

from metarun.errors import UserError
from metarun.report import write_report
from metarun.report.compare.sweep import Axis, Sweep, collect_sweep, find_axes, parse_value
from metarun.report.read.jobs import find_jobs, list_jobs, rerun_command
from metarun.report.read.runs import read_run
from metarun.report.tables.sweep import best_configurations, settings_table, sweep_text
from metarun.report.tables.table import Table, to_text

T_2 = 4.30265  # Student's t, 97.5 %, two degrees of freedom, from a printed table


def job(
    sweep: Path, number: int, *overrides: str, val: float | None = 1.0, test: float | None = 1.0, run: bool = True,
    recorded: bool = True, config: dict[str, Any] | None = None, summary: dict[str, Any] | None = None, **record: Any,
) -> Path:  # fmt: skip
    """The folder that a sweep's job leaves: job.json, what was typed, and a run whose best validation is `val`."""
    folder = sweep / f"job{number}"
    seed = next((int(o.partition("=")[2]) for o in overrides if o.startswith("seed=")), 0)
    if run:
        lines = [*records([40])[:1], {"kind": "val", "step": 40, "mean": val, "ci95": 0.01, "improved": True}]
        status = record.get("status", "completed")
        changed = {"seed": seed, "mean": test, "val_error": val, "status": status, **(summary or {})}
        write_run(folder, changed, {"seed": seed, **(config or {})}, lines)
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(list(overrides)))
    if recorded:
        folder.mkdir(parents=True, exist_ok=True)
        told = {"key": "k", "number": number, "overrides": list(overrides), "status": "completed"} | record
        (folder / "job.json").write_text(json.dumps(told))
    return folder


def found(sweep: Path) -> Sweep:
    paths, others = find_jobs(sweep)
    result = collect_sweep(list_jobs([read_run(path) for path in paths], others))
    assert result is not None
    return result


def axes(sweep: Path) -> list[Axis]:
    paths, others = find_jobs(sweep)
    return find_axes(list_jobs([read_run(path) for path in paths], others))[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-2", 0.01), ("0.010", 0.01), ("1_000", 1000), ("maml", "maml"), ("'a b'", "a b"), ("true", "true"),
     (True, "true"), (None, "null"), ("nan", "nan"), ([1, 2], "[1, 2]"), ("[l1,l2]", "[l1,l2]"), ("", "")],
)  # fmt: skip
def test_values_compare_as_what_they_mean(text: Any, value: Any) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_swept_settings_are_what_differs_among_the_typed_ones(tmp_path: Path) -> None:
    job(tmp_path, 0, "algo=maml", "+algo.inner_lr=1e-2", "train.steps=9", "seed=0", "sweep.jobs=2", "report=false")
    job(tmp_path, 1, "algo=imaml", "+algo.inner_lr=0.010", "train.steps=9", "seed=1", "sweep.jobs=1", "report=true")
    job(tmp_path, 2, "algo=maml", "+algo.inner_lr=0.001", "train.steps=9", "seed=1", "sweep.jobs=1", "report=true")
    assert axes(tmp_path) == [Axis("algo", ("maml", "imaml")), Axis("algo.inner_lr", (0.001, 0.01))]


def test_a_setting_that_was_not_typed_has_the_value_of_the_settings(tmp_path: Path) -> None:
    job(tmp_path, 0, "algo.inner_lr=0.5", "model.norm=none", recorded=False)
    job(tmp_path, 1, recorded=False)  # inner_lr is 0.01 there, and the norm is none
    job(tmp_path, 2, "algo=imaml", recorded=False)
    assert axes(tmp_path) == [Axis("algo.inner_lr", (0.01, 0.5)), Axis("algo", ("maml", "imaml"))]


def test_of_runs_that_were_not_typed_what_follows_from_a_choice_is_no_axis(tmp_path: Path) -> None:
    for at, (algo, rate, eps) in enumerate([("maml", 0.1, 1), ("maml", 0.2, 1), ("reptile", 0.1, 2)]):
        write_run(tmp_path / str(at), config={"choices.algo": algo, "algo.inner_lr": rate, "optim.eps": eps})
    assert axes(tmp_path) == [Axis("algo", ("maml", "reptile")), Axis("algo.inner_lr", (0.1, 0.2))]


def test_unrelated_runs_are_no_sweep_but_the_jobs_of_one_may_differ_in_many_settings(tmp_path: Path) -> None:
    for sweep, recorded in (("unrelated", False), ("random", True)):
        for at in range(2):
            job(tmp_path / sweep, at, *(f"train.x{k}={at}" for k in range(7)), recorded=recorded)
    assert axes(tmp_path / "unrelated") == []
    assert len(axes(tmp_path / "random")) == 7


@pytest.mark.parametrize("others", [["seed=1"], ["seed=0", "data.shots=5", "algo=imaml"]])
def test_no_table_where_only_seeds_differ_or_nothing_compares(others: list[str], tmp_path: Path) -> None:
    shots = 5 if len(others) > 1 else 10
    job(tmp_path, 0, "seed=0")
    job(tmp_path, 1, *others, config={"data.shots": shots}, summary={"shots": shots})
    assert sweep_text(tmp_path) == []
    assert "Swept settings" not in write_report([tmp_path], format="md").read_text()


def sweep_of_six(folder: Path) -> Path:
    """Two rates x three seeds; the better test figure belongs to the worse validation."""
    for seed, (val_a, val_b) in enumerate([(1.0, 4.0), (2.0, 4.0), (3.0, 7.0)]):
        job(folder, 2 * seed, "algo.inner_lr=0.1", f"seed={seed}", val=val_a, test=9.0 + seed)
        job(folder, 2 * seed + 1, "algo.inner_lr=0.2", f"seed={seed}", val=val_b, test=0.1)
    return folder


def test_means_and_students_intervals_over_seeds_best_first_by_validation(tmp_path: Path) -> None:
    best, worst = found(sweep_of_six(tmp_path)).benchmarks[0].rows
    assert best.values == (0.1,)
    assert best.validation[:2] == pytest.approx((2.0, T_2 / math.sqrt(3)), rel=1e-5)
    assert best.test[:2] == pytest.approx((10.0, T_2 / math.sqrt(3)), rel=1e-5)
    assert worst.validation[:2] == pytest.approx((5.0, T_2), rel=1e-5)  # sd of 4, 4, 7 is sqrt(3)
    assert worst.test[:2] == pytest.approx((0.1, 0.0), abs=1e-12)
    assert {e.over for row in (best, worst) for e in (row.validation, row.test)} == {"seeds"}


def test_a_single_seed_has_the_interval_over_its_test_tasks(tmp_path: Path) -> None:
    job(tmp_path, 0, "algo=maml", summary={"ci95": 0.25})
    job(tmp_path, 1, "algo=imaml", summary={"ci95": 0.25}, val=2.0)
    result = found(tmp_path)
    assert result.benchmarks[0].rows[0].test == (1.0, 0.25, "tasks")
    table = settings_table(result.axes, result.benchmarks[0])
    assert table.columns == ("algo", "seeds", "best validation", "test", "interval over", "no result")
    assert table.rows[0] == (
        "maml", "1", "1.0000", "1.0000 ± 0.2500", "tasks, 1 seed", "0",
    )  # fmt: skip


def test_an_accuracy_is_better_the_higher_and_in_per_cent(tmp_path: Path) -> None:
    for at, (val, error) in enumerate([(0.5, 0.5), (0.75, 0.25), (None, 0.1)]):
        summary = {"metric": "accuracy", "kind": "classification", "val_error": error}
        folder = job(tmp_path, at, f"algo.inner_lr={at}", val=val, test=0.5, summary=summary)
        if val is None:  # no records: the summary has it
            (folder / "metrics.jsonl").unlink()
    assert [r.validation.mean for r in found(tmp_path).benchmarks[0].rows] == pytest.approx([90, 75, 50])


def test_a_combination_that_lost_runs_stands_below_those_that_lost_none(tmp_path: Path) -> None:
    job(tmp_path, 0, "algo.inner_lr=9", "seed=0", val=0.1)
    job(tmp_path, 1, "algo.inner_lr=9", "seed=1", status="diverged", reason="loss is nan", test=None)
    job(tmp_path, 2, "algo.inner_lr=8", "seed=0", val=0.2)
    job(tmp_path, 3, "algo.inner_lr=8", "seed=1", val=math.nan, test=math.nan)  # completed, but no figure is a number
    job(tmp_path, 4, "algo.inner_lr=8", "seed=2", run=False, status="failed", reason="out of memory")
    job(tmp_path, 5, "algo.inner_lr=1", "seed=0", val=5.0)
    job(tmp_path, 6, "algo.inner_lr=1", "seed=1", status="running", test=None)  # may still end well
    job(tmp_path, 7, "algo.inner_lr=7", "seed=0", run=False, status="waiting")
    rows = found(tmp_path).benchmarks[0].rows
    assert [(r.values[0], r.share_lost) for r in rows] == [(1, 0), (9, 0.5), (8, 2 / 3), (7, 0)]
    assert [dict(r.lost) for r in rows] == [
        {"running": 1}, {"diverged": 1}, {"not finite": 1, "failed": 1}, {"waiting": 1},
    ]  # fmt: skip


def test_no_run_of_a_seed_counts_twice(tmp_path: Path) -> None:
    for at, (val, status) in enumerate([(1.0, "failed"), (2.0, "completed"), (3.0, "completed")]):
        job(tmp_path, at, "algo=maml", "seed=0", val=val, status=status)
    job(tmp_path, 3, "algo=imaml", "seed=0", val=9.0)
    assert [r.validation.mean for r in found(tmp_path).benchmarks[0].rows] == [2.0, 9.0]


def test_a_run_that_was_resumed_by_hand_counts_as_it_ended(tmp_path: Path) -> None:
    folder = job(tmp_path, 0, "algo=maml", status="completed")
    told = json.loads((folder / "job.json").read_text()) | {"status": "interrupted", "reason": "the sweep was stopped"}
    (folder / "job.json").write_text(json.dumps(told))
    job(tmp_path, 1, "algo=imaml", val=2.0)
    assert [len(r.completed) for r in found(tmp_path).benchmarks[0].rows] == [1, 1]


def test_the_best_is_named_with_the_command_of_its_first_seed(tmp_path: Path) -> None:
    (best,) = best_configurations(found(sweep_of_six(tmp_path)))
    assert "algo.inner_lr=0.1, validation MSE 2.0000 ± 2.4841 (mean of 3 seeds)" in best.sentence
    assert "by validation alone" in best.sentence
    assert best.command == "metarun algo.inner_lr=0.1 seed=0"
    assert best.purpose == "this configuration again, seed 0 (the others: 1, 2)"


def test_a_command_is_quoted_and_has_what_a_single_run_needs(tmp_path: Path) -> None:
    words = ["reg=[l1,l2]", "data.root=/a b/$c", "+x='q'"]
    folder = job(tmp_path, 0, *words, "sweep.jobs=2", "hydra.searchpath=[file:///s]")
    sources = [{"path": "/my conf", "schema": "file", "provider": "command-line"}, {"path": "x", "provider": "main"}]
    stored = {"hydra": {"runtime": {"config_sources": sources}}}
    (folder / ".hydra" / "hydra.yaml").write_text(json.dumps(stored))
    (only,) = list_jobs([read_run(folder)])
    split = shlex.split(rerun_command(only))
    assert split == ["metarun", "--config-dir", "/my conf", *words, "hydra.searchpath=[file:///s]"]


def test_no_configuration_is_best_where_none_was_validated(tmp_path: Path) -> None:
    for at in range(2):
        folder = job(tmp_path, at, f"algo.inner_lr={at}", val=None, test=float(at), summary={"val_error": None})
        (folder / "metrics.jsonl").unlink()
    assert best_configurations(found(tmp_path)) == []
    assert "none is called the best" in write_report([tmp_path]).read_text()


def test_benchmarks_have_tables_of_their_own_and_a_failed_job_belongs_to_that_of_its_data(tmp_path: Path) -> None:
    for at, (algo, shots) in enumerate([("maml", 1), ("imaml", 1), ("maml", 5), ("imaml", 5)]):
        typed_ = (f"algo={algo}", f"data.shots={shots}")
        if at < 3:
            job(tmp_path, at, *typed_, val=at + 1.0, config={"data.shots": shots}, summary={"shots": shots})
        else:
            job(tmp_path, at, *typed_, run=False, status="failed", reason="no memory")
    result = found(tmp_path)
    assert [(b.name, [r.values for r in b.rows]) for b in result.benchmarks] == [
        ("sinusoid 1-shot", [("maml", 1), ("imaml", 1)]),
        ("sinusoid 5-shot", [("maml", 5), ("imaml", 5)]),
    ]
    assert [result.varied_axes(b) for b in result.benchmarks] == [[0], [0]]


def test_what_came_to_nothing_is_listed_with_its_settings_and_reason(tmp_path: Path) -> None:
    sweep_of_six(tmp_path)
    job(tmp_path, 6, "algo.inner_lr=-1", "seed=2", run=False, status="failed", reason="algo.inner_lr=-1: must be > 0")
    job(tmp_path, 7, "algo.inner_lr=99", "seed=0", status="diverged", reason="<loss>\nis nan", test=None)
    job(tmp_path, 8, "algo.inner_lr=3", "seed=0", run=False, status="running")
    page = write_report([tmp_path]).read_text()
    assert "Comparison of 7 runs" in page
    for part in ("algo.inner_lr=-1 seed=2", "must be &gt; 0", "&lt;loss&gt; is nan", "still running, or it was killed"):
        assert part in page
    assert page.index("Swept settings") < page.index("<h2>Results")
    text = write_report([tmp_path], format="md").read_text()
    assert "metarun algo.inner_lr=0.1 seed=0" in text
    assert "| job6 | algo.inner\\_lr=-1 seed=2 | failed | algo.inner\\_lr=-1: must be &gt; 0 |" in text


def test_a_sweep_of_which_every_job_failed_has_a_report(tmp_path: Path) -> None:
    for at in range(2):
        job(tmp_path, at, f"algo.inner_lr=-{at + 1}", run=False, status="failed", reason="must be above 0")
    assert "must be above 0" in write_report([tmp_path]).read_text()
    assert "must be above 0" in write_report([tmp_path], format="md").read_text()
    assert not best_configurations(found(tmp_path))
    with pytest.raises(UserError):
        write_report([tmp_path / "job0" / "nothing"])


def test_a_damaged_record_of_a_job_costs_nothing_else(tmp_path: Path) -> None:
    sweep_of_six(tmp_path)
    (tmp_path / "job0" / "job.json").write_text("[1, 2")
    (tmp_path / "job1" / "job.json").write_text('{"overrides": 3, "number": "x", "status": ["completed"]}')
    assert [len(r.completed) for r in found(tmp_path).benchmarks[0].rows] == [3, 3]


def test_csv_and_latex_have_the_swept_settings(tmp_path: Path) -> None:
    sweep_of_six(tmp_path)
    job(tmp_path, 6, "algo.inner_lr=0.1", "seed=3", status="diverged", reason="nan", test=None)
    write_report([tmp_path], format="csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "report-sweep.csv").read_text())))
    assert [(r["algo.inner_lr"], r["rank"], r["seeds"], r["diverged"]) for r in rows] == [
        ("0.2", "1", "3", "0"), ("0.1", "2", "3", "1"),
    ]  # fmt: skip
    assert float(rows[1]["best_validation_half"]) == pytest.approx(T_2 / math.sqrt(3), rel=1e-5)
    assert rows[1]["command"] == "metarun algo.inner_lr=0.1 seed=0"
    latex = write_report([tmp_path], format="latex").read_text()
    assert r"Swept settings: sinusoid 10-shot, MSE" in latex
    assert r"algo.inner\_lr" in latex


def test_the_text_for_a_terminal_fits_it(tmp_path: Path) -> None:
    for at in range(30):
        words = ("experiment", "model", "optim", "reg")
        job(tmp_path, at, *(f"{w}=a_long_name_of_{w}_{at}" for w in words), f"algo.inner_lr=1e-{at % 5}", val=1.0 + at)
    lines = sweep_text(tmp_path)
    table = lines[: lines.index("")]
    assert max(map(len, table)) <= 100
    assert len(table) == 3 + 20 + 1
    assert table[-1] == "... and 10 more in the report"
    assert lines[-1].startswith("  metarun experiment=a_long_name_of_experiment_0 model=")


def test_the_text_needs_neither_torch_nor_hydra_nor_matplotlib(tmp_path: Path) -> None:
    sweep_of_six(tmp_path)
    code = (
        "import sys; from pathlib import Path; from metarun.report.tables.sweep import sweep_text; "
        f"assert sweep_text(Path({str(tmp_path)!r})); "
        "print([m for m in ('torch', 'hydra', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_numbers_of_a_text_are_never_cut() -> None:
    table = Table("t", ("a long heading", "figure"), (("a very long word", "123456"),))
    assert to_text(table, 20) == ["…ong heading  figure", "─" * 20, "a very long…  123456"]
    assert to_text(table, 5) == ["…ading  figure", "─" * 14, "a ver…  123456"]
    assert to_text(Table("t", ("algo.inner_lr",), (("0.123",),), left=()), 5)[0] == "…er_lr"


def test_places_on_an_axis() -> None:
    from metarun.report.figures.sweep import positions, spread

    assert positions(Axis("a", (0.001, 0.01, 1))) == pytest.approx({0.001: 0, 0.01: 1 / 3, 1: 1})
    assert positions(Axis("a", (1, 4, 10))) == pytest.approx({1: 0, 4: 1 / 3, 10: 1})  # no more than a decade
    assert positions(Axis("a", (0, 25, 100))) == pytest.approx({0: 0, 25: 0.25, 100: 1})
    assert positions(Axis("a", ("x", "y", "z"))) == {"x": 0, "y": 0.5, "z": 1}
    heights = spread({"x": 0.0, "y": 1.0}, ["x", "y", "x"])
    assert heights == pytest.approx([0.03, 1.0, -0.03])


def test_cells_of_a_heat_map_are_means_over_all_else(tmp_path: Path) -> None:
    from metarun.report.figures.sweep import average_cells, draw_sweep

    values = {("maml", 1, 1): 1.0, ("maml", 1, 2): 3.0, ("maml", 2, 1): 5.0, ("imaml", 1, 1): 7.0}
    for at, ((algo, rate, steps), val) in enumerate(values.items()):
        job(tmp_path, at, f"algo={algo}", f"algo.inner_lr={rate}", f"train.steps={steps}", val=val)
    job(tmp_path, 4, "algo=imaml", "algo.inner_lr=2", "train.steps=1", run=False, status="failed", reason="x")
    result = found(tmp_path)
    means, lost = average_cells(result.benchmarks[0].rows, (0, 1), *result.axes[:2])
    assert [axis.values for axis in result.axes[:2]] == [("maml", "imaml"), (1, 2)]
    np.testing.assert_allclose(means, [[2.0, 7.0], [5.0, np.nan]])
    assert lost.tolist() == [[0, 0], [0, 1]]
    drawings, _ = draw_sweep(result)
    assert [d.name for d in drawings] == ["sweep_sinusoid_10_shot", "sweep_pairs_sinusoid_10_shot"]
    assert len(drawings[1].figure.axes) == 3


def test_what_a_figure_leaves_out_is_said(tmp_path: Path) -> None:
    from metarun.report.figures.sweep import draw_sweep

    for at in range(3):
        job(tmp_path, at, *(f"train.x{k}={at}" for k in range(8)), val=1.0 + at)
    drawings, texts = draw_sweep(found(tmp_path))
    assert "Left out of the lines: train.x6, train.x7." in texts
    assert any("No heat map of" in text and "22 more" not in text for text in texts)
    assert len(drawings[1].figure.axes) == 6

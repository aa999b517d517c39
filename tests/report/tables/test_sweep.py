"""Tables and sentences about a sweep: the best configuration, the jobs without a result."""

from __future__ import annotations

import csv
import io
import math
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.sweep_folders import read_sweep, write_job, write_sweep

from metarun.errors import UserError
from metarun.report.tables.sweep import best_configurations, settings_table, sweep_text
from metarun.report.write import write_report

T_2 = 4.30265  # Student's t, 97.5 %, two degrees of freedom, from a printed table


def test_runs_that_differ_in_their_seed_alone_end_in_their_mean(tmp_path: Path) -> None:
    for seed, test in enumerate((1.0, 2.0, 3.0)):
        write_job(tmp_path, seed, f"seed={seed}", test=test, val=test + 1)
    half = T_2 * 1.0 / math.sqrt(3)  # the standard deviation of 1, 2, 3 is 1
    assert sweep_text(tmp_path) == [
        f"maml on sinusoid 10-shot, 3 seeds: test MSE 2.0000 ± {half:.4f}, best validation 3.0000 ± {half:.4f} "
        "(95 % intervals over seeds, Student's t)",
        "test MSE by seed: 0: 1.0000, 1: 2.0000, 2: 3.0000",
    ]


@pytest.mark.parametrize("others", [["seed=0"], ["seed=0", "data.shots=5", "algo=imaml"]])
def test_no_table_where_a_seed_is_repeated_or_nothing_compares(others: list[str], tmp_path: Path) -> None:
    shots = 5 if len(others) > 1 else 10
    write_job(tmp_path, 0, "seed=0")
    write_job(tmp_path, 1, *others, config={"data.shots": shots}, summary={"shots": shots})
    assert sweep_text(tmp_path) == []
    assert "Swept settings" not in write_report([tmp_path], format="md").read_text()


def test_a_single_seed_has_the_interval_over_its_test_tasks(tmp_path: Path) -> None:
    write_job(tmp_path, 0, "algo=maml", summary={"ci95": 0.25})
    write_job(tmp_path, 1, "algo=imaml", summary={"ci95": 0.25}, val=2.0)
    result = read_sweep(tmp_path)
    assert result.benchmarks[0].rows[0].test == (1.0, 0.25, "tasks")
    table = settings_table(result.axes, result.benchmarks[0])
    assert table.columns == ("algo", "seeds", "best validation", "test", "interval over", "no result")
    assert table.rows[0] == (
        "maml", "1", "1.0000", "1.0000 ± 0.2500", "tasks, 1 seed", "0",
    )  # fmt: skip


def test_the_best_is_named_with_the_command_of_its_first_seed(tmp_path: Path) -> None:
    (best,) = best_configurations(read_sweep(write_sweep(tmp_path)))
    assert "algo.inner_lr=0.1, validation MSE 2.0000 ± 2.4841 (mean of 3 seeds)" in best.sentence
    assert "by validation alone" in best.sentence
    assert best.command == "metarun algo.inner_lr=0.1 seed=0"
    assert best.purpose == "To repeat it with seed 0 (other seeds: 1, 2)"


def test_no_configuration_is_best_where_none_was_validated(tmp_path: Path) -> None:
    for at in range(2):
        folder = write_job(tmp_path, at, f"algo.inner_lr={at}", val=None, test=float(at), summary={"val_error": None})
        (folder / "metrics.jsonl").unlink()
    assert best_configurations(read_sweep(tmp_path)) == []
    assert "no configuration is called the best" in write_report([tmp_path]).read_text()


def test_what_came_to_nothing_is_listed_with_its_settings_and_reason(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    write_job(
        tmp_path, 6, "algo.inner_lr=-1", "seed=2", run=False, status="failed", reason="algo.inner_lr=-1: must be > 0"
    )
    write_job(tmp_path, 7, "algo.inner_lr=99", "seed=0", status="diverged", reason="<loss>\nis nan", test=None)
    write_job(tmp_path, 8, "algo.inner_lr=3", "seed=0", run=False, status="running")
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
        write_job(tmp_path, at, f"algo.inner_lr=-{at + 1}", run=False, status="failed", reason="must be above 0")
    assert "must be above 0" in write_report([tmp_path]).read_text()
    assert "must be above 0" in write_report([tmp_path], format="md").read_text()
    assert not best_configurations(read_sweep(tmp_path))
    with pytest.raises(UserError):
        write_report([tmp_path / "job0" / "nothing"])


def test_csv_and_latex_have_the_swept_settings(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    write_job(tmp_path, 6, "algo.inner_lr=0.1", "seed=3", status="diverged", reason="nan", test=None)
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
        write_job(
            tmp_path, at, *(f"{w}=a_long_name_of_{w}_{at}" for w in words), f"algo.inner_lr=1e-{at % 5}", val=1.0 + at
        )
    lines = sweep_text(tmp_path)
    table = lines[: lines.index("")]
    assert max(map(len, table)) <= 100
    assert len(table) == 3 + 20 + 1
    assert table[-1] == "... and 10 more in the report"
    assert lines[-1].startswith("  metarun experiment=a_long_name_of_experiment_0 model=")


def test_the_text_needs_neither_torch_nor_hydra_nor_matplotlib(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    code = (
        "import sys; from pathlib import Path; from metarun.report.tables.sweep import sweep_text; "
        f"assert sweep_text(Path({str(tmp_path)!r})); "
        "print([m for m in ('torch', 'hydra', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

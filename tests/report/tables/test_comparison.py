"""The tables of several runs."""

from __future__ import annotations

from pathlib import Path

from helpers.report_folders import write_run

from metarun.report.compare.groups import group_runs
from metarun.report.compare.results import summarize
from metarun.report.read.runs import read_run
from metarun.report.tables.comparison import comparison_tables
from metarun.report.write import write_report


def test_algorithms_and_benchmarks_cross_in_a_table_of_their_own(tmp_path: Path) -> None:
    images = {"data": "omniglot", "kind": "classification", "ways": 5, "shots": 1, "metric": "accuracy", "mean": 0.9}
    settings = {"choices.data": "omniglot", "data.ways": 5, "data.shots": 1}
    runs = [
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", {"algo": "protonet"} | images, settings),
        write_run(tmp_path / "c", {"mean": 0.8} | images | {"mean": 0.8}, settings),
    ]
    text = write_report(runs, tmp_path / "report.md", "md").read_text(encoding="utf-8")
    rows = [line for line in text.split("###")[1].splitlines() if line.startswith("|")]
    assert rows[0].split(" | ")[0] == "| algorithm"
    assert "omniglot 5-way 1-shot" in rows[0]
    assert rows[2] == "| maml | 0.5000 ± 0.1000 | 80.00 ± 10.00 % |"
    assert rows[3] == "| protonet | \N{EN DASH} | **90.00 ± 10.00 %** |"


def test_runs_that_repeat_a_seed_are_counted_in_the_table(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in "abc"] + [write_run(tmp_path / "d", {"seed": 1}, {"seed": 1})]
    text = write_report(runs, tmp_path / "report.md", "md").read_text(encoding="utf-8")
    assert "| 2 seeds, 2 repeated left out |" in text
    assert "same settings and seed" in text


def test_learners_of_distributions_and_of_values_stand_in_one_table(tmp_path: Path) -> None:
    """Those that were tested on the same episodes, with the best possible; a run on others has no place in it."""
    beside = {"mse": {"mean": 0.25, "ci95": 0.01}}
    likely = {"metric": "log_likelihood", "beside": beside, "oracle": {"mse": {"mean": 0.125, "ci95": 0.01}}}
    write_run(tmp_path / "cnp", likely | {"algo": "cnp"}, {"choices.algo": "cnp"})
    write_run(tmp_path / "maml", {"mean": 0.5, "ci95": 0.02})
    write_run(tmp_path / "other", {"episodes_sha256": "ffff"}, {"choices.algo": "reptile"})
    runs = [read_run(tmp_path / name) for name in ("cnp", "maml", "other")]
    (shared,) = [
        t
        for t in comparison_tables([summarize(g) for g in group_runs(runs)])
        if t.title.startswith("All metrics, on the same test tasks")
    ]
    assert [row[0] for row in shared.rows] == ["cnp", "maml", "best possible"]
    at = shared.columns.index("MSE of the mean")
    assert [row[at] for row in shared.rows] == ["0.2500 ± 0.0100", "0.5000 ± 0.0200", "0.1250 ± 0.0100"]


def test_groups_without_a_partner_are_listed_by_their_reason(tmp_path: Path) -> None:
    for at, change in enumerate(({}, {"algo": "x"}, {"algo": "y", "episodes_sha256": "ff"})):
        write_run(tmp_path / str(at), change)
    for name in ("u", "v"):
        write_run(tmp_path / name, {"algo": name, "mean": None, "status": "interrupted"}, scores=None)
    tables = comparison_tables([summarize(g) for g in group_runs([read_run(p) for p in sorted(tmp_path.iterdir())])])
    (apart,) = [t for t in tables if t.title.startswith("Not comparable")]
    assert apart.rows == (
        ("y", "tested on other episodes than the rest"),
        ("u, v", "not tested (status: interrupted)"),
    )
    (paired,) = [t for t in tables if t.title.startswith("Paired differences")]
    assert [row[:2] for row in paired.rows] == [("maml", "x")]

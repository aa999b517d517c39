"""Run folders are read as far as they go, and what is missing is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.report_folders import PNG, records, write_analysis, write_run

from metarun.errors import UserError
from metarun.report.read.facts import headline_scores, inner_gradients, series
from metarun.report.read.runs import find_runs, read_run


def test_a_whole_run_is_read_and_nothing_is_missing(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    assert run.missing == ()
    assert [r["step"] for r in run.of("val")] == [10, 20, 30, 40]
    assert run.seconds["val", 20] == 4.0
    assert headline_scores(run).tolist() == [0.2, 0.4, 0.6, 0.8]


def test_a_line_cut_off_in_writing_is_left_out_and_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text[:-30])
    run = read_run(folder)
    assert len(run.of("val")) == 3
    assert run.missing == ("metrics.jsonl: its last line is cut off and was left out.",)


def test_lines_of_another_program_are_counted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1}\n[1, 2]\n\n{"kind": "train", "step": "late"}\n' + json.dumps(records()[0]) + "\n")
    run = read_run(folder)
    assert len(run.of("train")) == 5
    assert run.missing == (
        "metrics.jsonl: lines that are not records of metarun were left out (3 of 12, the first is line 9).",
    )


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("summary.json", None, "summary.json is missing."),
        ("summary.json", '{"status": "comp', "summary.json is damaged: it is not JSON."),
        ("summary.json", "[1]", "summary.json is not of the expected form."),
        ("config.yaml", None, "config.yaml is missing; the settings are unknown."),
        ("config.yaml", "a: [1\n b: }", "config.yaml is damaged; the settings are unknown."),
        ("config.yaml", "just words", "config.yaml holds no settings."),
        ("metrics.jsonl", None, "metrics.jsonl is missing."),
        ("metrics.jsonl", "", "metrics.jsonl is empty."),
        ("timing.jsonl", None, "timing.jsonl is missing."),
        ("test.json", None, "test.json is missing: no paired comparison with this run."),
        ("test.json", "{}", "test.json is not of the expected form: no paired comparison with this run."),
        ("test.json", '{"scores": [[1, "x"]]}', "test.json is not of the expected form: no paired comparison"),
        ("test.json", '{"scores": [[1, 2], [3]]}', "test.json is not of the expected form: no paired comparison"),
    ],
)
def test_a_file_that_is_missing_or_damaged_is_named(
    tmp_path: Path, name: str, content: str | None, sentence: str
) -> None:
    folder = write_run(tmp_path / "run")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    assert [said for said in read_run(folder).missing if said.startswith(sentence)]


@pytest.mark.parametrize(
    ("status", "reason", "sentence"),
    [
        ("running", "", 'The run has not ended: summary.json says "running", so it is still running or it was killed.'),
        ("diverged", "loss\nat step 3", "The run diverged: loss at step 3."),
        ("interrupted", "", "The run was interrupted; it continues with: metarun resume="),
        ("failed", "", "The run failed; metarun.log may say more."),
        ("time is up", "", "The run stopped when its time was up (train.max_minutes), before its last step."),
    ],
)
def test_a_run_that_did_not_complete_says_how_it_ended(tmp_path: Path, status: str, reason: str, sentence: str) -> None:
    run = read_run(write_run(tmp_path / "run", {"status": status, "reason": reason}))
    assert run.missing[0].startswith(sentence)


def test_a_run_without_validation_says_so_and_one_that_only_tests_does_not(tmp_path: Path) -> None:
    only_train = [r for r in records() if r["kind"] == "train"]
    assert read_run(write_run(tmp_path / "a", lines=only_train)).missing == (
        "metrics.jsonl has no record of validation.",
    )
    test_only = [{"kind": "test", "step": 0, "mean": 0.5, "ci95": 0.1}]
    assert read_run(write_run(tmp_path / "b", config={"job": "evaluate"}, lines=test_only)).missing == ()


def test_numbers_that_are_not_finite_become_nan_and_words_do_too(tmp_path: Path) -> None:
    lines = [{"kind": "train", "step": s, "loss": v} for s, v in ((3, "bad"), (1, 2.5), (2, None), (4, True))]
    run = read_run(write_run(tmp_path / "run", lines=lines))
    steps, losses = series(run.of("train"), "loss")
    assert steps.tolist() == [1, 2, 3, 4]
    assert np.isnan(losses).tolist() == [False, True, True, True]


def test_lists_and_tables_in_a_record_become_families(tmp_path: Path) -> None:
    lines = [{"kind": "probe", "step": 1, "losses": [3.0, 2.0], "cka": {"block0": 0.5}}]
    record = read_run(write_run(tmp_path / "run", lines=lines)).of("probe")[0]
    assert record == {"kind": "probe", "step": 1, "losses/0": 3.0, "losses/1": 2.0, "cka/block0": 0.5}


def test_a_folder_without_a_run_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("lightning: true\n")
    for folder in (tmp_path / "other", tmp_path / "nothing"):
        with pytest.raises(UserError, match=str(folder)) as caught:
            find_runs(folder)
        assert "\n" not in str(caught.value)


def test_the_runs_of_a_sweep_are_found_in_their_order_and_those_inside_a_run_are_not(tmp_path: Path) -> None:
    for name in ("10", "2", "0", "deep/er/1"):
        write_run(tmp_path / name)
    write_run(tmp_path / "0" / "analyses" / "replace_one" / "runs" / "a")
    write_run(tmp_path / ".hidden" / "3")
    found = [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)]
    assert found == ["0", "2", "10", "deep/er/1"]


def test_a_run_that_lost_its_settings_is_still_found_when_it_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "config.yaml").unlink()
    assert find_runs(folder) == [folder]


def test_analyses_are_read_and_an_unfinished_one_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_analysis(folder)
    (folder / "analyses" / "sensitivity" / "cg_residual.png").write_bytes(PNG)
    (folder / "analyses" / "seeds").mkdir()
    (folder / "analyses" / "seeds" / "figure.png").write_text("<html>")
    run = read_run(folder)
    found, unfinished = run.analyses[1], run.analyses[0]
    assert found.rows[-1] == ("0.04", "", "", "")
    assert found.results["summary"]["robustness"] == 0.25
    assert [name for name, _ in found.figures] == ["figure.png", "cg_residual.png"]
    assert unfinished.figures == ()
    assert run.missing == ("The analysis seeds has no results yet.",)


def test_inner_gradients_are_the_summarys_or_else_counted_from_the_settings(tmp_path: Path) -> None:
    assert inner_gradients(read_run(write_run(tmp_path / "a"))) == 40 * 5 * 2
    budget = {"convergence": {"budget": {"steps": 20, "inner_gradients": 300.0}}}
    assert inner_gradients(read_run(write_run(tmp_path / "b", budget))) == 600
    (tmp_path / "a" / "config.yaml").unlink()
    assert np.isnan(inner_gradients(read_run(tmp_path / "a")))

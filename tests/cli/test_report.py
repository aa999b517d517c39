"""metarun-report: what is written where, and mistakes in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.report_folders import PNG, write_run

from metarun.cli.report import main
from metarun.errors import SettingError, UserError
from metarun.report.write import write_report


def test_a_run_and_a_sweep_have_their_report_in_their_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "sweep" / "0")
    for folder in (run, tmp_path / "sweep"):
        main([str(folder), "--format", "md"])
        assert capsys.readouterr().out == f"{folder / 'report.md'}\n"
        assert (folder / "report.md").exists()


def test_several_folders_have_theirs_in_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main([str(write_run(tmp_path / name)) for name in "ab"] + ["--format", "csv"])
    assert capsys.readouterr().out == "report.csv\n"
    write_run(tmp_path / "b", {"algo": "x"})
    main(["a", "b", "--format", "csv"])
    assert capsys.readouterr().out == "report.csv\nreport-pairs.csv\n"


def test_a_run_that_is_named_twice_or_within_its_sweep_counts_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "0")
    write_report([run, tmp_path, tmp_path / "0" / ".." / "0"], tmp_path / "out.csv", "csv")
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2


def test_what_a_refused_command_left_is_passed_over_among_other_folders(tmp_path: Path) -> None:
    """As outputs/DATE/* names it; alone, or where nothing at all is known of a folder, there is no report."""
    run, refused, strange = write_run(tmp_path / "0"), tmp_path / "1", tmp_path / "2"
    (refused / ".hydra").mkdir(parents=True)
    strange.mkdir()
    write_report([run, refused], tmp_path / "out.csv", "csv")
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2
    for folders in ([refused], [run, strange]):
        with pytest.raises(UserError, match="is not a run folder and holds none"):
            write_report(folders, tmp_path / "out.csv", "csv")


def test_figures_are_written_as_png_into_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", lines=[{"kind": "val", "step": 1, "mean": 1.0, "ci95": 0.1}])
    main([str(run), "--format", "png"])
    assert capsys.readouterr().out == f"{run / 'report-figures'}\n"
    found = sorted((run / "report-figures").iterdir())
    assert [path.name for path in found] == ["adaptation.png", "learning.png"]
    assert all(path.read_bytes().startswith(PNG[:8]) for path in found)


def test_output_is_where_the_user_says_and_its_folder_is_made(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert write_report([run], tmp_path / "new" / "deep" / "x.md", "md").read_text().startswith("**Result** maml")


def test_a_report_in_the_current_folder_that_is_replaced_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [str(write_run(tmp_path / name)) for name in "ab"]
    main([*folders, "--format", "md"])
    assert capsys.readouterr().err == ""
    main([*folders, "--format", "md"])
    assert capsys.readouterr().err.startswith("it replaces the report of 20")
    main([*folders, "--format", "md", "--output", "other.md"])
    assert capsys.readouterr().err == ""


def test_a_page_is_written_again_until_its_run_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, slept = write_run(tmp_path / "run", {"status": "running"}, lines=[]), []

    def end_the_run(seconds: float) -> None:
        slept.append(seconds)
        assert '<meta http-equiv="refresh" content="7">' in (run / "report.html").read_text()
        write_run(run, {"status": "completed"}, lines=[])

    monkeypatch.setattr("metarun.cli.report.time.sleep", end_the_run)
    main(["--watch", str(run), "--every", "7"])
    assert slept == [7]
    assert 'http-equiv="refresh"' not in (run / "report.html").read_text()
    assert "every 7 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--watch", "--every", "0"], "--every=0: must be at least 1"),
        (["--watch", "--format", "md"], "cannot be watched"),
    ],
)
def test_what_cannot_be_watched_is_one_line(
    tmp_path: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([str(write_run(tmp_path / "run")), *options])
    assert left.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("format", ["html", "md", "csv", "latex", "png"])
def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    run = write_run(tmp_path / "run", lines=[])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemExit) as left:
        main([str(run), "--format", format, "--output", str(tmp_path / "file" / "x")])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"metarun-report: {tmp_path / 'file' / 'x'}: cannot be written")
    assert error.count("\n") == 1


def test_a_folder_without_runs_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(SystemExit) as left:
            main([str(folder)])
        assert left.value.code == 2
        error = capsys.readouterr().err
        assert str(folder) in error
        assert error.count("\n") == 1


def test_an_unknown_format_lists_the_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([str(tmp_path), "--format", "pdf"])
    assert left.value.code == 2
    assert capsys.readouterr().err == "metarun-report: --format=pdf: choices: html, md, csv, latex, png\n"
    with pytest.raises(SettingError, match="choices: html, md, csv, latex, png"):
        write_report([tmp_path], format="pdf")


@pytest.mark.parametrize("arguments", [[], ["--format"], ["run", "--colour", "red"]])
def test_a_mistake_in_the_options_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("metarun-report: ")
    assert error.count("\n") == 1


def test_neither_torch_nor_hydra_is_imported_nor_matplotlib_for_tables(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    code = (
        "import sys; from metarun.cli.report import main; main(sys.argv[1:]);"
        "heavy = {'torch', 'hydra', 'matplotlib', 'jinja2', 'PIL'} & set(sys.modules); assert not heavy, heavy"
    )
    command = [sys.executable, "-c", code, str(run), "--format", "latex"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_pages_need_neither_torch_nor_hydra_nor_the_state_of_pyplot(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", lines=[])
    code = (
        "import sys; from metarun.cli.report import main; main(sys.argv[1:]);"
        "heavy = {'torch', 'hydra', 'matplotlib.pyplot'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

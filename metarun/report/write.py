"""From run folders to a report file, in the requested format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metarun.errors import SettingError, UserError
from metarun.report.compare.groups import group_runs
from metarun.report.compare.results import pair_benchmarks, summarize
from metarun.report.compare.sweep import Sweep, collect_sweep
from metarun.report.read.jobs import find_jobs, list_jobs
from metarun.report.read.runs import Run, is_refused_command, read_run
from metarun.report.tables.comparison import comparison_tables, raw_pairs, raw_results
from metarun.report.tables.sweep import best_configurations, raw_sweep, sweep_tables
from metarun.report.tables.table import Table, escape_markdown, to_csv, to_latex, to_markdown
from metarun.report.verdict.judge import judge
from metarun.report.verdict.sentence import by_question
from metarun.storage.atomic import name_file_in_errors, replace

ENDINGS = {"html": ".html", "md": ".md", "csv": ".csv", "latex": ".tex", "png": "-figures"}
FORMATS = tuple(ENDINGS)
LATEX_HEAD = "% Needs \\usepackage{booktabs}; wide tables fit with \\resizebox or \\small.\n"


def write_report(
    folders: Sequence[Path | str],
    output: Path | str | None = None,
    format: str = "html",
    interactive: bool = False,
    refresh: int | None = None,
) -> Path:
    """Write the report of these run folders (or folders of runs), and return the path of the report.

    An html page shows its figures as images and runs nothing. An `interactive` one also has the script of metarun,
    and no other, which draws them again from their numbers; with `refresh` it loads itself again after so many seconds.

    Without `output`: report.html (.md, .csv, .tex, or the folder report-figures) in the folder if it is one, else in
    the current folder. Raise `UserError` if there is no run or the file cannot be written; runs that are damaged or
    unfinished are shown as far as they go.
    """
    if format not in ENDINGS:
        raise SettingError("--format", format, f"choices: {', '.join(FORMATS)}")
    if not folders:
        raise UserError("a report needs at least one run folder")
    runs, others = _read(folders)
    parent = Path(folders[0]) if len(folders) == 1 else Path()
    target = Path(output) if output else parent / f"report{ENDINGS[format]}"
    if not output:
        _refuse_links(target)
    writers = {"png": _write_png, "md": _write_markdown, "csv": _write_csv, "latex": _write_latex}
    with name_file_in_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if format == "html":
            _write_html(runs, others, target, interactive, refresh)
        else:
            writers[format](runs, others, target)
    return target


def still_running(folders: Sequence[Path | str]) -> bool:
    """Whether a run or a job of a sweep in these folders has not ended."""
    runs, others = _read(folders)
    return any(job.status in ("running", "waiting") for job in list_jobs(runs, others))


def _read(folders: Sequence[Path | str]) -> tuple[list[Run], list[Path]]:
    """The runs in these folders, and the folders of jobs that left none."""
    # outputs/DATE/* also matches what Hydra left of commands that were refused.
    started = [folder for folder in folders if not is_refused_command(Path(folder))]
    found = [find_jobs(Path(folder)) for folder in started or folders]
    runs = [read_run(path) for path in dict.fromkeys(path for paths, _ in found for path in paths)]
    return runs, list(dict.fromkeys(path for _, paths in found for path in paths))


def path_beside(target: Path, content: str) -> Path:
    """report.csv, "pairs" -> report-pairs.csv"""
    return target.with_name(f"{target.stem}-{content}{target.suffix}")


def _refuse_links(target: Path) -> None:
    """The folder of a run may hold a link of the report's name: its target is not overwritten."""
    files = [target, target.with_name(target.name + ".tmp"), *(path_beside(target, c) for c in ("pairs", "sweep"))]
    for path in [*files, *(target.iterdir() if target.is_dir() else ())]:
        if path.is_symlink():
            raise UserError(f"{path}: is a link, which is not written to; name another path with --output")


def _write_html(runs: list[Run], others: list[Path], target: Path, interactive: bool, refresh: int | None) -> None:
    from metarun.report.figures.drawing import style  # not at the top: tables do without matplotlib
    from metarun.report.page.render import render

    with style():
        page = render(runs, others, interactive, refresh)
    replace(target, page.encode())


def _write_png(runs: list[Run], others: list[Path], target: Path) -> None:
    from metarun.report.figures.drawing import style
    from metarun.report.page.render import page_sections

    target.mkdir(parents=True, exist_ok=True)
    with style():
        for drawing in (d for section in page_sections(runs, others) for d in section.drawings):
            drawing.figure.savefig(target / f"{drawing.name}.png", format="png", dpi=200)


def _tables(runs: list[Run], others: list[Path]) -> tuple[Sweep | None, list[Table]]:
    jobs = list_jobs(runs, others)
    sweep = collect_sweep(jobs)
    return sweep, [*sweep_tables(sweep, jobs), *comparison_tables([summarize(g) for g in group_runs(runs)])]


def _write_markdown(runs: list[Run], others: list[Path], target: Path) -> None:
    sweep, tables = _tables(runs, others)
    lines = []
    for question, sentences in by_question(judge(runs, others)).items():
        lines += [f"**{escape_markdown(question)}** {escape_markdown(' '.join(s.text for s in sentences))}", ""]
    for best in best_configurations(sweep) if sweep else ():
        lines += [best.sentence, "", "```", best.command, "```", ""]
    lines += map(to_markdown, tables)
    missing = [f"* {run.name}: {sentence}" for run in runs for sentence in run.missing]
    lines += ["### What is missing", "", *missing, ""] if missing else []
    target.write_text("\n".join(lines), encoding="utf-8")


def _write_latex(runs: list[Run], others: list[Path], target: Path) -> None:
    floats = [to_latex(table, f"metarun{at}") + "\n" for at, table in enumerate(_tables(runs, others)[1], 1)]
    target.write_text("\n".join([LATEX_HEAD, *floats]), encoding="utf-8")


def _write_csv(runs: list[Run], others: list[Path], target: Path) -> None:
    """Write results to `target`; pairs and swept settings, if there are any, beside it."""
    groups = group_runs(runs)
    target.write_text(to_csv(raw_results([summarize(g) for g in groups])), encoding="utf-8")
    pairs = [pair for benchmark in pair_benchmarks(groups) for pair in benchmark]
    if pairs:
        path_beside(target, "pairs").write_text(to_csv(raw_pairs(pairs)), encoding="utf-8")
    sweep = collect_sweep(list_jobs(runs, others))
    if sweep:
        path_beside(target, "sweep").write_text(to_csv(raw_sweep(sweep)), encoding="utf-8")

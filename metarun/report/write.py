"""From run folders to a report file, in the format that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from metarun.errors import SettingError, UserError
from metarun.report.read.files import pairs_beside, sweep_beside
from metarun.report.read.jobs import found_in
from metarun.report.read.runs import Run, never_began, read_run

ENDINGS = {"html": ".html", "md": ".md", "csv": ".csv", "latex": ".tex", "png": "-figures"}
FORMATS = tuple(ENDINGS)


def write_report(folders: Sequence[Path | str], output: Path | str | None = None, format: str = "html") -> Path:
    """Write the report of these run folders (or folders of runs); the path of what was written.

    Without `output`: report.html (.md, .csv, .tex, or the folder report-figures) in the folder if it is one, else in
    the current folder. `UserError` where there is no run or the file cannot be written; runs that are damaged or
    unfinished are shown as far as they go.
    """
    if format not in ENDINGS:
        raise SettingError("--format", format, f"choices: {', '.join(FORMATS)}")
    if not folders:
        raise UserError("a report needs at least one run folder")
    # outputs/DATE/* also names what Hydra made for commands that were refused.
    began = [folder for folder in folders if not never_began(Path(folder))]
    found = [found_in(Path(folder)) for folder in began or folders]
    runs = [read_run(path) for path in dict.fromkeys(path for paths, _ in found for path in paths)]
    others = list(dict.fromkeys(path for _, paths in found for path in paths))
    target = Path(output) if output else _default(folders, format)
    if not output:
        _refuse_links(target)
    try:
        _writers()[format](runs, others, target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})") from error
    return target


def _default(folders: Sequence[Path | str], format: str) -> Path:
    parent = Path(folders[0]) if len(folders) == 1 else Path()
    return parent / f"report{ENDINGS[format]}"


def _refuse_links(target: Path) -> None:
    """A folder that is reported on may hold a link of the report's name: what it leads to is not overwritten."""
    beside = [target, target.with_name(target.name + ".tmp"), pairs_beside(target), sweep_beside(target)]
    for path in [*beside, *(target.iterdir() if target.is_dir() else ())]:
        if path.is_symlink():
            raise UserError(f"{path}: is a link, which is not written to; name another place with --output")


def _writers() -> dict[str, Callable[[list[Run], list[Path], Path], None]]:
    """Imported when needed: tables do without matplotlib."""
    from metarun.report.tables import documents as texts

    return {"html": _html, "png": _png, "md": texts.markdown, "csv": texts.comma_separated, "latex": texts.latex}


def _html(runs: list[Run], others: list[Path], target: Path) -> None:
    from metarun.report.figures.drawing import style
    from metarun.report.page.render import render

    with style():
        page = render(runs, others)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(target)


def _png(runs: list[Run], others: list[Path], target: Path) -> None:
    from metarun.report.figures.drawing import save_png, style
    from metarun.report.page.comparison import of_runs
    from metarun.report.page.run import of_run

    target.mkdir(parents=True, exist_ok=True)
    with style():
        for section in of_run(runs[0]) if len(runs) == 1 and not others else of_runs(runs, others):
            for drawing in section.drawings:
                save_png(drawing, target)

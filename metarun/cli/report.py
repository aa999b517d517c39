"""`metarun-report DIR...`: write the report of run folders. Needs neither torch nor hydra."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from metarun.cli.crash_report import report_crash, tracebacks_wanted
from metarun.errors import SettingError, UserError, one_line
from metarun.report.write import ENDINGS, path_beside, still_running, write_report

EPILOG = """\
examples:
  metarun-report outputs/DATE/TIME-maml-sinusoid           the page of one run, RUN/report.html
  metarun-report multirun/DATE/TIME                        a sweep: all runs below, compared
  metarun-report RUN_A RUN_B --output comparison.html      two runs, compared on the same test episodes
  metarun-report RUN_A RUN_B --format latex                tables for a paper: report.tex

  metarun-report multirun/DATE/TIME --watch                a sweep that goes on: the page reloads itself

Runs that are damaged, unfinished or diverged are shown as far as they go, with what is missing.
"""


WATCH_EVERY = 30


class OneLineParser(argparse.ArgumentParser):
    """argparse prints its usage before an error; here an error is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; --help lists the options\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: print the files written; a user's mistake ends in one line and exit code 2."""
    parser = OneLineParser(
        prog="metarun-report",
        description="Write a report of metarun's run folders: of one run, or a comparison of several.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", nargs="+", metavar="DIR", type=Path, help="a run folder, or a folder that holds some"
    )
    parser.add_argument(
        "--output", metavar="PATH", type=Path,
        help="where to write (default: report.html in DIR, or in the current folder for several DIRs)",
    )  # fmt: skip
    parser.add_argument(
        "--format", metavar="FORMAT", default="html",
        help="html: one page with figures (default); md, csv, latex: the tables; png: a folder of the figures",
    )  # fmt: skip
    parser.add_argument("--static", action="store_true", help="an html page without script: figures are images alone")
    parser.add_argument(
        "--watch", action="store_true", help="write the page again until all runs have ended; it reloads itself"
    )
    parser.add_argument(
        "--every", metavar="SECONDS", type=int, default=WATCH_EVERY,
        help=f"seconds from one page to the next with --watch (default: {WATCH_EVERY})",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        if options.watch:
            watch(options)
            return
        before = _time_written(options)
        written = write_report(options.folders, options.output, options.format, interactive=not options.static)
    except UserError as error:
        print(f"metarun-report: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if tracebacks_wanted():
            raise
        report_crash("metarun-report", error)
    print(written)
    if before:
        print(f"it replaces the report of {before}; --output PATH writes another", file=sys.stderr)
    beside = (path_beside(written, "pairs"), path_beside(written, "sweep")) if options.format == "csv" else ()
    for path in filter(Path.exists, beside):
        print(path)


def watch(options: argparse.Namespace) -> None:
    """Write the page again and again until no run goes on; the last one does not reload itself."""
    if options.every < 1:
        raise SettingError("--every", options.every, "must be at least 1 second")
    if options.format != "html":
        raise SettingError("--format", options.format, "cannot be watched: --watch writes a page")
    goes_on, told = True, False
    while goes_on:
        goes_on = still_running(options.folders)
        refresh = options.every if goes_on else None
        written = write_report(options.folders, options.output, "html", not options.static, refresh)
        if not told:
            until = f": written every {options.every} s until the runs end; Ctrl-C stops" if goes_on else ""
            print(f"{written}{until}", flush=True)
            told = True
        if goes_on:
            time.sleep(options.every)


def _time_written(options: argparse.Namespace) -> str:
    """When a report of several folders that is already in the current folder was written; empty for any other place."""
    path = Path(f"report{ENDINGS.get(options.format, '')}")
    if options.output or len(options.folders) == 1 or not path.is_file():
        return ""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))


if __name__ == "__main__":
    main()

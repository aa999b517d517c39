"""`metarun-report DIR...`: write the report of run folders. Needs neither torch nor hydra."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from metarun.cli.crash_report import report_crash, tracebacks_wanted
from metarun.errors import UserError, one_line
from metarun.report import write_report
from metarun.report.write import path_beside

EPILOG = """\
examples:
  metarun-report outputs/DATE/TIME-maml-sinusoid           the page of one run, RUN/report.html
  metarun-report multirun/DATE/TIME                        a sweep: all runs below, compared
  metarun-report RUN_A RUN_B --output comparison.html      two runs, compared on the same test episodes
  metarun-report RUN_A RUN_B --format latex                tables for a paper: report.tex

Runs that are damaged, unfinished or diverged are shown as far as they go, with what is missing.
"""


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
    options = parser.parse_args(arguments)
    try:
        written = write_report(options.folders, options.output, options.format)
    except UserError as error:
        print(f"metarun-report: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if tracebacks_wanted():
            raise
        report_crash("metarun-report", error)
    print(written)
    beside = (path_beside(written, "pairs"), path_beside(written, "sweep")) if options.format == "csv" else ()
    for path in filter(Path.exists, beside):
        print(path)


if __name__ == "__main__":
    main()

"""`metarun-report DIR...`: write the report of run folders. Needs neither torch nor hydra."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from metarun.cli import crash_report
from metarun.errors import UserError, one_line
from metarun.report import FORMATS, write_report
from metarun.report.write import pairs_path, sweep_path

EPILOG = """\
examples:
  metarun-report outputs/DATE/TIME-maml-sinusoid           the page of one run, RUN/report.html
  metarun-report multirun/DATE/TIME                        a sweep: all runs below, compared
  metarun-report RUN_A RUN_B --output comparison.html      two runs, compared on the same test episodes
  metarun-report RUN_A RUN_B --format latex                tables for a paper: report.tex

Runs that are damaged, unfinished or diverged are shown as far as they go, with what is missing.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="metarun-report",
        description="Write a report of metarun's run folders: of one run, or a comparison of several.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("folders", nargs="+", metavar="DIR", type=Path, help="a run folder, or a folder that holds some")
    made.add_argument(
        "--output", metavar="PATH", type=Path,
        help="where to write (default: report.html in DIR, or in the current folder for several DIRs)",
    )  # fmt: skip
    made.add_argument(
        "--format", choices=FORMATS, default="html",
        help="html: one page with figures (default); md, csv, latex: the tables; png: a folder of the figures",
    )  # fmt: skip
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: prints what was written; a user's mistake ends in one line and exit code 2."""
    typed = parser().parse_args(arguments)
    try:
        written = write_report(typed.folders, typed.output, typed.format)
    except UserError as error:
        print(f"metarun-report: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if crash_report.wanted():
            raise
        print(f"metarun-report: {crash_report.told(error)}", file=sys.stderr)
        sys.exit(crash_report.CODE)
    print(written)
    beside = (pairs_path(written), sweep_path(written)) if typed.format == "csv" else ()
    for path in filter(Path.exists, beside):
        print(path)


if __name__ == "__main__":
    main()

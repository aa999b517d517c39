"""Report an unforeseen error in one line: what it was, where its traceback is, and the request to report it."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NoReturn

from metarun.errors import one_line

TRACEBACK = "METARUN_TRACEBACK"
"""The environment variable that has errors shown with their traceback, as HYDRA_FULL_ERROR does."""

CRASH_CODE = 1  # exit code
LONGEST = 300  # characters of the error message


def tracebacks_wanted() -> bool:
    """Whether the environment asks for tracebacks."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in (TRACEBACK, "HYDRA_FULL_ERROR"))


def report_crash(program: str, error: BaseException, folder: Path | None = None) -> NoReturn:
    """Print the line for the user and exit; the traceback goes to metarun.log in the run folder or a temporary file."""
    name = type(error).__name__
    what = f"{name}: {one_line(error)[:LONGEST]}" if str(error) else name
    where = _write_traceback(error, folder)
    print(f"{program}: internal error: {what}; please report it with the traceback in {where}", file=sys.stderr)
    sys.exit(CRASH_CODE)


def _write_traceback(error: BaseException, folder: Path | None) -> str:
    """Write the traceback; return the name of its file."""
    text = "".join(traceback.format_exception(error))
    try:
        if folder is not None and folder.is_dir() and not (folder / "metarun.log").is_symlink():
            with open(folder / "metarun.log", "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return file.name
        number, name = tempfile.mkstemp(prefix="metarun-", suffix=".log")
        with open(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        return name
    except OSError as full:
        return f"METARUN_TRACEBACK=1 (it could not be written: {full.strerror})"

"""An error that nobody foresaw ends in one line as well: what it was, where its traceback is, and to report it."""

from __future__ import annotations

import os
import tempfile
import traceback
from pathlib import Path

from metarun.errors import one_line

TRACEBACK = "METARUN_TRACEBACK"
"""The variable that has errors shown with their traceback, as HYDRA_FULL_ERROR does."""

CODE = 1  # exit code
LONGEST = 300  # signs of the error's own words


def wanted() -> bool:
    """Whether tracebacks are asked for."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in (TRACEBACK, "HYDRA_FULL_ERROR"))


def told(error: BaseException, folder: Path | None = None) -> str:
    """The line for the user; the traceback goes to metarun.log in the run folder, or to a temporary file."""
    what = f"{type(error).__name__}: {one_line(error)[:LONGEST]}" if str(error) else type(error).__name__
    return f"internal error: {what}; please report it with the traceback in {_kept(error, folder)}"


def _kept(error: BaseException, folder: Path | None) -> str:
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

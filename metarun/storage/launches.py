"""Which torchrun began a run. When torchrun starts all ranks again with the same command, they continue this run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import uuid
from pathlib import Path

from metarun.storage import atomic, untrusted

MARK = ".torchrun"
"""The file of a run folder with the name of the launch that began the run."""


def launch_name() -> str | None:
    """A name that this command has in all attempts of this torchrun, and no other command or torchrun has; None without
    torchrun."""
    name = _torchrun_name()
    # As it was given: `latest` among the arguments may be another run by now.
    command = hashlib.sha256("\0".join(sys.orig_argv[1:]).encode(errors="surrogateescape")).hexdigest()
    return f"{name} {command[:16]}" if name else None


def _torchrun_name() -> str | None:
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "")
    with contextlib.suppress(ValueError):
        return str(uuid.UUID(run_id))  # of --standalone; of --rdzv-id=$(uuidgen), on all machines
    # A name that a user may give to two trainings. The folder of torchrun's own records is new for each torchrun:
    # RECORDS/attempt_0/RANK/error.json.
    record = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", ""))
    return record.parents[2].name if run_id and len(record.parents) > 3 else None


def mark(folder: Path) -> None:
    """Record that this torchrun began the run of a folder; nothing without torchrun."""
    if name := launch_name():
        atomic.replace(folder / MARK, name.encode())


def is_own(folder: Path) -> bool:
    """Whether an earlier attempt of this torchrun began the run of a folder."""
    try:
        return untrusted.read_text(folder / MARK, most=1000) == launch_name()
    except (OSError, ValueError):
        return False


def find_own(outputs: Path) -> Path | None:
    """The folder OUTPUTS/DATE/RUN that an earlier attempt of this torchrun made."""
    newest_first = sorted((path.parent for path in outputs.glob(f"*/*/{MARK}")), reverse=True)
    return next(filter(is_own, newest_first), None)

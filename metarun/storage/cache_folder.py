"""Where metarun keeps what outlives a run."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """METARUN_CACHE, or metarun's folder in the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metarun"
    return Path(os.environ.get("METARUN_CACHE") or default)

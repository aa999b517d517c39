"""Decoded images on disk: written once for a source, atomically, and read back without executing anything."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from metarun.data.images import ImageTable
from metarun.errors import UserError

FORMAT = 1  # raise it when what is stored changes its meaning


def cache_folder() -> Path:
    """METARUN_CACHE, or metarun's folder in the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metarun"
    return Path(os.environ.get("METARUN_CACHE") or default)


def cached_table(name: str, fingerprint: str, build: Callable[[], ImageTable]) -> ImageTable:
    """The table stored for this fingerprint of the sources; built and stored when there is none, or a damaged one."""
    key = hashlib.sha256(f"{FORMAT}\n{fingerprint}".encode()).hexdigest()[:16]
    path = cache_folder() / f"{name}-{key}.pt"
    table = _read(path)
    if table is None:
        table = build()
        _write(path, table)
    return table


def _read(path: Path) -> ImageTable | None:
    if not path.is_file():
        return None
    try:
        stored = torch.load(path, weights_only=True)
        images, names = stored["images"], tuple(stored["names"])
        starts, counts = (np.asarray(stored[k].numpy(), dtype=np.intp) for k in ("starts", "counts"))
        whole = images.dtype == torch.uint8 and len(images) == int(counts.sum()) and len(names) == len(counts)
    except Exception:  # whatever is wrong with a cache file, its source is still there
        return None
    return ImageTable(images, names, starts, counts) if whole else None


def _write(path: Path, table: ImageTable) -> None:
    """Under a temporary name first: a reader sees the whole file or none, however many processes write it."""
    stored = {"images": table.images, "names": list(table.names)}
    stored |= {"starts": torch.from_numpy(table.starts), "counts": torch.from_numpy(table.counts)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, suffix=".tmp", delete=False) as file:
            try:
                torch.save(stored, file)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's writer on a full disk
        raise UserError(f"METARUN_CACHE={path.parent}: the decoded images cannot be stored there ({error})") from error

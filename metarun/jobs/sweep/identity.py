"""Which run a job is: the same settings and the same code are the same run."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import metarun
from metarun.storage.json_values import flatten_keys

HARMLESS = ("resume", "report", "sweep", "choices", "device.threads", "logger")
"""Settings that leave a run the same run."""

KEY_LENGTH = 12
LONGEST_NAME = 80


def run_key(settings: Mapping[str, Any]) -> str:
    """A digest of the settings, all but the harmless ones, and of the code."""
    harmless = tuple(f"{name}." for name in HARMLESS)
    relevant = {k: v for k, v in flatten_keys(settings).items() if not f"{k}.".startswith(harmless)}
    return digest_json([relevant, code_version()])


def digest_json(value: object) -> str:
    """A short digest of values, whatever the order of their keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


@functools.cache
def code_version() -> str:
    """metarun's version and a digest of its modules: a changed line may change every number."""
    digest = hashlib.sha256()
    folder = Path(metarun.__file__).resolve().parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes())
    return f"{metarun.__version__}+{digest.hexdigest()[:KEY_LENGTH]}"


def folder_name(overrides: Sequence[str], fixed: Sequence[str], key: str) -> str:
    """Name a job's folder, as `maml-inner_lr0.01-seed1-3f2a9c1b`: readable, and different for different runs.
    Overrides of the `fixed` keys are the same in all jobs of the sweep and left out."""
    words = "-".join(filter(None, (_word(o) for o in overrides if o.partition("=")[0] not in fixed)))
    return f"{words[:LONGEST_NAME].rstrip('-.')}-{key[:8]}".lstrip("-")


def yaml_digests(folders: Iterable[Path]) -> dict[str, str]:
    """Path -> digest of each settings file below the folders."""
    files = sorted({path for folder in folders if folder.is_dir() for path in folder.rglob("*.yaml")})
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def changed_files(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The files that are new, gone or different."""
    return sorted(path for path in {*before, *after} if before.get(path) != after.get(path))


def _word(override: str) -> str:
    """`algo=maml` -> maml, `algo.inner_lr=0.01` -> inner_lr0.01."""
    key, _, value = override.lstrip("+~").partition("=")
    with contextlib.suppress(ValueError):
        value = value if value.isdecimal() else f"{float(value):.4g}"  # of a sweeper that draws them
    value = re.sub(r"[^\w.+-]+", "_", value).strip("_")
    own = key.replace("/", ".").rpartition(".")[2].partition("@")[0]
    return value if "." not in key and own != "seed" else f"{own}{value}"

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
    told = {k: v for k, v in flatten_keys(settings).items() if not _harmless(k)}
    text = json.dumps([told, code_version()], sort_keys=True, default=str)
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
    """`maml-inner_lr0.01-seed1-3f2a9c1b`: to be read by people, and different for different runs. Overrides of the
    `fixed` keys are the same in all jobs of the sweep and left out."""
    words = "-".join(filter(None, (_word(o) for o in overrides if o.partition("=")[0] not in fixed)))
    return f"{words[:LONGEST_NAME].rstrip('-.')}-{key[:8]}".lstrip("-")


def yaml_digests(folders: Iterable[Path]) -> dict[str, str]:
    """Each settings file below the folders, and what is in it as a digest."""
    files = sorted({path for folder in folders if folder.is_dir() for path in folder.rglob("*.yaml")})
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def changed_files(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The files that are new, gone or not the same."""
    return sorted(path for path in {*before, *after} if before.get(path) != after.get(path))


def _word(override: str) -> str:
    """`algo=maml` -> maml, `algo.inner_lr=0.01` -> inner_lr0.01."""
    key, _, value = override.lstrip("+~").partition("=")
    with contextlib.suppress(ValueError):
        value = value if value.isdecimal() else f"{float(value):.4g}"  # of a sweeper that draws them
    value = re.sub(r"[^\w.+-]+", "_", value).strip("_")
    own = key.replace("/", ".").rpartition(".")[2].partition("@")[0]
    return value if "." not in key and own != "seed" else f"{own}{value}"


def _harmless(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in HARMLESS)

"""The files of a run folder, read without trust. A reader returns a value and, where it lacks something, a sentence."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from metarun.storage import untrusted
from metarun.storage.text import is_number

Record = dict[str, Any]
"""One line of metrics.jsonl: `kind`, `step`, and numbers."""

MAX_ROWS = 200  # of an analysis that are kept
MAX_BYTES = 1 << 28  # of a file of records; 100 000 validations have 10 MB
MAX_PICTURE_BYTES = 1 << 25
PNG = b"\x89PNG\r\n\x1a\n"
OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z_][\w.@/:-]*(=.*)?")


@dataclass(frozen=True)
class Analysis:
    """What `job=analyze` left in analyses/NAME."""

    name: str
    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    more: int  # rows that are only in the file
    results: Mapping[str, Any]
    figures: tuple[tuple[str, bytes], ...]  # file names and PNGs, figure.png first

    @property
    def summary(self) -> Mapping[str, Any]:
        summary = self.results.get("summary")
        return summary if isinstance(summary, Mapping) else self.results


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return the value if it is a mapping, else an empty one: files of other programs may hold anything."""
    return value if isinstance(value, Mapping) else {}


def as_mappings(value: Any) -> list[Mapping[str, Any]]:
    """Return the mappings in a list; none if the value is no list."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def read_json(path: Path, kind: type) -> tuple[Any, str]:
    """Return the value of a JSON file, or None and what is wrong with it."""
    value, problem = read(path, lambda: json.loads(untrusted.read_text(path, MAX_BYTES)), "is damaged: it is not JSON")
    if problem:
        return None, f"{path.name} {problem}."
    return (value, "") if isinstance(value, kind) else (None, f"{path.name} is not of the expected form.")


def read_yaml(path: Path) -> tuple[Any, str]:
    """Return the value of a YAML file, or None and what is wrong with it."""
    return read(path, lambda: untrusted.read_yaml(path), "is damaged")


def read_settings(path: Path) -> tuple[dict[str, Any], str]:
    """Return the settings in a YAML file, or an empty dictionary and what is wrong with the file."""
    value, problem = read_yaml(path)
    if problem:
        return {}, f"{path.name} {problem}; the settings are unknown."
    return (value, "") if isinstance(value, dict) else ({}, f"{path.name} holds no settings.")


def read(path: Path, load: Callable[[], Any], damaged: str) -> tuple[Any, str]:
    """The value of a file, or None and the problem in words."""
    try:
        return load(), ""
    except FileNotFoundError:
        return None, "is missing"
    except untrusted.Refused as error:
        return None, f"is left out: it {error.strerror}"
    except OSError as error:
        return None, f"cannot be read ({error.strerror})"
    except (ValueError, RecursionError, yaml.YAMLError):
        return None, damaged


def look_up(values: Mapping[str, Any], key: str) -> Any:
    """Return a nested value by its dotted name, or None."""
    value: Any = values
    for part in key.split("."):
        value = as_mapping(value).get(part)
    return value


def parse_overrides(value: Any) -> tuple[str, ...] | None:
    """Return a list of overrides as Hydra noted it; None if one of them is not an override.

    The report shows them as a command to copy: none may be a flag or hide behind control characters.
    """
    if not isinstance(value, list):
        return None
    words = [str(word) for word in value]
    valid = all(word.isprintable() and OVERRIDE.fullmatch(word) for word in words)
    return tuple(words) if valid and len(words) <= MAX_ROWS else None


def read_records(path: Path) -> tuple[list[Record], list[str]]:
    """Return the lines of a .jsonl file that are records, and a sentence about those that are not."""
    text, problem = read(path, lambda: untrusted.read_text(path, MAX_BYTES, errors="replace"), "is damaged")
    if problem:
        return [], [f"{path.name} {problem}."]
    parsed = [_parse_record(line) for line in text.split("\n") if line.strip()]
    good = [record for record in parsed if record is not None]
    bad = [at for at, record in enumerate(parsed, 1) if record is None]
    if not parsed:
        return good, [f"{path.name} is empty."]
    if not bad:
        return good, []
    if bad == [len(parsed)]:
        return good, [f"{path.name}: its last line is cut off and was left out."]
    found = f"{len(bad)} of {len(parsed)}, the first is line {bad[0]}"
    return good, [f"{path.name}: lines that are not records of metarun were left out ({found})."]


def _parse_record(line: str) -> Record | None:
    """A list or a table inside a record becomes key/0, key/1 ... or key/name; one level."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not is_number(record.get("step")) or not isinstance(record.get("kind"), str):
        return None
    flat: Record = {"kind": record["kind"], "step": int(record["step"])}
    for key, value in record.items():
        if key in flat:
            continue
        if isinstance(value, dict):
            flat |= {f"{key}/{name}": v for name, v in value.items()}
        elif isinstance(value, list):
            flat |= {f"{key}/{at}": v for at, v in enumerate(value)}
        else:
            flat[key] = value
    return flat


def read_analyses(folder: Path) -> tuple[list[Analysis], list[str]]:
    """Return all analyses of a run by name; an unfinished one has the files that it has."""
    try:
        inside = [] if folder.is_symlink() else folder.iterdir()
        folders = sorted(p for p in inside if p.is_dir() and not p.is_symlink())
    except OSError:
        return [], []
    analyses = []
    for path in folders:
        results, _ = read_json(path / "results.json", dict)
        figures = []
        for picture in sorted(path.glob("*.png"), key=lambda p: (p.name != "figure.png", p.name)):
            with contextlib.suppress(OSError):
                data = untrusted.read_bytes(picture, MAX_PICTURE_BYTES)
                figures += [(picture.name, data)] if data.startswith(PNG) else []
        analyses.append(Analysis(path.name, path, *_read_csv(path / "results.csv"), results or {}, tuple(figures)))
    empty = [a.name for a in analyses if not (a.rows or a.results or a.figures)]
    return analyses, [f"The analysis {name} has no results yet." for name in empty]


def _read_csv(path: Path) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...], int]:
    """Head and first rows of a csv file, and the number of rows left out."""
    try:
        text = untrusted.read_text(path, MAX_BYTES, errors="replace")
        head, *lines = [tuple(line) for line in csv.reader(io.StringIO(text, newline="")) if line] or [()]
    except (OSError, csv.Error):
        return (), (), 0
    rows = [(*line, *[""] * len(head))[: len(head)] for line in lines]
    return head, tuple(rows[:MAX_ROWS]), max(0, len(rows) - MAX_ROWS)

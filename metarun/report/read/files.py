"""The files of a run folder, read without trust: a value, and a sentence where there is none to be had."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from metarun.storage import untrusted
from metarun.storage.text import is_number

Record = dict[str, Any]
"""One line of metrics.jsonl: `kind`, `step`, and numbers."""

MAX_ROWS = 200  # of an analysis that are kept
MOST_BYTES = 1 << 28  # of a file of records; 100 000 validations have 10 MB
MOST_PICTURE = 1 << 25
PNG = b"\x89PNG\r\n\x1a\n"


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


def json_file(path: Path, kind: type) -> tuple[Any, str]:
    """The value of a JSON file, or None and what is wrong with it."""
    try:
        value = json.loads(untrusted.read_text(path, MOST_BYTES))
    except FileNotFoundError:
        return None, f"{path.name} is missing."
    except untrusted.Refused as error:
        return None, f"{path.name} is left out: it {error.strerror}."
    except OSError as error:
        return None, f"{path.name} cannot be read ({error.strerror})."
    except (ValueError, RecursionError):
        return None, f"{path.name} is damaged: it is not JSON."
    return (value, "") if isinstance(value, kind) else (None, f"{path.name} is not of the expected form.")


def mapping(path: Path) -> tuple[dict[str, Any], str]:
    """The settings in a YAML file, or none and what is wrong with it."""
    try:
        value = untrusted.read_yaml(path)
    except FileNotFoundError:
        return {}, f"{path.name} is missing: the settings are unknown."
    except untrusted.Refused as error:
        return {}, f"{path.name} is left out: it {error.strerror}; the settings are unknown."
    except OSError as error:
        return {}, f"{path.name} cannot be read ({error.strerror}): the settings are unknown."
    except (ValueError, RecursionError, yaml.YAMLError):
        return {}, f"{path.name} is damaged: the settings are unknown."
    return (value, "") if isinstance(value, dict) else ({}, f"{path.name} holds no settings.")


OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z_][\w.@/:-]*(=.*)?")


def overrides_in(typed: Any) -> tuple[str, ...] | None:
    """A list of overrides as Hydra noted it; None where one of them is none, or would not be seen as it is.

    They are shown as a command to be typed: nothing in it may be a flag, or hide behind control characters.
    """
    if not isinstance(typed, list):
        return None
    words = [str(word) for word in typed]
    sound = all(word.isprintable() and OVERRIDE.fullmatch(word) for word in words)
    return tuple(words) if sound and len(words) <= MAX_ROWS else None


def records(path: Path) -> tuple[list[Record], list[str]]:
    """The lines of a .jsonl file that are records, and a sentence for those that are not."""
    try:
        lines = untrusted.read_text(path, MOST_BYTES, errors="replace").split("\n")
    except untrusted.Refused as error:
        return [], [f"{path.name} is left out: it {error.strerror}."]
    except OSError:
        return [], [f"{path.name} is missing."]
    parsed = [_record(line) for line in lines if line.strip()]
    good = [record for record in parsed if record is not None]
    if not parsed:
        return good, [f"{path.name} is empty."]
    bad = [at for at, record in enumerate(parsed, 1) if record is None]
    return good, [_bad_lines(path.name, bad, len(parsed))] if bad else []


def _record(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not is_number(record.get("step")) or not isinstance(record.get("kind"), str):
        return None
    flat = {"kind": record["kind"], "step": int(record["step"])}
    for key, value in record.items():
        flat |= _flat(str(key), value) if key not in flat else {}
    return flat


def _flat(key: str, value: Any) -> Record:
    """A list or a table inside a record as key/0, key/1 ... or key/name; one level."""
    if isinstance(value, dict):
        return {f"{key}/{name}": v for name, v in value.items()}
    if isinstance(value, list):
        return {f"{key}/{at}": v for at, v in enumerate(value)}
    return {key: value}


def _bad_lines(name: str, bad: list[int], total: int) -> str:
    if bad == [total]:
        return f"{name}: its last line is cut off and was left out."
    which = f"line {bad[0]} is" if len(bad) == 1 else f"{len(bad)} of {total} lines (the first is line {bad[0]}) are"
    return f"{name}: {which} no record of metarun and left out."


def analyses(folder: Path) -> tuple[list[Analysis], list[str]]:
    """All analyses of a run, by name; an unfinished one has what it has."""
    try:
        inside = [] if folder.is_symlink() else folder.iterdir()
        folders = sorted(p for p in inside if p.is_dir() and not p.is_symlink())
    except OSError:
        return [], []
    found = [_analysis(path) for path in folders]
    empty = [a.name for a in found if not (a.rows or a.results or a.figures)]
    return found, [f"The analysis {name} has no results yet." for name in empty]


def _analysis(path: Path) -> Analysis:
    columns, rows, more = table(path / "results.csv")
    results, _ = json_file(path / "results.json", dict)
    return Analysis(path.name, path, columns, rows, more, results or {}, tuple(_pictures(path)))


def _pictures(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.glob("*.png"), key=lambda p: (p.name != "figure.png", p.name)):
        try:
            data = untrusted.read_bytes(path, MOST_PICTURE)
        except OSError:
            continue
        if data.startswith(PNG):
            yield path.name, data


def table(path: Path) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...], int]:
    """Head and rows of a csv file, and how many rows were left out."""
    try:
        text = untrusted.read_text(path, MOST_BYTES, errors="replace")
        lines = [tuple(line) for line in csv.reader(io.StringIO(text, newline="")) if line]
    except (OSError, csv.Error):
        return (), (), 0
    if not lines:
        return (), (), 0
    rows = [(*line, *[""] * len(lines[0]))[: len(lines[0])] for line in lines[1:]]
    return lines[0], tuple(rows[:MAX_ROWS]), max(0, len(rows) - MAX_ROWS)


def pairs_beside(target: Path) -> Path:
    """report.csv -> report-pairs.csv"""
    return target.with_name(f"{target.stem}-pairs{target.suffix}")


def sweep_beside(target: Path) -> Path:
    """report.csv -> report-sweep.csv"""
    return target.with_name(f"{target.stem}-sweep{target.suffix}")

"""`metarun cache`: list, verify and shrink the cache folder."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from metarun.data.files import file_checksum
from metarun.errors import UserError, nearest, one_line
from metarun.report.tables.table import Table, to_text
from metarun.storage.cache_entries import Entry, list_entries, shrink
from metarun.storage.progress import track
from metarun.storage.run_folder import cache_folder
from metarun.storage.text import count_nouns, file_size

USAGE = """\
metarun cache                list what is kept for later runs, the least recently used first
metarun cache verify         compare files with their recorded checksums; exit code 2 if one differs
metarun cache shrink=10GB    remove the least recently used entries until the others have 10 GB; shrink=0 removes all

The folder is METARUN_CACHE, or ~/.cache/metarun. Runs make again what they need: decoded images, features of trained
networks, compiled kernels; downloads are removed last. What a run uses is kept, and so is all that is not metarun's."""

WORDS = ("verify", "shrink=10GB")
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT])i?B?", re.IGNORECASE)
MOST_NAMED = 10  # files that are not metarun's


def run(words: Sequence[str]) -> None:
    """Do what the words after `metarun cache` ask for. Raise `UserError` if they ask for nothing known, if a checksum
    differs, or if too much is in use for the size that was asked for."""
    word, rest = (words[0], words[1:]) if words else ("", ())
    if word in ("--help", "-h", "help"):
        print(USAGE)
        return
    if rest:
        raise UserError(f"cache {' '.join(words)}: takes one word at a time, {' or '.join(WORDS)}")
    name, _, value = word.partition("=")
    if name == "shrink":
        most = parse_size(value)  # before anything is looked at
    elif word not in ("", "verify"):
        raise UserError(f"cache {word}: no such word, {nearest(name, WORDS)}")
    folder = cache_folder().absolute()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"METARUN_CACHE={folder}: is not a folder")
    if name == "shrink":
        print_shrinking(folder, most, value)
    elif word == "verify":
        print_verification(folder)
    else:
        print_entries(folder)


def parse_size(value: str) -> float:
    """Bytes of `10GB`, `1.5 GiB`, `500m` or `0`; units are powers of 1024. Raise `UserError` for anything else."""
    match = SIZE.fullmatch(value)
    if not match and value != "0":
        raise UserError(f"cache shrink={value}: must be a size with its unit, as 10GB or 500MB, or 0 to remove all")
    return float(match[1]) * 1024 ** (1 + "KMGT".index(match[2].upper())) if match else 0


def print_entries(folder: Path) -> None:
    """Print a table of the entries, their total, and what else there is."""
    entries, others = list_entries(folder)
    dates = [time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)) for entry in entries]
    rows = tuple(
        (entry.kind, one_line(entry.source), file_size(entry.size), date, one_line(entry.name))
        for entry, date in zip(entries, dates, strict=True)
    )
    table = Table("", ("kind", "of", "size", "last used", "entry"), rows, left=(0, 1, 4))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    if entries:
        print("\n".join(to_text(table, width)))
    print(f"{describe_total(entries)} in {one_line(folder)}")
    if others:
        more = f", and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
        print(f"not metarun's, left alone: {', '.join(map(one_line, others[:MOST_NAMED]))}{more}")


def print_verification(folder: Path) -> None:
    """Print each entry whose content is not what its description records. Raise `UserError` if there is one."""
    checked = [(entry, entry.content) for entry in list_entries(folder)[0] if entry.content]
    wrong: list[str] = []
    for entry, content in track(checked, len(checked), "verifying checksums") if checked else ():
        if reason := find_damage(content, entry.checksum):
            wrong.append(entry.name)
            files = " and ".join(one_line(path.name) for path in entry.paths)
            print(f"{one_line(entry.name)}: {reason}; remove {files}, and the next run makes them again")
    if wrong:
        damaged = count_nouns(len(wrong), "damaged entry", "damaged entries")
        raise UserError(f"cache verify: {damaged} of {len(checked)} in {folder}")
    print(f"{count_nouns(len(checked), 'entry has', 'entries have')} the recorded checksum in {one_line(folder)}")


def find_damage(content: Path, checksum: str | None) -> str | None:
    """How the content differs from its description, None if it does not, or is gone by now."""
    if checksum is None:
        return "its description is damaged"
    kind, _, digits = checksum.partition(":")
    try:
        return None if file_checksum(content, kind) == digits else f"its {kind} is not the recorded one"
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def print_shrinking(folder: Path, most: float, value: str) -> None:
    """Print what was removed and what was kept. Raise `UserError` if more than `most` bytes are left."""
    freed, kept = 0, 0
    for entry, reason in shrink(folder, most):
        freed += 0 if reason else entry.size
        kept += bool(reason)
        done = f"kept, {reason}" if reason else "removed"
        what = f"{entry.kind} of {one_line(entry.source)}, {file_size(entry.size)}, {one_line(entry.name)}"
        print(f"{done}: {what}", flush=True)
    entries, _ = list_entries(folder)
    print(f"freed {file_size(freed)}; {describe_total(entries)} left in {one_line(folder)}")
    if kept and sum(entry.size for entry in entries) > most:
        raise UserError(f"cache shrink={value}: more is left, since {count_nouns(kept, 'entry')} could not be removed")


def describe_total(entries: Sequence[Entry]) -> str:
    return f"{count_nouns(len(entries), 'entry', 'entries')}, {file_size(sum(entry.size for entry in entries))}"

"""`metarun cache`: its words, what it prints, and its exit codes."""

from __future__ import annotations

import gc
import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from metarun.cli.cache import USAGE, parse_size
from metarun.cli.main import run_command
from metarun.data.cache import CachedImages, DecodedImages, cache_images
from metarun.errors import UserError
from metarun.storage.json_values import json_checksum
from metarun.storage.locks import file_lock


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def decode(file: BinaryIO) -> DecodedImages:
    file.write(bytes(100))
    return DecodedImages((4, 1, 5, 5), ("a", "b"), [0, 2], [2, 2], {}, ["1", "2", "3", "4"])


def store(root: str = "/photos") -> CachedImages:
    return cache_images("toy", root, decode, root=Path(root))


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["metarun", "cache", *words])
    try:
        return run_command()
    except SystemExit as ending:
        return int(ending.code or 0)


def damage(path: Path) -> None:
    """Size and time stamp stay, so that no run notices."""
    content, stat = path.read_bytes(), path.stat()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_entries_are_listed_with_their_total_and_what_is_not_metaruns(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = store().path.stem
    os.utime(folder / f"{name}.u8", (0, 0))
    os.utime(folder / f"{name}.json", (1_700_000_000,) * 2)
    (folder / "notes\x1b.txt").touch()
    assert run(monkeypatch) == 0
    head, rule, row, total, others = capsys.readouterr().out.splitlines()
    size = sum(path.stat().st_size for path in folder.glob("toy-*"))
    assert head.split() == ["kind", "of", "size", "last", "used", "entry"]
    assert set(rule) == {"─"}
    assert row.startswith(f"images  /photos, 4 of 1x5x5  {size} B  2023-11-1")
    assert row.endswith(f"  {name}")
    assert total == f"1 entry, {size} B in {folder}"
    assert others == "not metarun's, left alone: notes\\x1b.txt"


def test_an_empty_cache_has_nothing_to_list_verify_or_remove(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ([], ["verify"], ["shrink=0"]):
        assert run(monkeypatch, *words) == 0
    listed, verified, shrunk = capsys.readouterr().out.splitlines()
    assert listed == f"0 entries, 0 B in {folder}"
    assert verified == f"0 entries have the recorded checksum in {folder}"
    assert shrunk == f"freed 0 B; 0 entries, 0 B left in {folder}"
    assert not folder.exists()


@pytest.mark.parametrize("file", ["{toy}.u8", "{toy}.json", "features-0123456789abcdef.npy", "data/omniglot/a.zip"])
def test_verify_names_what_differs_from_its_checksum(
    file: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = store().path.stem
    features = folder / "features-0123456789abcdef.npy"
    with file_lock(features):
        features.write_bytes(b"features")
    stored = {"sha256": hashlib.sha256(b"features").hexdigest()}
    features.with_suffix(".json").write_text(f'{{"sha256": "{stored["sha256"]}", "sum": "{json_checksum(stored)}"}}')
    (folder / "data/omniglot").mkdir(parents=True)
    (folder / "data/omniglot/a.zip").write_bytes(b"archive")
    (folder / "data/omniglot/.a.zip.checksum").write_text("md5:" + hashlib.md5(b"archive").hexdigest())
    assert run(monkeypatch, "verify") == 0
    assert capsys.readouterr().out == f"3 entries have the recorded checksum in {folder}\n"
    damaged = folder / file.format(toy=name)
    damage(damaged)
    assert run(monkeypatch, "verify") == 2
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    assert line.partition(":")[0] in (damaged.stem, f"data/omniglot/{damaged.name}")
    assert err.splitlines()[-1] == f"metarun: cache verify: 1 damaged entry of 3 in {folder}"
    if file == "{toy}.u8":
        advice = f"remove {name}.json and {name}.u8, and the next run makes them again"
        assert line == f"{name}: its sha256 is not the recorded one; {advice}"


def test_shrink_says_what_it_freed_and_what_it_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    used = store("/used")
    name = store("/unused").path.stem
    gc.collect()
    size = sum(path.stat().st_size for path in folder.glob(f"{name}.*"))
    left = sum(path.stat().st_size for path in folder.glob(f"{used.path.stem}.*"))
    assert run(monkeypatch, "shrink=0") == 2
    out, err = capsys.readouterr()
    kept, removed, total = out.splitlines()
    assert kept == f"kept, a run uses it: images of /used, 4 of 1x5x5, {left} B, {used.path.stem}"
    assert removed == f"removed: images of /unused, 4 of 1x5x5, {size} B, {name}"
    assert total == f"freed {size} B; 1 entry, {left} B left in {folder}"
    assert err == "metarun: cache shrink=0: more is left, since 1 entry could not be removed\n"
    assert run(monkeypatch, "shrink=1KB") == 0


@pytest.mark.parametrize(
    ("value", "size"),
    [("0", 0), ("10GB", 10 * 2**30), ("1.5 gib", 1.5 * 2**30), ("500m", 500 * 2**20), ("2TB", 2**41), ("7kb", 7168)],
)
def test_sizes_have_units(value: str, size: float) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize("value", ["", "10", "-1GB", "1e3MB", "nan", "GB", "all", "0x1GB", "1GBs"])
def test_another_size_is_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"must be a size with its unit, as 10GB or 500MB, or 0 to remove all"):
        parse_size(value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["verfy"], "cache verfy: no such word, did you mean verify?"),
        (["list"], "cache list: no such word, choices: shrink=10GB, verify"),
        (["--shrink"], "cache --shrink: no such word, did you mean shrink=10GB?"),
        (["shrink"], "cache shrink=: must be a size with its unit, as 10GB or 500MB, or 0 to remove all"),
        (["verify", "shrink=0"], "cache verify shrink=0: takes one word at a time, verify or shrink=10GB"),
        (["", "shrink=0"], "cache  shrink=0: takes one word at a time, verify or shrink=10GB"),
    ],
)
def test_wrong_words_are_one_line_and_remove_nothing(
    words: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = store().path
    gc.collect()
    assert run(monkeypatch, *words) == 2
    out, err = capsys.readouterr()
    assert " ".join(err.split()) == " ".join(f"metarun: {line}".split())
    assert err.count("\n") == 1
    assert out == ""
    assert path.exists()


def test_a_file_in_place_of_the_folder_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.touch()
    assert run(monkeypatch) == 2
    assert capsys.readouterr().err == f"metarun: METARUN_CACHE={folder}: is not a folder\n"


@pytest.mark.parametrize("argv", [["cache", "--help"], ["cache", "-h"], ["help", "cache"]])
def test_help_says_what_there_is(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["metarun", *argv])
    assert run_command() == 0
    assert capsys.readouterr().out == USAGE + "\n"

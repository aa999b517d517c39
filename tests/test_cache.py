"""The cache of decoded images: read back when whole, rebuilt when not, and safe with many processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarun.data.cache import cache_folder, cached_table
from metarun.data.images import ImageTable
from metarun.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, not there yet."""
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "made" / "when needed"))
    return tmp_path / "made" / "when needed"


def table(value: int = 1, pixels: int = 3) -> ImageTable:
    images = torch.full((5, 1, pixels, pixels), value, dtype=torch.uint8)
    return ImageTable(images, ("a", "b/ü"), np.array([0, 2]), np.array([2, 3]))


class Builder:
    """Builds a table and counts how often."""

    def __init__(self, value: int = 1, pixels: int = 3) -> None:
        self.value, self.pixels, self.calls = value, pixels, 0

    def __call__(self) -> ImageTable:
        self.calls += 1
        return table(self.value, self.pixels)


def assert_table(found: ImageTable, expected: ImageTable) -> None:
    torch.testing.assert_close(found.images, expected.images, rtol=0, atol=0)
    assert found.names == expected.names
    np.testing.assert_array_equal(found.starts, expected.starts)
    np.testing.assert_array_equal(found.counts, expected.counts)


def stored(folder: Path) -> Path:
    """The one file in the cache; another, such as a temporary one that was left, is an error."""
    (file,) = folder.iterdir()
    return file


def test_a_table_is_built_once_and_read_afterwards(folder: Path) -> None:
    build = Builder()
    for _ in range(3):
        assert_table(cached_table("toy", "print", build), table())
    assert build.calls == 1
    assert stored(folder).name.startswith("toy-")


def test_what_is_read_indexes_like_what_was_built() -> None:
    """Offsets come back as arrays of NumPy's index type and names as a tuple of str."""
    cached_table("toy", "print", Builder())
    found = cached_table("toy", "print", Builder())
    assert found.starts.dtype == found.counts.dtype == np.intp
    assert isinstance(found.names, tuple)
    assert found.images.dtype == torch.uint8


def test_another_fingerprint_or_name_is_another_table(folder: Path) -> None:
    for name, fingerprint, value in [("toy", "one", 1), ("toy", "two", 2), ("other", "one", 3)]:
        assert_table(cached_table(name, fingerprint, Builder(value)), table(value))
    assert len(list(folder.iterdir())) == 3
    assert_table(cached_table("toy", "one", Builder(9)), table(1))


def test_another_format_is_another_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an older metarun stored must not be read with a new meaning."""
    cached_table("toy", "print", Builder(1))
    monkeypatch.setattr("metarun.data.cache.FORMAT", 10_000)
    assert_table(cached_table("toy", "print", Builder(2)), table(2))


def truncated(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


def overwritten(whole: bytes) -> bytes:
    return b"\0" * len(whole)


@pytest.mark.parametrize("damage", [truncated, overwritten, lambda _: b"", lambda _: b"not a table\n"])
def test_a_damaged_file_is_rebuilt(folder: Path, damage: Any) -> None:
    """A full disk or a lost connection may have ended an earlier write of another program."""
    cached_table("toy", "print", Builder())
    path = stored(folder)
    path.write_bytes(damage(path.read_bytes()))
    build = Builder()
    assert_table(cached_table("toy", "print", build), table())
    assert build.calls == 1
    assert_table(cached_table("toy", "print", build), table())
    assert build.calls == 1
    assert stored(folder) == path


OFFSETS = {"starts": torch.tensor([0, 2]), "counts": torch.tensor([2, 3])}


@pytest.mark.parametrize(
    "other",
    [
        [1, 2],
        {"images": torch.zeros(5, 1, 3, 3, dtype=torch.uint8)},
        {"images": torch.zeros(4, 1, 3, 3, dtype=torch.uint8), "names": ["a", "b"], **OFFSETS},
        {"images": torch.zeros(5, 1, 3, 3, dtype=torch.uint8), "names": ["a"], **OFFSETS},
        {"images": torch.zeros(5, 1, 3, 3), "names": ["a", "b"], **OFFSETS},
        {"images": [0, 0, 0, 0, 0], "names": ["a", "b"], **OFFSETS},
        {"images": torch.tensor(0, dtype=torch.uint8), "names": ["a", "b"], **OFFSETS},
    ],
    ids=["a list", "no names", "an image too few", "a name too few", "floats", "no tensor", "a scalar"],
)
def test_a_sound_file_that_is_no_table_is_rebuilt(folder: Path, other: Any) -> None:
    cached_table("toy", "print", Builder())
    torch.save(other, stored(folder))
    build = Builder()
    assert_table(cached_table("toy", "print", build), table())
    assert build.calls == 1


class Malicious:
    """Unpickling it makes a folder: a harmless stand-in for any command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [torch.save, lambda o, path: path.write_bytes(pickle.dumps(o))])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_malicious_pickle_is_not_executed_but_rebuilt(folder: Path, tmp_path: Path, save: Any) -> None:
    """A cache folder may be shared: reading from it must not run what another user put there."""
    cached_table("toy", "print", Builder())
    path, harm = stored(folder), tmp_path / "harm"
    save({"images": Malicious(harm)}, path)
    build = Builder()
    assert_table(cached_table("toy", "print", build), table())
    assert build.calls == 1
    assert not harm.exists()
    torch.load(path, weights_only=True)  # replaced by a sound one
    save({"images": Malicious(harm)}, path)
    torch.load(path, weights_only=False) if save is torch.save else pickle.loads(path.read_bytes())
    assert harm.exists()  # so the file would have done harm


def test_a_cache_below_a_regular_file_is_one_line_naming_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"METARUN_CACHE=.*/file/cache: ") as caught:
        cached_table("toy", "print", Builder())
    assert "\n" not in str(caught.value)


def test_a_failing_builder_leaves_nothing_behind(folder: Path) -> None:
    def fail() -> ImageTable:
        raise UserError("the source is damaged")

    with pytest.raises(UserError, match="the source is damaged"):
        cached_table("toy", "print", fail)
    assert not folder.exists() or not list(folder.iterdir())
    assert_table(cached_table("toy", "print", Builder()), table())


@pytest.mark.parametrize(
    ("raised", "seen"), [(OSError(28, "No space left on device"), UserError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
@pytest.mark.parametrize("at", ["torch.save", "os.fsync", "os.replace"])
def test_a_failing_write_leaves_no_temporary_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, at: str, raised: BaseException, seen: type[BaseException]
) -> None:
    """A full disk is the user's to mend, in one line; Ctrl-C stays what it is. Neither leaves rubbish."""

    def fail(*_: object) -> None:
        raise raised

    with monkeypatch.context() as patched:
        patched.setattr(at, fail)
        with pytest.raises(seen) as caught:
            cached_table("toy", "print", Builder())
    assert not list(folder.iterdir())
    if seen is UserError:
        assert "METARUN_CACHE" in str(caught.value)
        assert "No space left" in str(caught.value)


def test_a_disk_that_is_full_halfway_is_one_line(folder: Path) -> None:
    """A limit on the size of files fails a write of 1 MB in its middle, inside torch's writer, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(UserError, match="METARUN_CACHE") as caught:
            cached_table("toy", "print", Builder(pixels=500))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert not list(folder.iterdir())


def test_a_failed_rewrite_keeps_the_table_that_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes built it and the second fails: what the first stored is whole and stays."""
    first = Builder(1)

    def build() -> ImageTable:
        cached_table("toy", "print", first)
        monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
        return table(2)

    with pytest.raises(UserError):
        cached_table("toy", "print", build)
    assert_table(cached_table("toy", "print", first), table(1))
    assert first.calls == 1
    assert stored(folder)


def build_beside(here: Path, me: str, other: str, results: Any) -> None:
    """One of two processes: waits in its builder until the other is there too, then both write the same file."""

    def build() -> ImageTable:
        (here / me).touch()
        late = time.monotonic() + 60
        while not (here / other).exists() and time.monotonic() < late:
            time.sleep(0.001)
        return table(7, pixels=500)

    found = cached_table("toy", "print", build)
    results.put(((here / other).exists(), int(found.images.sum(dtype=torch.int64)), found.names))


def test_two_processes_that_build_at_once_both_get_the_table(folder: Path, tmp_path: Path) -> None:
    processes = multiprocessing.get_context("fork")
    results = processes.Queue()
    pairs = [("one", "two"), ("two", "one")]
    running = [processes.Process(target=build_beside, args=(tmp_path, *pair, results)) for pair in pairs]
    for process in running:
        process.start()
    total = 7 * 5 * 500 * 500
    assert [results.get(timeout=60) for _ in running] == [(True, total, ("a", "b/ü"))] * 2
    for process in running:
        process.join(timeout=60)
        assert process.exitcode == 0
    build = Builder()
    assert_table(cached_table("toy", "print", build), table(7, pixels=500))
    assert build.calls == 0
    assert stored(folder).suffix == ".pt"


def test_the_cache_folder_is_the_variable_or_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("METARUN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/metarun")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/metarun")

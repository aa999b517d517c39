"""The cache of decoded images: read back when whole, rebuilt when not, and safe with many processes."""

from __future__ import annotations

import errno
import json
import mmap
import multiprocessing
import os
import pickle
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch

from metarun.data import cache
from metarun.data.cache import CachedImages, DecodedImages, cache_images
from metarun.data.images import ImageTable
from metarun.errors import UserError
from metarun.storage.run_folder import cache_folder

FORK = multiprocessing.get_context("fork")
NOTES: dict[str, Any] = {"skipped": ["a/ü.png"], "count": 3, "share": 0.1, "none": None, "given": {"a": ["b", True]}}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, not there yet."""
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "made" / "when needed"))
    return tmp_path / "made" / "when needed"


def table(value: int = 1, pixels: int = 3) -> ImageTable:
    """Five images of which no two, and no two rows of pixels, are alike."""
    images = (torch.arange(5 * pixels * pixels) % 251 + value).to(torch.uint8).view(5, 1, pixels, pixels)
    files = tuple(f"{name}/{i}.png" for name, count in (("a", 2), ("b/ü", 3)) for i in range(count))
    return ImageTable(images, ("a", "b/ü"), np.array([0, 2]), np.array([2, 3]), files)


class Builder:
    """Writes a table row after row and counts how often."""

    def __init__(self, value: int = 1, pixels: int = 3) -> None:
        self.table, self.calls = table(value, pixels), 0

    def __call__(self, file: BinaryIO) -> DecodedImages:
        self.calls += 1
        for image in self.table.images:
            file.write(image.numpy().tobytes())
        shape, made = tuple(self.table.images.shape), self.table
        starts, counts = made.starts.tolist(), made.counts.tolist()
        return DecodedImages(shape, made.names, starts, counts, NOTES, list(made.files))


def assert_table(found: CachedImages, expected: ImageTable) -> None:
    torch.testing.assert_close(found.table.images, expected.images, rtol=0, atol=0)
    assert found.table.names == expected.names
    assert found.table.files == expected.files
    np.testing.assert_array_equal(found.table.starts, expected.starts)
    np.testing.assert_array_equal(found.table.counts, expected.counts)
    assert found.notes == NOTES


def stored(folder: Path) -> Path:
    """The bytes in the cache, beside their JSON; anything else, such as a temporary file that was left, is an error."""
    description, images = sorted(folder.glob("[!.]*"))
    assert (description.suffix, images.suffix) == (".json", ".u8")
    assert description.stem == images.stem
    return images


def assert_rebuilt(folder: Path, verify: bool = False) -> None:
    """Once, to a cache that counts from then on."""
    build = Builder()
    assert_table(cache_images("toy", "print", build, verify), table())
    assert build.calls == 1
    assert_table(cache_images("toy", "print", build, verify), table())
    assert build.calls == 1
    assert stored(folder).read_bytes() == table().images.numpy().tobytes()


def assert_not_rebuilt(verify: bool = False) -> None:
    build = Builder()
    cache_images("toy", "print", build, verify)
    assert build.calls == 0


def test_a_table_is_built_once_and_read_afterwards(folder: Path) -> None:
    build = Builder()
    for _ in range(3):
        assert_table(cache_images("toy", "print", build), table())
    assert build.calls == 1
    assert stored(folder).name.startswith("toy-")


def test_what_is_read_indexes_like_what_was_built(folder: Path) -> None:
    """Offsets come back as arrays of NumPy's index type and names as a tuple of str, from the first time on."""
    for _ in range(2):
        found = cache_images("toy", "print", Builder())
        assert found.table.starts.dtype == found.table.counts.dtype == np.intp
        assert isinstance(found.table.names, tuple)
        assert found.table.images.dtype == torch.uint8
        assert found.path == stored(folder)


def test_notes_come_back_as_they_went_in() -> None:
    """From the process that built, and from every later one."""
    assert cache_images("toy", "print", Builder()).notes == NOTES
    assert cache_images("toy", "print", Builder()).notes == NOTES


def test_names_that_are_no_unicode_come_back(folder: Path) -> None:
    """File names are bytes; Python shows those that are not UTF-8 as lone surrogates."""
    build = Builder()
    build.table = build.table._replace(names=("a", os.fsdecode(b"caf\xe9")))
    for _ in range(2):
        assert_table(cache_images("toy", "print", build), build.table)
    assert build.calls == 1


def test_writing_into_the_images_does_not_reach_the_disk(folder: Path) -> None:
    """They are mapped from the file, of which other processes see the same pages."""
    found = cache_images("toy", "print", Builder())
    found.table.images.fill_(9)
    assert stored(folder).read_bytes() == table().images.numpy().tobytes()
    assert_not_rebuilt()


def test_another_fingerprint_or_name_is_another_table(folder: Path) -> None:
    for name, fingerprint, value in [("toy", "one", 1), ("toy", "two", 2), ("other", "one", 3)]:
        assert_table(cache_images(name, fingerprint, Builder(value)), table(value))
    assert len(list(folder.glob("[!.]*"))) == 3 * 2
    assert_table(cache_images("toy", "one", Builder(9)), table(1))


def test_another_format_is_another_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an older metarun stored must not be read with a new meaning."""
    cache_images("toy", "print", Builder(1))
    monkeypatch.setattr("metarun.data.cache.FORMAT", 10_000)
    assert_table(cache_images("toy", "print", Builder(2)), table(2))


# Damage


def truncated(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


def overwritten(whole: bytes) -> bytes:
    return b"\0" * len(whole)


def flipped(whole: bytes) -> bytes:
    return whole[:7] + bytes([whole[7] ^ 16]) + whole[8:]


def lengthened(whole: bytes) -> bytes:
    return whole + b"\0"


def written_later(path: Path, content: bytes) -> None:
    """With another time stamp, however coarse the clock of the file system is."""
    path.write_bytes(content)
    os.utime(path, ns=(0, 1))


DAMAGES = [truncated, overwritten, flipped, lengthened, lambda _: b"", lambda _: b"not a table\n"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_bytes_are_rebuilt(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    """A full disk or a lost connection may have ended an earlier write of another program."""
    cache_images("toy", "print", Builder())
    path = stored(folder)
    written_later(path, damage(path.read_bytes()))
    assert_rebuilt(folder)
    assert stored(folder) == path


def test_a_flipped_byte_with_the_old_time_stamp_is_noticed_when_verifying(folder: Path) -> None:
    """A failing disk changes bytes, but no time stamps. Summing takes a while, so that it has to be asked for."""
    cache_images("toy", "print", Builder())
    path = stored(folder)
    stamp = path.stat().st_mtime_ns
    path.write_bytes(flipped(path.read_bytes()))
    os.utime(path, ns=(stamp, stamp))
    assert_not_rebuilt()
    assert_rebuilt(folder, verify=True)


def test_sound_bytes_are_not_rebuilt_when_verifying() -> None:
    cache_images("toy", "print", Builder())
    assert_not_rebuilt(verify=True)


def test_a_touched_file_is_not_rebuilt(folder: Path) -> None:
    """As after copying a cache to another machine: the same bytes, at another time."""
    cache_images("toy", "print", Builder())
    os.utime(stored(folder), ns=(0, 1))
    for _ in range(2):
        assert_not_rebuilt()
    assert_table(cache_images("toy", "print", Builder(9)), table())


def test_a_touched_file_of_another_user_is_not_rebuilt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may read a file need not be allowed to set its time stamp."""
    cache_images("toy", "print", Builder())
    os.utime(stored(folder), ns=(0, 1))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    assert_not_rebuilt()


@pytest.mark.parametrize("suffix", [".u8", ".json"])
def test_half_a_cache_is_none(folder: Path, suffix: str) -> None:
    cache_images("toy", "print", Builder())
    stored(folder).with_suffix(suffix).unlink()
    assert_rebuilt(folder)


GARBAGE = [truncated, overwritten, lambda _: b"", lambda _: b"not a table\n", lambda _: b"\xff", lambda _: b"[" * 10**5]


@pytest.mark.parametrize(
    "damage", GARBAGE, ids=["truncated", "overwritten", "empty", "text", "no unicode", "nested too deep"]
)
def test_a_description_that_is_no_json_is_rebuilt(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    cache_images("toy", "print", Builder())
    path = stored(folder).with_suffix(".json")
    path.write_bytes(damage(path.read_bytes()))
    assert_rebuilt(folder)


@pytest.mark.parametrize("other", [[1, 2], 7, "text", None, {}])
def test_json_that_is_no_description_is_rebuilt(folder: Path, other: Any) -> None:
    cache_images("toy", "print", Builder())
    stored(folder).with_suffix(".json").write_text(json.dumps(other))
    assert_rebuilt(folder)


@pytest.mark.parametrize("key", ["shape", "names", "files", "starts", "counts", "notes", "sha256", "mtime_ns"])
def test_a_description_that_lacks_a_key_is_rebuilt(folder: Path, key: str) -> None:
    cache_images("toy", "print", Builder())
    path = stored(folder).with_suffix(".json")
    description = json.loads(path.read_text())
    del description[key]
    path.write_text(json.dumps(description))
    assert_rebuilt(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", None),
        ("shape", 45),
        ("shape", "5133"),
        ("shape", [4, 1, 3, 3]),
        ("shape", [5, 9]),
        ("shape", [5, 1, 1, 3, 3]),
        ("shape", [5.0, 1.0, 3.0, 3.0]),
        ("shape", ["5", "1", "3", "3"]),
        ("shape", [5, -1, -3, 3]),
        ("names", None),
        ("names", 2),
        ("names", "ab"),
        ("names", [1, 2]),
        ("names", ["a"]),
        ("names", ["a", "b", "c"]),
        ("files", None),
        ("files", ["a", "b", "c", "d"]),
        ("files", [1, 2, 3, 4, 5]),
        ("starts", None),
        ("starts", 0),
        ("starts", "zero"),
        ("starts", [0]),
        ("starts", [0, 3]),
        ("starts", [-1, 2]),
        ("starts", [[0], [2]]),
        ("starts", [0, 10**30]),
        ("counts", None),
        ("counts", {}),
        ("counts", [2, 4]),
        ("counts", [2, 1]),
        ("counts", [2, -3]),
        ("counts", ["two", "three"]),
        ("notes", None),
        ("notes", [1, 2]),
    ],
    ids=str,
)
def test_a_description_of_something_else_is_rebuilt(folder: Path, key: str, value: Any) -> None:
    """Also where the bytes themselves are untouched: episodes would index beyond them, or into another class."""
    cache_images("toy", "print", Builder())
    path = stored(folder).with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert_rebuilt(folder)


@pytest.mark.parametrize("suffix", [".u8", ".json"])
def test_one_line_says_that_a_cache_is_damaged_and_decoded_again(
    folder: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Decoding may take minutes: whoever waits is told why, and where to look. A new cache needs no such line."""
    cache_images("toy", "print", Builder())
    path = stored(folder)
    assert capsys.readouterr().err == ""
    written_later(path.with_suffix(suffix), b"damaged")
    cache_images("toy", "print", Builder())
    assert capsys.readouterr().err == f"{path}: the decoded images are damaged; decoding again\n"
    cache_images("toy", "print", Builder())
    assert capsys.readouterr().err == ""


class Malicious:
    """Unpickling it makes a folder: a harmless stand-in for any command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [torch.save, lambda o, path: path.write_bytes(pickle.dumps(o))])
@pytest.mark.parametrize("suffix", [".u8", ".json"])
def test_a_malicious_pickle_is_not_executed_but_rebuilt(folder: Path, tmp_path: Path, suffix: str, save: Any) -> None:
    """A cache folder may be shared: reading from it must not run what another user put there."""
    cache_images("toy", "print", Builder())
    path, harm = stored(folder).with_suffix(suffix), tmp_path / "harm"
    save({"images": Malicious(harm)}, path)
    assert_rebuilt(folder)
    assert not harm.exists()
    save({"images": Malicious(harm)}, path)
    torch.load(path, weights_only=False) if save is torch.save else pickle.loads(path.read_bytes())
    assert harm.exists()  # so the file would have done harm


# Failures of the builder and of the disk


def test_a_cache_below_a_regular_file_is_one_line_naming_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"METARUN_CACHE=.*/file/cache: ") as caught:
        cache_images("toy", "print", Builder())
    assert "\n" not in str(caught.value)


def test_a_failing_builder_leaves_nothing_behind(folder: Path) -> None:
    """Not even when some images had been written."""

    def fail(file: BinaryIO) -> DecodedImages:
        Builder()(file)
        raise UserError("the source is damaged")

    with pytest.raises(UserError, match="the source is damaged"):
        cache_images("toy", "print", fail)
    assert not list(folder.glob("[!.]*"))
    assert_table(cache_images("toy", "print", Builder()), table())


class Failing:
    """A function that works until its n-th call, which is one of another function."""

    def __init__(self, real: Callable[..., Any], n: int, fail: Callable[[], None]) -> None:
        self.real, self.left, self.fail = real, n, fail

    def __call__(self, *arguments: Any) -> Any:
        self.left -= 1
        return self.fail() if self.left == 0 else self.real(*arguments)


@pytest.mark.parametrize(
    ("raised", "seen"), [(OSError(28, "No space left on device"), UserError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
@pytest.mark.parametrize("call", [1, 2], ids=["the bytes", "the description"])
@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_failing_write_leaves_no_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, at: str, call: int, raised: BaseException, seen: type[BaseException]
) -> None:
    """A full disk is the user's to mend, in one line; Ctrl-C stays what it is. Neither leaves rubbish."""

    def fail() -> None:
        raise raised

    with monkeypatch.context() as patched:
        patched.setattr(os, at, Failing(getattr(os, at), call, fail))
        with pytest.raises(seen) as caught:
            cache_images("toy", "print", Builder())
    assert not list(folder.glob("[!.]*"))
    if seen is UserError:
        assert "METARUN_CACHE" in str(caught.value)
        assert "No space left" in str(caught.value)
    assert_rebuilt(folder)


@pytest.mark.parametrize(("pixels", "names"), [(500, 1), (3, 100_000)], ids=["in the bytes", "in the description"])
def test_a_disk_that_is_full_halfway_is_one_line(folder: Path, pixels: int, names: int) -> None:
    """A limit on the size of files fails a write in its middle, as a full disk does: of 1 MB of images, or of class
    names that are longer than the images."""
    build = Builder(pixels=pixels)
    build.table = build.table._replace(names=("a" * names, "b" * names * 2))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(UserError, match="METARUN_CACHE") as caught:
            cache_images("toy", "print", build)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("[!.]*"))


def in_a_process(target: Callable[..., None], *arguments: Any) -> Any:
    process = FORK.Process(target=target, args=arguments)
    process.start()
    return process


def build_until_killed(renamed: int | None) -> None:
    """A child process that ends by SIGKILL, as the kernel ends one that needs too much memory: while images are
    written, or when it has renamed so many files."""

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def build(file: BinaryIO) -> DecodedImages:
        decoded = Builder(9)(file)
        if renamed is None:
            file.flush()
            kill()
        return decoded

    if renamed is not None:
        os.replace = Failing(os.replace, renamed + 1, kill)
    cache_images("toy", "print", build)


@pytest.mark.parametrize("renamed", [None, 0, 1], ids=["while images are written", "no file is named", "one is"])
def test_a_killed_build_is_no_cache_and_its_temporary_file_is_removed_by_the_next(
    folder: Path, renamed: int | None
) -> None:
    process = in_a_process(build_until_killed, renamed)
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    assert list(folder.glob("toy-*.tmp"))  # so there is something to remove
    assert_rebuilt(folder)


def test_a_build_leaves_the_temporary_files_of_another_table_alone(folder: Path) -> None:
    """Two data sets may be built at once: here the second while the first is being written."""

    def build(file: BinaryIO) -> DecodedImages:
        assert_table(cache_images("toy", "two", Builder(2)), table(2))
        return Builder(1)(file)

    assert_table(cache_images("toy", "one", build), table(1))
    assert len(list(folder.glob("[!.]*"))) == 2 * 2


# Processes beside each other


def wait_for(path: Path) -> None:
    late = time.monotonic() + 60
    while not path.exists() and time.monotonic() < late:
        time.sleep(0.001)
    assert path.exists()


def touching(path: Path, then: Callable[..., Any]) -> Callable[..., Any]:
    """The function, leaving a mark for the other processes before it runs."""

    def touch(*arguments: Any) -> Any:
        path.touch()
        return then(*arguments)

    return touch


def build_beside(here: Path, me: str, other: str, results: Any) -> None:
    """One of two processes: whichever builds waits in its builder until the other has come to the lock as well."""
    import fcntl

    def build(file: BinaryIO) -> DecodedImages:
        (here / f"{me} builds").touch()
        wait_for(here / f"{other} locks")
        return Builder(7, pixels=500)(file)

    fcntl.flock = touching(here / f"{me} locks", fcntl.flock)
    found = cache_images("toy", "print", build)
    results.put((int(found.table.images.sum(dtype=torch.int64)), found.table.names, found.notes))


def test_two_processes_that_start_at_once_build_once_and_both_get_the_table(folder: Path, tmp_path: Path) -> None:
    results = FORK.Queue()
    running = [in_a_process(build_beside, tmp_path, *pair, results) for pair in [("one", "two"), ("two", "one")]]
    expected = table(7, pixels=500)
    total = int(expected.images.sum(dtype=torch.int64))
    assert [results.get(timeout=60) for _ in running] == [(total, expected.names, NOTES)] * 2
    for process in running:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert len(list(tmp_path.glob("* builds"))) == 1
    build = Builder()
    assert_table(cache_images("toy", "print", build), expected)
    assert build.calls == 0
    assert stored(folder)


def fail_when_another_waits(here: Path) -> None:
    def build(file: BinaryIO) -> DecodedImages:
        (here / "first builds").touch()
        wait_for(here / "second locks")
        raise UserError("the source is damaged")

    with pytest.raises(UserError, match="the source is damaged"):
        cache_images("toy", "print", build)


def build_while_another_comes(here: Path, me: str) -> None:
    """Having waited for the one that failed; a third comes meanwhile, and gets half a second to do the wrong thing."""
    import fcntl

    def build(file: BinaryIO) -> DecodedImages:
        (here / f"{me} builds").touch()
        wait_for(here / "third locks")
        time.sleep(0.5)
        return Builder()(file)

    fcntl.flock = touching(here / f"{me} locks", fcntl.flock)
    assert_table(cache_images("toy", "print", build), table())


def test_a_process_that_takes_over_from_a_failed_one_builds_alone(folder: Path, tmp_path: Path) -> None:
    """Of three, the first fails; the second waited for it and builds; the third, which comes later, must wait too."""
    running = [in_a_process(fail_when_another_waits, tmp_path)]
    wait_for(tmp_path / "first builds")
    running.append(in_a_process(build_while_another_comes, tmp_path, "second"))
    wait_for(tmp_path / "second builds")
    running.append(in_a_process(build_while_another_comes, tmp_path, "third"))
    for process in running:
        process.join(timeout=60)
    assert [process.exitcode for process in running] == [0, 0, 0]
    assert not (tmp_path / "third builds").exists()
    assert stored(folder)


@pytest.fixture
def lockless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)


@pytest.mark.usefixtures("lockless")
def test_without_locks_two_that_build_at_once_both_get_the_table(folder: Path) -> None:
    """The second comes while the first builds, and is done before it."""
    second = Builder(1)

    def build(file: BinaryIO) -> DecodedImages:
        decoded = Builder(1)(file)
        assert_table(cache_images("toy", "print", second), table(1))
        return decoded

    assert_table(cache_images("toy", "print", build), table(1))
    assert_table(cache_images("toy", "print", second), table(1))
    assert second.calls == 1
    assert stored(folder)


@pytest.mark.usefixtures("lockless")
def test_a_failed_rewrite_keeps_the_table_that_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes built it and the second fails: what the first stored is whole and stays."""
    first = Builder(1)

    def build(file: BinaryIO) -> DecodedImages:
        cache_images("toy", "print", first)
        monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
        return Builder(2)(file)

    with pytest.raises(UserError):
        cache_images("toy", "print", build)
    assert_table(cache_images("toy", "print", first), table(1))
    assert first.calls == 1
    assert stored(folder)


def test_the_cache_folder_is_the_variable_or_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("METARUN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/metarun")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/metarun")


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="this system has no such advice")
def test_pages_are_given_back_after_so_many_bytes_and_come_back_from_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this process had written into its own copy of a page is gone with it: so the page was given back."""
    monkeypatch.setattr(cache, "RESIDENT", 100)
    found = cache_images("toy", "print", Builder())
    found.table.images[0, 0, 0, 0] = 99
    found.table.release(60)
    assert found.table.images[0, 0, 0, 0] == 99
    found.table.release(60)
    assert_table(found, table())

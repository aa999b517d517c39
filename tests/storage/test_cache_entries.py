"""The entries of the cache folder: what is metarun's and what is not, which goes first, and what must stay."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from torch._inductor.runtime import cache_dir_utils

from metarun.compute.compilation import compile_function
from metarun.compute.device import Placement
from metarun.data.cache import DecodedImages, cache_images
from metarun.storage import cache_entries
from metarun.storage.cache_entries import IN_USE, NO_LOCKS, Entry, list_entries, remove, shrink
from metarun.storage.json_values import json_checksum
from metarun.storage.locks import file_lock, share_until_exit
from metarun.storage.run_folder import cache_folder

FORK = multiprocessing.get_context("fork")
KEY = "0123456789abcdef"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def decode(file: BinaryIO) -> DecodedImages:
    file.write(bytes(range(100)))
    return DecodedImages((4, 1, 5, 5), ("a", "b"), [0, 2], [2, 2], {}, ["1", "2", "3", "4"])


def store_images(folder: Path, fingerprint: str, used: int = 0) -> str:
    """Images of a run that has ended; the name of their entry."""
    path = cache_images("toy", fingerprint, decode, root=folder.parent / "drawings").path
    gc.collect()
    os.utime(path.with_suffix(".json"), (used, used))
    os.utime(path, ns=(0, path.stat().st_mtime_ns))
    return path.stem


def write_features(folder: Path) -> None:
    """As of a run that has ended."""
    folder.mkdir(exist_ok=True)
    path = folder / f"features-{KEY}.npy"
    with file_lock(path):
        path.write_bytes(b"features")
    stored = {"network": "resnet18", "images": "toy-1", "sha256": hashlib.sha256(b"features").hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(stored | {"sum": json_checksum(stored)}))


def write_kernels(folder: Path) -> None:
    (folder / "compiled/ab").mkdir(parents=True)
    with file_lock(folder / "compiled"):
        pass
    (folder / "compiled/ab/kernel.so").write_bytes(b"x" * 30)


def write_download(folder: Path) -> None:
    (folder / "data/omniglot").mkdir(parents=True)
    (folder / "data/omniglot/a.zip").write_bytes(b"archive")
    (folder / "data/omniglot/.a.zip.checksum").write_text("md5:" + hashlib.md5(b"archive").hexdigest())


def names(folder: Path) -> list[str]:
    return [entry.name for entry in list_entries(folder)[0]]


def files(folder: Path) -> set[str]:
    """All but the locks."""
    found = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    return {name for name in found if not name.endswith(".lock")}


def test_each_kind_is_listed_with_what_it_was_made_from(folder: Path) -> None:
    name = store_images(folder, "one", used=50)
    write_features(folder)
    write_kernels(folder)
    write_download(folder)
    entries, others = list_entries(folder)
    found = {entry.kind: entry for entry in entries}
    assert found["images"].name == name
    assert found["images"].source == f"{folder.parent / 'drawings'}, 4 of 1x5x5"
    assert found["images"].size == sum(path.stat().st_size for path in folder.glob("toy-*"))
    assert found["features"].source == "resnet18 on toy-1"
    assert (found["compiled"].source, found["compiled"].size) == ("torch.compile", 30)
    assert found["download"].name == "data/omniglot/a.zip"
    assert len(entries) == 4
    assert others == []


def test_using_images_makes_them_the_last_to_be_removed(folder: Path) -> None:
    first, second = store_images(folder, "one", used=50), store_images(folder, "two", used=60)
    for name, age in ((first, 50), (second, 60)):
        path = folder / f"{name}.u8"
        os.utime(path, (age, age))
        stored = json.loads(path.with_suffix(".json").read_text()) | {"mtime_ns": age * 10**9}
        del stored["sum"]
        path.with_suffix(".json").write_text(json.dumps(stored | {"sum": json_checksum(stored)}))
        os.utime(path.with_suffix(".json"), (age, age))
    assert names(folder) == [first, second]
    cache_images("toy", "one", decode)
    assert names(folder) == [second, first]


# What is not metarun's


def test_what_others_keep_there_is_named_and_stays(folder: Path, tmp_path: Path) -> None:
    """Also under a name that metarun could have given, and a copy of a data set beside a download."""
    name = store_images(folder, "one")
    write_download(folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (folder / "notes.txt").touch()
    (folder / f"own-{KEY}.json").write_text(json.dumps({"sha256": "0" * 64}))
    (folder / f"own-{KEY}.u8").write_bytes(b"mine")
    (folder / "compiled").mkdir()
    (folder / "compiled/thesis.pdf").touch()
    (folder / "link").symlink_to(elsewhere)
    (folder / "data/omniglot/b.zip").write_bytes(b"copied by hand")
    (folder / "data/linked").symlink_to(elsewhere)
    (folder / "data/omniglot/c.zip").symlink_to(elsewhere / "kept")
    (folder / "data/omniglot/.c.zip.checksum").write_text("md5:" + "0" * 32)
    mine = ["compiled", "data/linked", *(f"data/omniglot/{name}" for name in (".c.zip.checksum", "b.zip", "c.zip"))]
    mine += ["link", "notes.txt", f"own-{KEY}.json", f"own-{KEY}.u8"]
    assert list_entries(folder)[1] == mine
    assert [(entry.name, kept) for entry, kept in shrink(folder, 0)] == [(name, None), ("data/omniglot/a.zip", None)]
    assert files(folder) == {*mine, "compiled/thesis.pdf"} - {"compiled"}
    assert (elsewhere / "kept").exists()


@pytest.mark.parametrize("moved", [".u8", ".json"])
def test_images_that_somebody_moved_and_linked_stay_whole(folder: Path, tmp_path: Path, moved: str) -> None:
    path = folder / f"{store_images(folder, 'one')}{moved}"
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    before = files(folder)
    assert list_entries(folder) == ([], sorted(before))
    assert list(shrink(folder, 0)) == []
    assert files(folder) == before


@pytest.mark.parametrize("place", ["compiled", "compiled/ab/link"])
def test_kernels_behind_a_link_stay(folder: Path, tmp_path: Path, place: str) -> None:
    write_kernels(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    if place == "compiled":
        shutil.rmtree(folder / "compiled")
    (folder / place).symlink_to(tmp_path / "other")
    assert list_entries(folder) == ([], ["compiled"])
    assert list(shrink(folder, 0)) == []
    assert (folder / place).exists()


def test_a_cache_whose_locks_were_cleaned_away_is_known_by_its_description(folder: Path) -> None:
    name = store_images(folder, "one")
    (folder / f".{name}.u8.lock").unlink()
    assert names(folder) == [name]


# How much is removed, and in which order


def test_the_least_recently_used_are_removed_until_the_rest_fits(folder: Path) -> None:
    stored = {used: store_images(folder, str(used), used) for used in (3, 1, 2)}
    for used, name in stored.items():  # as if the images, too, were written then
        os.utime(folder / f"{name}.u8", (used, used))
    assert names(folder) == [stored[1], stored[2], stored[3]]
    each = list_entries(folder)[0][0].size
    assert list(shrink(folder, 3 * each)) == []
    assert [(entry.name, kept) for entry, kept in shrink(folder, 2 * each)] == [(stored[1], None)]
    assert [entry.name for entry, _ in shrink(folder, 2 * each - 1)] == [stored[2]]
    assert files(folder) == {f"{stored[3]}.u8", f"{stored[3]}.json"}


def test_downloads_go_last_and_0_removes_every_kind(folder: Path) -> None:
    """All else is made from downloads: without them the next run would need the network."""
    write_download(folder)
    os.utime(folder / "data/omniglot/.a.zip.checksum", (1, 1))
    store_images(folder, "one")
    write_features(folder)
    write_kernels(folder)
    assert names(folder)[-1] == "data/omniglot/a.zip"
    removed = [(entry.kind, kept) for entry, kept in shrink(folder, 0)]
    assert len(removed) == 4
    assert removed[-1] == ("download", None)
    assert files(folder) == set()
    assert not (folder / "data/omniglot").exists()


def test_a_missing_folder_has_nothing_and_is_not_made(folder: Path) -> None:
    assert list_entries(folder) == ([], [])
    assert list(shrink(folder, 0)) == []
    assert not folder.exists()


# What is in use


def one(folder: Path) -> Entry:
    (entry,) = list_entries(folder)[0]
    return entry


def test_mapped_images_stay_as_long_as_the_mapping(folder: Path) -> None:
    found = cache_images("toy", "one", decode)
    assert remove(one(folder)) == IN_USE
    images = found.table.images[:1]
    del found
    gc.collect()
    assert remove(one(folder)) == IN_USE
    del images
    gc.collect()
    assert remove(one(folder)) is None
    assert files(folder) == set()


def test_images_removed_while_a_process_opens_them_are_decoded_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the lock with the file open, which is no longer in the folder when it gets it."""
    store_images(folder, "one")
    calls: list[Path] = []

    def remove_first(file: BinaryIO) -> None:
        if not calls:
            calls.append(Path(file.name))
            assert remove(one(folder)) is None

    monkeypatch.setattr("metarun.data.cache.share_lock", remove_first)
    found = cache_images("toy", "one", decode)
    assert calls
    assert found.path.exists()
    assert found.table.images.flatten().tolist() == list(range(100))


def test_what_is_being_written_stays(folder: Path) -> None:
    """Images and features by the lock of their writer, kernels by that of every run that compiles."""
    write_features(folder)
    with file_lock(folder / f"features-{KEY}.npy"):
        assert remove(one(folder)) == IN_USE
    assert remove(one(folder)) is None

    def decode_slowly(file: BinaryIO) -> DecodedImages:
        assert remove(one(folder)) == IN_USE
        return decode(file)

    cache_images("toy", "one", decode_slowly)


def test_kernels_stay_while_a_run_compiles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    write_kernels(folder)
    os.utime(folder / "compiled", (1, 1))
    process = FORK.Process(target=compile_and_wait, args=(folder,))
    process.start()
    wait_for(folder / "started")
    assert remove(list_entries(folder)[0][0]) == IN_USE
    (folder / "go on").touch()
    process.join(timeout=60)
    (entry,) = list_entries(folder)[0]
    assert entry.used > 1
    assert remove(entry) is None
    assert not (folder / "compiled").exists()


def compile_and_wait(folder: Path) -> None:
    compile_function(lambda x: x, Placement(torch.device("cpu"), torch.float32, None, True), {"p": torch.zeros(2, 2)})
    (folder / "started").touch()
    wait_for(folder / "go on")


def test_kernels_that_lie_elsewhere_need_no_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    compile_function(lambda x: x, Placement(torch.device("cpu"), torch.float32, None, True), {"p": torch.zeros(2, 2)})
    assert not folder.exists()


def test_torchs_own_choice_of_a_folder_is_no_users(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sets the variable where a part of its compiler is imported."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", cache_dir_utils.default_cache_dir())
    compile_function(lambda x: x, Placement(torch.device("cpu"), torch.float32, None, True), {"p": torch.zeros(2, 2)})
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder / "compiled")


def test_two_runs_share_the_kernels(folder: Path) -> None:
    """The second does not wait for the end of the first."""
    share_until_exit(folder / "compiled")
    process = FORK.Process(target=lambda: share_until_exit.__wrapped__(folder / "compiled"), daemon=True)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 0


def test_downloads_stay_while_images_are_decoded(folder: Path) -> None:
    store_images(folder, "one")
    write_download(folder)

    def decode_slowly(file: BinaryIO) -> DecodedImages:
        assert remove(list_entries(folder)[0][-1]) == IN_USE
        return decode(file)

    cache_images("toy", "two", decode_slowly)
    gc.collect()
    assert remove(list_entries(folder)[0][-1]) is None
    assert not (folder / "data/omniglot").exists()


def test_without_locks_nothing_is_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_images(folder, "one")

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert [kept for _, kept in shrink(folder, 0)] == [NO_LOCKS]
    assert len(files(folder)) == 2


def test_what_may_not_be_removed_is_kept_and_the_next_is_tried(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of another user, in a folder that several have."""
    write_kernels(folder)
    os.utime(folder / "compiled", (10**10,) * 2)
    name = store_images(folder, "one")

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    assert [(entry.name, kept) for entry, kept in shrink(folder, 0)] == [
        (name, "Permission denied"),
        ("compiled", None),
    ]


# Kills, and two at once


def test_a_kill_between_two_files_leaves_nothing_that_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_images(folder, "one")
    unlink, left = Path.unlink, [1]

    def unlink_once(path: Path, missing_ok: bool = False) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        unlink(path, missing_ok)

    entry = one(folder)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", unlink_once)
        with pytest.raises(KeyboardInterrupt):
            remove(entry)
    assert {Path(name).suffix for name in files(folder)} == {".u8"}
    assert (one(folder).source, one(folder).content) == ("unfinished", None)
    assert cache_images("toy", "one", decode).table.images.flatten().tolist() == list(range(100))
    gc.collect()
    assert remove(one(folder)) is None
    assert files(folder) == set()


def test_a_kill_while_kernels_are_removed_leaves_none_that_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_kernels(folder)

    def kill(path: Path) -> None:
        raise KeyboardInterrupt

    entry = one(folder)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", kill)
        with pytest.raises(KeyboardInterrupt):
            remove(entry)
    assert not (folder / "compiled").exists()
    write_kernels(folder)  # of the next run
    assert one(folder).size == 60
    assert remove(one(folder)) is None
    assert files(folder) == set()


def test_what_a_killed_writer_left_is_removed(folder: Path) -> None:
    folder.mkdir()
    with file_lock(folder / f"toy-{KEY}.u8"):
        (folder / f"toy-{KEY}a1b2c3d4.tmp").write_bytes(b"half")
    with file_lock(folder / f"features-{KEY}.npy"):
        (folder / f"features-{KEY}.npy.tmp").write_bytes(b"half")
    assert [entry.source for entry in list_entries(folder)[0]] == ["unfinished"] * 2
    assert [kept for _, kept in shrink(folder, 0)] == [None, None]
    assert files(folder) == set()


def wait_for(path: Path) -> None:
    late = time.monotonic() + 60
    while not path.exists() and time.monotonic() < late:
        time.sleep(0.005)
    assert path.exists()


def shrink_slowly(folder: Path, most: int, mark: Path) -> None:
    """A process that stops for a second where it removes its first file, with that entry's lock."""
    unlink = Path.unlink

    def slow(path: Path, missing_ok: bool = False) -> None:
        if not mark.exists():
            mark.touch()
            time.sleep(1)
        unlink(path, missing_ok)

    Path.unlink = slow  # type: ignore[method-assign,assignment]
    list(cache_entries.shrink(folder, most))


def test_two_that_shrink_at_once_remove_no_more_than_one_would(folder: Path, tmp_path: Path) -> None:
    """The second would take the entry that the first is removing for one in use, and remove the next instead."""
    stored = [store_images(folder, str(used), used) for used in range(1, 5)]
    for used, name in enumerate(stored, 1):
        os.utime(folder / f"{name}.u8", (used, used))
    each = list_entries(folder)[0][0].size
    process = FORK.Process(target=shrink_slowly, args=(folder, 2 * each, tmp_path / "removing"))
    process.start()
    wait_for(tmp_path / "removing")
    assert list(shrink(folder, 2 * each)) == []
    process.join(timeout=60)
    assert process.exitcode == 0
    assert names(folder) == stored[2:]


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("METARUN_CACHE", "~/kept")
    assert cache_folder() == tmp_path / "kept"

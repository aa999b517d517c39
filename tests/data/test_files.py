"""Folders and archives: the same files from each, nothing from outside, nothing written, damage named in one line."""

from __future__ import annotations

import gc
import io
import os
import random
import shutil
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.image_files import KINDS, as_folder, as_tar, as_zip, attempt, everything, member, refusal

from metarun.data.files import LARGEST, fingerprint, is_archive, is_safe, open_files

ARCHIVES = {kind: make for kind, make in KINDS.items() if kind != "folder"}
CONTENTS = {
    "b/2.png": b"two" * 100,
    "a/one.png": random.Random(0).randbytes(3000),
    "a/ü é.png": b"not ASCII",
    "a/deep/er/1.jpg": b"deep",
    "table.csv": b"filename,label\r\n",
    "empty.txt": b"",
    f"{'long' * 40}/{'name' * 40}.png": b"too long for the first tar format",
}
IMAGES = {f"c{c}/{i}.png": random.Random(10 * c + i).randbytes(120) + b"x" * 200 for c in range(3) for i in range(2)}


def contents(path: Path) -> dict[str, bytes]:
    files = open_files(path)
    return dict(zip(files.names, files.read(files.names), strict=True))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("METARUN_DATA", raising=False)


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Path]:
    """A folder some levels down; when the test is over all around it must be as it was when the test began."""
    path = tmp_path / "up" / "upper" / "inside"
    path.mkdir(parents=True)
    (tmp_path / "up" / "secret.png").write_bytes(b"secret")
    yield path
    shutil.rmtree(path)
    assert everything(tmp_path) == {
        tmp_path / "up": None,
        tmp_path / "up/upper": None,
        tmp_path / "up/secret.png": b"secret",
    }


# The same files from folders and every kind of archive


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_place_gives_the_same_names_and_contents(tmp_path: Path, kind: str) -> None:
    """Sorted names, whatever order they were stored in, and contents in any order asked for, also more than once."""
    path = KINDS[kind](tmp_path / "data", CONTENTS)
    files = open_files(path)
    assert files.path == path
    assert files.names == tuple(sorted(CONTENTS))
    for seed in range(3):
        wanted = random.Random(seed).choices(files.names, k=20)
        assert list(files.read(wanted)) == [CONTENTS[name] for name in wanted]
    assert list(files.read([])) == []


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_files_and_what_macos_adds_are_left_out(tmp_path: Path, kind: str) -> None:
    """Whether it was extracted or not; a hidden file's name may look like an image's."""
    more = {
        **{".DS_Store": b"x", "a/.DS_Store": b"x", "a/._one.png": b"x", ".git/a/1.png": b"x", "a/.thumbs/1.png": b"x"},
        **{"__MACOSX/a/._one.png": b"x", "__MACOSX/a/one.png": b"x"},
    }
    path = KINDS[kind](tmp_path / "data", {**more, **CONTENTS})
    assert contents(path) == CONTENTS


@pytest.mark.parametrize("kind", [k for k in ARCHIVES if k.startswith("tar")])
def test_names_that_begin_with_a_dot_and_a_slash_are_the_names_without(tmp_path: Path, kind: str) -> None:
    """As `tar cf ../x.tar .` writes them, with members for the folders too."""
    as_folder(tmp_path / "folder", CONTENTS)
    mode: Any = kind.replace("tar.", "w:").replace("tar", "w:")
    with tarfile.open(tmp_path / "x", mode) as archive:
        archive.add(tmp_path / "folder", arcname=".")
        assert "./a/one.png" in archive.getnames()
    assert contents(tmp_path / "x") == CONTENTS


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar_is_read(tmp_path: Path, form: int) -> None:
    files = {name: content for name, content in CONTENTS.items() if len(name) < 300 or form != tarfile.USTAR_FORMAT}
    assert contents(as_tar(tmp_path / "x.tar", files, form=form)) == files


@pytest.mark.parametrize("name", ["BZh9/1.png", "BZ/1.png", "PK/1.png", "\x1f\x8b/1.png", "\xfd7zXZ/1.png"])
def test_a_tar_may_begin_with_a_name_that_looks_like_a_compression(tmp_path: Path, name: str) -> None:
    """A plain tar begins with its first member's name."""
    files = {name: b"one", "z/2.png": b"two"}
    assert contents(as_tar(tmp_path / "x.tar", files, form=tarfile.USTAR_FORMAT)) == files


def test_a_name_that_is_stored_twice_is_the_later_file(tmp_path: Path) -> None:
    """As when it is extracted; `tar r` adds a newer version at the end."""
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for content in (b"old and longer", b"new"):
            archive.addfile(*member("a/1.png", content))
    assert contents(tmp_path / "x.tar") == {"a/1.png": b"new"}
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as zipped:
        zipped.writestr("a/1.png", b"old and longer")
        with pytest.warns(UserWarning, match="Duplicate"):
            zipped.writestr("a/1.png", b"new")
    assert contents(tmp_path / "x.zip") == {"a/1.png": b"new"}


@pytest.mark.parametrize("kind", KINDS)
def test_reading_changes_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Nothing is extracted beside the archive, nor left among temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    path = KINDS[kind](tmp_path / "data", CONTENTS)
    before, stamp = everything(tmp_path), fingerprint(path)
    contents(path)
    next(open_files(path).read(["a/one.png"]))
    assert everything(tmp_path) == before
    assert fingerprint(path) == stamp


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files can be counted on Linux only")
@pytest.mark.parametrize("kind", KINDS)
def test_no_file_stays_open(tmp_path: Path, kind: str) -> None:
    """Nor is one closed by chance, when the memory is collected: Python warns of that."""
    path = KINDS[kind](tmp_path / "data", CONTENTS)
    gc.collect()  # what other tests left
    before = len(os.listdir("/proc/self/fd"))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        contents(path)
        next(open_files(path).read(["a/one.png"]))
        gc.collect()
    assert [str(w.message) for w in seen] == []
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *[(n, True) for n in ("a.zip", "a.tar", "A.TAR.GZ", "a.tgz", "a.tar.bz2", "a.tar.xz", "b.c/a.zip")],
        *[(n, False) for n in ("a.png", "zip", "a.zip.part", "a.gz", "a.tar/b", "a.csv", "a.pkl")],
    ],
)
def test_archives_are_told_by_their_ending(name: str, expected: bool) -> None:
    assert is_archive(Path(name)) == expected


# Hostile archives


@pytest.mark.parametrize(
    "name",
    [
        *("/abs/1.png", "//abs/1.png", "../1.png", "a/../../1.png", "a/..", "..", "./../1.png", "a/../b/1.png"),
        *("C:/1.png", "C:1.png", "c:\\1.png", "..\\1.png", "a\\..\\1.png", "a\\1.png", "\\\\host\\share\\1.png"),
        *("", ".", "./", "/", ".hidden", "a/.b/1.png", "__MACOSX/1.png"),
    ],
)
def test_names_that_reach_elsewhere_are_not_safe(name: str) -> None:
    assert not is_safe(name)


@pytest.mark.parametrize("name", ["1.png", "a/1.png", "./a/1.png", "a/b..c/1...png", "a b/ü.png", "a/x:y.png"])
def test_plain_names_are_safe(name: str) -> None:
    assert is_safe(name)


def hostile_names(inside: Path) -> list[str]:
    up = inside.parent.parent
    return ["../../secret.png", "../new.png", "a/../../new.png", f"{up}/new.png", "C:/new.png", "..\\new.png"]


def test_members_of_a_zip_that_reach_elsewhere_are_left_out(inside: Path) -> None:
    link = zipfile.ZipInfo("a/link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(inside / "x.zip", "w") as archive:
        archive.writestr(link, "../../../secret.png")
        for name in hostile_names(inside):
            archive.writestr(zipfile.ZipInfo(name), b"evil")
        archive.writestr("a/1.png", b"good")
    assert contents(inside / "x.zip") == {"a/1.png": b"good"}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_members_of_a_tar_that_reach_elsewhere_are_left_out(inside: Path, mode: str) -> None:
    """Nor can a link to a folder make a harmless name reach elsewhere: nothing is ever extracted."""
    up = inside.parent.parent
    kinds = {
        **{tarfile.SYMTYPE: f"{up}/secret.png", tarfile.LNKTYPE: "a/1.png"},
        **{tarfile.CHRTYPE: "", tarfile.BLKTYPE: "", tarfile.FIFOTYPE: ""},
    }
    with tarfile.open(inside / "x", mode) as archive:  # type: ignore[call-overload]
        archive.addfile(*member("way", type=tarfile.SYMTYPE, linkname=str(up)))
        archive.addfile(*member("way/new.png", b"stays inside"))
        for kind, target in kinds.items():
            archive.addfile(*member(f"a/kind{kind.decode()}.png", type=kind, linkname=target, devmajor=1, devminor=5))
        for name in hostile_names(inside):
            archive.addfile(*member(name, b"evil"))
        archive.addfile(*member("a/1.png", b"good"))
    assert contents(inside / "x") == {"a/1.png": b"good", "way/new.png": b"stays inside"}


@pytest.mark.parametrize("target", ["/etc/hostname", "../../secret.png", "big.png", "gone.png"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_a_link_with_the_name_of_a_file_is_never_read_in_its_place(inside: Path, kind: bytes, target: str) -> None:
    """It would be another file's content, past the check of its size. The file counts, or the archive is refused."""
    with tarfile.open(inside / "x.tar", "w") as archive:
        archive.addfile(*member("big.png", b"x" * 5000))
        archive.addfile(*member("a/1.png", b"good"))
        archive.addfile(*member("a/1.png", type=kind, linkname=target))

    def read() -> list[bytes]:
        files = open_files(inside / "x.tar")
        return list(files.read([n for n in files.names if n == "a/1.png"], largest=1000))

    assert attempt(read)[0] in (None, [], [b"good"])


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_too_large_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = KINDS[kind](tmp_path / "data", {"a/big.png": b"\0" * 5001, "a/fits.png": b"\0" * 5000})
    files = open_files(path)
    assert list(files.read(["a/fits.png"], 5000)) == [b"\0" * 5000]
    for reader, method in ((zipfile.ZipFile, "read"), (tarfile.TarFile, "extractfile"), (Path, "read_bytes")):
        monkeypatch.setattr(reader, method, lambda *_: pytest.fail("it was read"))
    message = refusal(lambda: list(files.read(["a/big.png"], 5000)))
    assert message == f"{path}: a/big.png has 5001 bytes; at most 5000 are read"


def claim(path: Path, size: int, claimed: int) -> Path:
    """Make a zip say of its one member that it has another size."""
    old, new = (n.to_bytes(4, "little") for n in (size, claimed))
    assert path.read_bytes().count(old) == 2
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


def test_no_image_may_have_more_than_64_mebibytes(tmp_path: Path) -> None:
    """Decided by the size that is claimed: a zip bomb has a thousandth of it."""
    as_folder(tmp_path / "folder", {"a/1.png": b""})
    os.truncate(tmp_path / "folder/a/1.png", LARGEST + 1)  # a hole
    zipped = as_zip(tmp_path / "x.zip", {"a/1.png": bytes(100_000)}, zipfile.ZIP_DEFLATED)
    for path in (claim(zipped, 100_000, LARGEST + 1), tmp_path / "folder"):
        message = refusal(lambda path=path: contents(path))  # type: ignore[misc]
        assert message.startswith(f"{path}: a/1.png has {2**26 + 1} bytes; at most {2**26} ")


def test_a_zip_that_lies_about_a_size_gives_no_more_than_it_claims(tmp_path: Path) -> None:
    """The claim is what is checked before reading."""
    path = as_zip(tmp_path / "x.zip", {"a/1.png": bytes(100_000)}, zipfile.ZIP_DEFLATED)
    assert "damaged at a/1.png" in refusal(lambda: contents(claim(path, 100_000, 100)))


# Damage


@pytest.mark.parametrize("content", [b"", b"x", b"<html>Sign in to the network</html>", b"\xff" * 5000])
def test_what_is_no_archive_is_refused_by_its_name(tmp_path: Path, content: bytes) -> None:
    for name in ("x.zip", "x.tar", "x.tar.gz"):
        (tmp_path / name).write_bytes(content)
        assert str(tmp_path / name) in refusal(lambda name=name: contents(tmp_path / name))  # type: ignore[misc]


def test_a_place_that_is_not_there_is_refused_by_its_name(tmp_path: Path) -> None:
    assert str(tmp_path / "gone") in refusal(lambda: open_files(tmp_path / "gone"))


def outcomes(path: Path, damaged: list[bytes]) -> list[dict[str, bytes] | str]:
    """What each of the damaged archives gives: its contents, or the one line of the refusal."""
    found: list[dict[str, bytes] | str] = []
    for content in damaged:
        path.write_bytes(content)
        files, message = attempt(lambda: contents(path))
        assert files is not None or str(path) in message
        found.append(message if files is None else files)
    return found


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_that_was_cut_short_never_passes_for_a_smaller_one(tmp_path: Path, kind: str) -> None:
    """Images that are silently missing would change every episode. At each block of a tar, and elsewhere."""
    path = ARCHIVES[kind](tmp_path / "x", IMAGES)
    whole = path.read_bytes()
    step = 256 if kind == "tar" else len(whole) // 40
    for found in outcomes(
        path, [whole[:n] for n in [*range(0, len(whole), step), *range(len(whole) - 12, len(whole))]]
    ):
        assert isinstance(found, str) or found == IMAGES


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path: Path, kind: str) -> None:
    """A plain tar has sums of its headers only, so that it can lose no file. A zip's list of members, at its end, has
    no sum either: there it is enough that the refusal is one line."""
    path = ARCHIVES[kind](tmp_path / "x", IMAGES)
    whole = path.read_bytes()
    summed = whole.index(b"PK\x01\x02") if kind.startswith("zip") else len(whole)
    choice = random.Random(0)
    positions = [choice.randrange(len(whole)) for _ in range(80)] + [512 * i + 7 for i in range(len(whole) // 1024)]
    positions = [p for p in positions if p < len(whole)]
    damaged = [whole[:p] + bytes([whole[p] ^ 1 << choice.randrange(8)]) + whole[p + 1 :] for p in positions]
    for position, found in zip(positions, outcomes(path, damaged), strict=True):
        if isinstance(found, dict) and position < summed:
            assert found.keys() == IMAGES.keys()
            assert kind == "tar" or found == IMAGES


def set_field(path: Path, name: str, offset: int, value: int) -> None:
    """Set a 16-bit field of a zip's member in both of its headers; `offset` is that in the local one."""
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        local = archive.getinfo(name).header_offset
    central = whole.rindex(b"PK\x01\x02", 0, whole.rindex(name.encode()))
    for start in (local + offset, central + offset + 2):
        whole[start : start + 2] = value.to_bytes(2, "little")
    path.write_bytes(whole)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes().replace(b"two" * 100, b"too" * 100)),
        lambda path: set_field(path, "b/2.png", 6, 1),
        lambda path: set_field(path, "b/2.png", 8, 98),
    ],
    ids=["other bytes", "encrypted", "unknown compression"],
)
def test_a_member_that_cannot_be_read_is_named_with_its_archive(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """The others can still be read."""
    path = as_zip(tmp_path / "x.zip", CONTENTS)
    damage(path)
    assert next(open_files(path).read(["a/one.png"])) == CONTENTS["a/one.png"]
    assert f"{path}: the archive is damaged at b/2.png (" in refusal(
        lambda: list(open_files(path).read(["a/one.png", "b/2.png"]))
    )


def test_a_file_that_went_away_is_named(tmp_path: Path) -> None:
    files = open_files(as_folder(tmp_path / "x", CONTENTS))
    (tmp_path / "x/b/2.png").unlink()
    assert str(tmp_path / "x/b/2.png") in refusal(lambda: list(files.read(files.names)))


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_that_went_away_is_named(tmp_path: Path, kind: str) -> None:
    """Between the look at its names and the reading, as on a disk that was unplugged; or it was read by then, as the
    whole of a compressed tar is."""
    path = ARCHIVES[kind](tmp_path / "x", CONTENTS)
    files = open_files(path)
    path.unlink()
    found, message = attempt(lambda: dict(zip(files.names, files.read(files.names), strict=True)))
    assert found == CONTENTS or str(path) in message
    assert (found is None) == (not kind.startswith("tar."))


# Links in folders


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    """People link the images of a subset instead of copying them."""
    store = as_folder(tmp_path / "store", {"n1/1.png": b"one", "n2/2.png": b"two"})
    path = as_folder(tmp_path / "data", {"n3/3.png": b"three"})
    (path / "n1").symlink_to(store / "n1")
    (path / "n3/2.png").symlink_to(store / "n2/2.png")
    assert contents(path) == {"n1/1.png": b"one", "n3/2.png": b"two", "n3/3.png": b"three"}


def test_links_that_go_round_or_nowhere_end(tmp_path: Path) -> None:
    path = as_folder(tmp_path / "data", {"a/b/1.png": b"one"})
    (path / "a/b/up").symlink_to(path)
    (path / "a/here").symlink_to(path / "a")
    (path / "gone").symlink_to(tmp_path / "gone")
    assert contents(path) == {"a/b/1.png": b"one"}


def test_a_link_to_itself_is_no_file(tmp_path: Path) -> None:
    path = as_folder(tmp_path / "data", {"a/1.png": b"one"})
    (path / "a/self.png").symlink_to(path / "a/self.png")
    assert contents(path) == {"a/1.png": b"one"}
    assert fingerprint(path)


def test_a_folder_with_two_names_has_the_same_one_whatever_order_the_system_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names are classes: another one elsewhere would be another split there."""
    path = as_folder(tmp_path / "data", {"m/1.png": b"one"})
    for name in ("a", "z"):
        (path / name).symlink_to(path / "m")
    listed = os.scandir
    found = []
    for order in (False, True):
        monkeypatch.setattr(os, "scandir", lambda f, o=order: iter(sorted(listed(f), key=lambda e: e.name, reverse=o)))
        found.append((open_files(path).names, fingerprint(path)))
    assert len(found[0][0]) == 1
    assert found[0] == found[1]


def test_pipes_and_sockets_in_a_folder_are_left_out(tmp_path: Path) -> None:
    """Reading one would wait for ever."""
    path = as_folder(tmp_path / "data", {"a/1.png": b"one"})
    os.mkfifo(path / "a/2.png")
    assert contents(path) == {"a/1.png": b"one"}


def test_names_that_are_not_utf8_are_files_as_others(tmp_path: Path) -> None:
    path = as_folder(tmp_path / "data", {os.fsdecode(b"caf\xe9/1.png"): b"one"})
    assert contents(path) == {os.fsdecode(b"caf\xe9/1.png"): b"one"}
    assert fingerprint(path)


# The fingerprint


def rewrite(path: Path) -> None:
    """Other bytes, as many, at a later time."""
    before = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def lengthen(path: Path) -> None:
    """More bytes, at the same time: by a program that sets it back."""
    before = path.stat()
    path.write_bytes(path.read_bytes() + b"more")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], Any]] = {
    "added": lambda p: (p / "b/3.png").write_bytes(b"three"),
    "added, empty": lambda p: (p / "b/3.png").touch(),
    "removed": lambda p: (p / "b/2.png").unlink(),
    "renamed": lambda p: (p / "b/2.png").rename(p / "b/3.png"),
    "a class renamed": lambda p: (p / "b").rename(p / "c"),
    "moved to another class": lambda p: (p / "b/2.png").rename(p / "a/2.png"),
    "rewritten": lambda p: rewrite(p / "b/2.png"),
    "lengthened": lambda p: lengthen(p / "b/2.png"),
    "two exchanged": lambda p: [
        (p / x).rename(p / y) for x, y in [("b/2.png", "t"), ("a/one.png", "b/2.png"), ("t", "a/one.png")]
    ],
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_of_a_folder_changes_with_its_files(tmp_path: Path, change: str) -> None:
    path = as_folder(tmp_path / "data", CONTENTS)
    before = fingerprint(path)
    CHANGES[change](path)
    assert fingerprint(path) != before


def test_the_fingerprint_of_an_archive_changes_when_it_is_written(tmp_path: Path) -> None:
    path = as_zip(tmp_path / "x.zip", CONTENTS)
    before = fingerprint(path)
    rewrite(path)
    assert fingerprint(path) != before
    now = fingerprint(path)
    path.write_bytes(path.read_bytes() + b"\0")
    assert fingerprint(path) != now


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_was_moved_keeps_its_fingerprint(tmp_path: Path, kind: str) -> None:
    """So that the decoded images are found again."""
    path = KINDS[kind](tmp_path / "here" / "data", CONTENTS)
    before = fingerprint(path)
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert fingerprint(tmp_path / "there" / "data") == before
    (tmp_path / "there" / "data").rename(tmp_path / "renamed")
    assert fingerprint(tmp_path / "renamed") == before


def test_hidden_files_are_not_in_the_fingerprint(tmp_path: Path) -> None:
    """A look at the folder in the Finder writes one."""
    path = as_folder(tmp_path / "data", CONTENTS)
    before = fingerprint(path)
    as_folder(path, {".DS_Store": b"x", "a/.DS_Store": b"x"})
    assert fingerprint(path) == before


def test_the_bytes_of_an_image_come_as_they_are(tmp_path: Path) -> None:
    """Line ends and zero bytes are no text."""
    content = io.BytesIO(b"\r\n\0\x1a\n" * 50).getvalue()
    for kind, make in KINDS.items():
        assert contents(make(tmp_path / kind, {"a/1.png": content})) == {"a/1.png": content}


def test_a_member_without_a_name_is_passed_over(tmp_path: Path) -> None:
    """zipfile takes the last letter of each name."""
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(""), b"nameless")
        archive.writestr("a/b.png", b"image")
    assert open_files(tmp_path / "images.zip").names == ("a/b.png",)

"""Omniglot: where it is found, how it is decoded and split, and what is said when it is missing or damaged.

Most tests use a miniature of 11 characters whose drawings say which they are; the splits, which need all 1623
characters, use one imitation of full size with the real alphabets and a few drawings over and over.
"""

from __future__ import annotations

import functools
import hashlib
import io
import socket
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import metarun
from metarun.data.decoding import write_images
from metarun.data.files import LARGEST
from metarun.data.images import ImageData, members_sha256
from metarun.data.omniglot import TEST_ALPHABETS, TEST_CHARACTERS, VAL_ALPHABETS
from metarun.data.omniglot import omniglot as from_settings
from metarun.data.pixels import Pixels
from metarun.data.torchvision import load_torchvision
from metarun.errors import SettingError, UserError
from metarun.types import Batch, EpisodeSpec, Task

PARTS = ("images_background", "images_evaluation")
SHARED = Path(__file__).resolve().parents[3] / "shared/data/omniglot"

# Alphabets of the real data and how many characters each has.
BACKGROUND = {
    **{"Alphabet_of_the_Magi": 20, "Anglo-Saxon_Futhorc": 29, "Arcadian": 26, "Armenian": 41},
    **{"Asomtavruli_(Georgian)": 40, "Balinese": 24, "Bengali": 46, "Blackfoot_(Canadian_Aboriginal_Syllabics)": 14},
    **{"Braille": 26, "Burmese_(Myanmar)": 34, "Cyrillic": 33, "Early_Aramaic": 22, "Futurama": 26, "Grantha": 43},
    **{"Greek": 24, "Gujarati": 48, "Hebrew": 22, "Inuktitut_(Canadian_Aboriginal_Syllabics)": 16},
    **{"Japanese_(hiragana)": 52, "Japanese_(katakana)": 47, "Korean": 40, "Latin": 26, "Malay_(Jawi_-_Arabic)": 40},
    **{"Mkhedruli_(Georgian)": 41, "N_Ko": 33, "Ojibwe_(Canadian_Aboriginal_Syllabics)": 14, "Sanskrit": 42},
    **{"Syriac_(Estrangelo)": 23, "Tagalog": 17, "Tifinagh": 55},
}
EVALUATION = {
    **{"Angelic": 20, "Atemayar_Qelisayer": 26, "Atlantean": 26, "Aurek-Besh": 26, "Avesta": 26, "Ge_ez": 26},
    **{"Glagolitic": 45, "Gurmukhi": 45, "Kannada": 41, "Keble": 26, "Malayalam": 47, "Manipuri": 40},
    **{"Mongolian": 30, "Old_Church_Slavonic_(Cyrillic)": 45, "Oriya": 46, "Sylheti": 28, "Syriac_(Serto)": 23},
    **{"Tengwar": 25, "Tibetan": 42, "ULOG": 26},
}

# The miniature, in the order in which it is decoded. Vinyals' split: 5 train, 3 val (Hebrew), 3 test.
MINIATURE = (
    *(f"images_background/Arcadian/character{i:02d}" for i in (1, 2, 3, 4)),
    *(f"images_background/Hebrew/character{i:02d}" for i in (1, 2, 3)),
    *(f"images_evaluation/Gurmukhi/character{i:02d}" for i in (41, 42)),
    *(f"images_evaluation/Tengwar/character{i:02d}" for i in (1, 2)),
)
SPEC = EpisodeSpec(ways=3, shots=2, queries=3)

Files = dict[str, bytes]


def png(ink: np.ndarray) -> bytes:
    """One bit a pixel, as in the real data: strokes black on white."""
    buffer = io.BytesIO()
    Image.fromarray(ink == 0).save(buffer, "png")
    return buffer.getvalue()


def code(character: int, drawing: int) -> np.ndarray:
    """15 x 15 squares: a full top row tells which way is up, row 2 has the character and row 4 the drawing in bits."""
    squares = np.zeros((15, 15), dtype=bool)
    squares[0] = True
    squares[2, 3:7] = [character >> b & 1 for b in range(4)]
    squares[4, 3:8] = [drawing >> b & 1 for b in range(5)]
    return squares


@functools.cache
def miniature() -> Files:
    """Names and contents of the miniature's 220 drawings, 7 x 7 pixels a square."""
    squares = {(c, d): code(c, d) for c in range(len(MINIATURE)) for d in range(20)}
    return {
        f"{MINIATURE[c]}/{c:04d}_{d + 1:02d}.png": png(np.kron(ink, np.ones((7, 7), dtype=bool)))
        for (c, d), ink in squares.items()
    }


def decode(batch: Batch) -> np.ndarray:
    """[T, rows, 3]: character, drawing and quarter turns, read from images of 15 x 15 pixels."""
    pixels = batch.x.numpy()[:, :, 0]
    assert set(np.unique(pixels)) == {0.0, 1.0}
    found = np.full((*pixels.shape[:2], 3), -1)
    for turns in range(4):
        upright = np.rot90(pixels, -turns, axes=(2, 3))
        here = upright[:, :, 0].all(-1)
        found[here, 0] = upright[here][:, 2, 3:7] @ [1, 2, 4, 8]
        found[here, 1] = upright[here][:, 4, 3:8] @ [1, 2, 4, 8, 16]
        found[here, 2] = turns
    assert found.min() >= 0
    return found


def zipped(path: Path, files: Files, compression: int = zipfile.ZIP_STORED) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)


def as_archives(folder: Path, files: Files | None = None, compression: int = zipfile.ZIP_STORED) -> Path:
    for part in PARTS:
        members = {n: c for n, c in (files or miniature()).items() if n.startswith(part)}
        zipped(folder / f"{part}.zip", members, compression)
    return folder


def as_folders(folder: Path, files: Files | None = None) -> Path:
    for name, content in (files or miniature()).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def omniglot(root: Path | None = None, **settings: Any) -> ImageData:
    defaults: dict[str, Any] = {"download": False, "urls": [], "split": "vinyals", "split_seed": 0, "rotations": "none"}
    defaults |= {"image_size": 15, "resize": "nearest", "root": None if root is None else str(root)}
    return from_settings(**defaults | settings)


def draw(data: ImageData, split: Any = "train", tasks: int = 4, spec: EpisodeSpec = SPEC) -> Task:
    return data.episodes(split, 0, 0, range(tasks), spec)


def refusal(action: Callable[[], object]) -> str:
    """The one line that the user is told."""
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(a: Task, b: Task) -> None:
    for one, other in zip([*a.support, *a.query], [*b.support, *b.query], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the miniature pass for a complete copy."""
    monkeypatch.setattr("metarun.data.omniglot.COUNT", len(miniature()))


# Finding it


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("below", ["", "omniglot", "omniglot-py"])
@pytest.mark.parametrize("kind", [as_archives, as_folders])
def test_archives_and_folders_are_found_where_people_keep_them(
    tmp_path: Path, kind: Callable[[Path], Path], below: str
) -> None:
    kind(tmp_path / "data" / below)
    data = omniglot(tmp_path / "data")
    assert sorted(name for names in data.members.values() for name in names) == sorted(MINIATURE)


@pytest.mark.usefixtures("small")
def test_archives_and_folders_give_the_same_episodes(tmp_path: Path) -> None:
    """Whoever extracted the data must be able to repeat the numbers of whoever did not."""
    zips, folders = omniglot(as_archives(tmp_path / "zips")), omniglot(as_folders(tmp_path / "folders"))
    for split in ("train", "val", "test"):
        assert_same(draw(zips, split), draw(folders, split))
    assert zips.facts() == folders.facts()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", [as_archives, as_folders])
def test_every_query_has_the_name_of_its_drawing(tmp_path: Path, kind: Callable[[Path], Path]) -> None:
    """Where the class turns, too; the same of archives and folders."""
    data = omniglot(kind(tmp_path / "data"), rotations="classes")
    names = data.query_names("train", 0, 0, range(30), SPEC)
    numbers = decode(draw(data, tasks=30).query)
    for name, (character, drawing, _) in zip((n for task in names for n in task), numbers.reshape(-1, 3), strict=True):
        assert name == f"{MINIATURE[character]}/{character:04d}_{drawing + 1:02d}.png"


@pytest.mark.usefixtures("small")
def test_an_archive_may_hold_its_part_below_another_folder_and_in_any_order(tmp_path: Path) -> None:
    """As when someone zipped the folder `python` of the authors' repository again."""
    files = dict(reversed(miniature().items()))
    for part in PARTS:
        inside = {f"omniglot/python/{n}": c for n, c in files.items() if n.startswith(part)}
        zipped(tmp_path / "again" / f"{part}.zip", inside, zipfile.ZIP_DEFLATED)
    assert_same(draw(omniglot(tmp_path / "again")), draw(omniglot(as_archives(tmp_path / "data"))))


@pytest.mark.usefixtures("small")
def test_whole_archives_are_read_when_their_extraction_was_cut_short(tmp_path: Path) -> None:
    """torchvision keeps the archive and extracts beside it; it does not extract again what has the right sum, so that
    after Ctrl-C during the extraction nothing but the archives can be relied on."""
    data = as_folders(as_archives(tmp_path), dict([*miniature().items()][:-30]))
    assert decode(draw(omniglot(data, rotations="task")).support).shape == (4, 6, 3)


def test_the_place_is_data_root_then_the_variable_then_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METARUN_DATA", str(tmp_path / "variable"))
    assert f"data.root={tmp_path / 'root'}: no Omniglot below it " in refusal(
        lambda: omniglot(tmp_path / "root").members
    )
    assert f"data.root={tmp_path / 'variable'}: no Omniglot" in refusal(lambda: omniglot().members)
    monkeypatch.setenv("METARUN_DATA", "")
    assert f"data.root={tmp_path / 'cache/data'}: no Omniglot" in refusal(lambda: omniglot().members)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert f"data.root={tmp_path / 'home/mine'}: no Omniglot below it " in refusal(
        lambda: omniglot(root="~/mine").members
    )


@pytest.mark.usefixtures("small")
def test_data_below_the_variable_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_DATA", str(as_archives(tmp_path / "variable")))
    assert draw(omniglot()).support.x.shape == (4, 6, 1, 15, 15)


def assert_three_ways(message: str) -> None:
    for way in (
        "data.root=DIR (or METARUN_DATA=DIR) with the folders images_background and images_evaluation",
        "images_background.zip and images_evaluation.zip",
        "data.download=true",
    ):
        assert way in message


@pytest.mark.parametrize("there", [(), ("images_background",), ("images_evaluation",)])
def test_without_both_parts_and_without_download_one_line_names_three_ways(
    tmp_path: Path, there: tuple[str, ...]
) -> None:
    for part in there:
        zipped(tmp_path / "data" / f"{part}.zip", {})
    message = refusal(lambda: omniglot(tmp_path / "data").members)
    assert str(tmp_path / "data") in message
    assert "downloading is off" in message
    assert_three_ways(message)


# Damage


@pytest.mark.parametrize("kind", [as_archives, as_folders])
def test_an_incomplete_copy_is_refused_with_both_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[Path], Path]
) -> None:
    """Before anything is decoded or cached: a class with a missing drawing would change every episode."""
    monkeypatch.setattr(Pixels, "decode", None)
    message = refusal(lambda: omniglot(kind(tmp_path / "data")).members)
    assert message == f"data.root={tmp_path / 'data'}: holds 220 Omniglot drawings, not 32460; the copy is incomplete"
    assert not list(tmp_path.glob("cache/[!.]*"))


def truncate(whole: bytes) -> bytes:
    """A download that was interrupted."""
    return whole[: len(whole) // 2]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("damage", [truncate, lambda _: b"<html>Sign in to the network</html>", lambda _: b""])
def test_an_archive_that_is_none_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = as_archives(tmp_path / "data") / "images_evaluation.zip"
    path.write_bytes(damage(path.read_bytes()))
    assert str(tmp_path / "data") in refusal(lambda: draw(omniglot(tmp_path / "data")))


def spoil(path: Path, member: str, change: Callable[[bytes], bytes]) -> None:
    """Change the stored bytes of a member, but not their number."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
    whole = path.read_bytes()
    start = info.header_offset + 30 + len(member)
    before = whole[start : start + info.compress_size]
    after = change(before)
    assert len(after) == len(before) > 0
    path.write_bytes(whole[:start] + after + whole[start + len(before) :])


def mark(path: Path, member: str, offset: int, value: int) -> None:
    """Set a 16-bit field of a member in both of its headers; `offset` is that in the local one."""
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at = [archive.getinfo(member).header_offset + offset]
    at.append(whole.rindex(b"PK\x01\x02", 0, whole.rindex(member.encode())) + offset + 2)
    for place in at:
        whole[place : place + 2] = value.to_bytes(2, "little")
    path.write_bytes(whole)


DAMAGES = {
    "another byte": (zipfile.ZIP_STORED, lambda p, m: spoil(p, m, lambda b: b[:-1] + bytes([b[-1] ^ 1]))),
    "garbage, stored": (zipfile.ZIP_STORED, lambda p, m: spoil(p, m, lambda b: b"\xff" * len(b))),
    "garbage, deflated": (zipfile.ZIP_DEFLATED, lambda p, m: spoil(p, m, lambda b: b"\xff" * len(b))),
    "encrypted": (zipfile.ZIP_STORED, lambda p, m: mark(p, m, 6, 1)),
    "unknown compression": (zipfile.ZIP_STORED, lambda p, m: mark(p, m, 8, 98)),
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_member_is_named_with_its_archive(tmp_path: Path, damage: str) -> None:
    compression, apply = DAMAGES[damage]
    data = as_archives(tmp_path / "data", compression=compression)
    member = "images_evaluation/Gurmukhi/character41/0007_03.png"
    apply(data / "images_evaluation.zip", member)
    message = refusal(lambda: draw(omniglot(data)))
    assert str(data / "images_evaluation.zip") in message
    assert member in message
    assert not list(tmp_path.glob("cache/[!.]*"))


def data_shortened(whole: bytes) -> bytes:
    """The pixels' chunk claims 20 bytes too few, and what follows is no chunk: PIL calls that a SyntaxError."""
    at = whole.index(b"IDAT") - 4
    return whole[:at] + (int.from_bytes(whole[at : at + 4], "big") - 20).to_bytes(4, "big") + whole[at + 4 :]


def header_shortened(whole: bytes) -> bytes:
    """The first chunk claims 6 bytes instead of 13: PIL calls that a ValueError."""
    return whole.replace(b"\x00\x00\x00\rIHDR", b"\x00\x00\x00\x06IHDR")


def bomb(_: bytes) -> bytes:
    """A header that claims 60000 x 60000 pixels, beyond what PIL allows."""
    whole = bytearray(png(np.zeros((8, 8), dtype=bool)))
    whole[16:24] = (60_000).to_bytes(4, "big") * 2
    whole[29:33] = zlib.crc32(whole[12:29]).to_bytes(4, "big")
    return bytes(whole)


def text(_: bytes) -> bytes:
    return b"no image at all"


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("damage", [truncate, text, lambda _: b"", data_shortened, header_shortened, bomb])
@pytest.mark.parametrize("kind", [as_archives, as_folders])
def test_a_drawing_that_is_no_image_is_named(
    tmp_path: Path, kind: Callable[[Path, Files], Path], damage: Callable[[bytes], bytes]
) -> None:
    name = "images_background/Hebrew/character02/0005_11.png"
    data = kind(tmp_path / "data", {**miniature(), name: damage(miniature()[name])})
    message = refusal(lambda: draw(omniglot(data)))
    assert name in message
    assert "not a readable image" in message


@pytest.mark.usefixtures("small")
def test_other_members_of_an_archive_are_ignored(tmp_path: Path) -> None:
    """Among them what macOS adds, and thumbnails."""
    more = {
        "images_background/README.txt": b"hello",
        "images_background/Hebrew/character01/Thumbs.db": b"hello",
        "images_background/Hebrew/character01/0004_21.jpg": b"hello",
        "images_background/Hebrew/0004_01.png": b"hello",
        "images_background/Hebrew/character01/extra/0004_21.png": b"hello",
        "__MACOSX/images_background/Hebrew/character01/._0004_01.png": b"hello",
        "images_background/Hebrew/character99/": b"",
    }
    data = as_archives(tmp_path / "more", {**more, **miniature()}, zipfile.ZIP_DEFLATED)
    assert_same(draw(omniglot(data), "val"), draw(omniglot(as_archives(tmp_path / "plain")), "val"))


@pytest.mark.usefixtures("small")
def test_a_drawing_that_unpacks_to_more_than_an_image_has_is_refused_by_its_name(tmp_path: Path) -> None:
    """64 MB of zeros are 64 kB in an archive; a thousand such members would fill the memory."""
    name = "images_background/Hebrew/character01/0004_11.png"
    files = {**miniature(), name: b"\0" * (LARGEST + 1)}
    data = as_archives(tmp_path / "data", files, zipfile.ZIP_DEFLATED)
    message = refusal(lambda: draw(omniglot(data)))
    assert str(data / "images_background.zip") in message
    assert f"{name} has {LARGEST + 1} bytes" in message
    assert not list(tmp_path.glob("cache/[!.]*"))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("drawing", ["evil.png", "images_background/Evil/character01/0001_01.png"])
def test_no_name_in_an_archive_can_write_anywhere(tmp_path: Path, drawing: str) -> None:
    """Archives are read in place. A name that leads out of its archive is left out, also when it is a drawing's."""
    root = as_archives(tmp_path / "a/b/data")
    plain = draw(omniglot(as_archives(tmp_path / "plain")))
    with zipfile.ZipFile(root / "images_background.zip", "a") as archive:
        for place in ("../", "../../", f"{tmp_path}/a/", "/"):
            archive.writestr(place + drawing, miniature()["images_background/Hebrew/character01/0004_01.png"])
    before = everything(tmp_path)
    assert_same(draw(omniglot(root)), plain)
    assert {p for p in everything(tmp_path) - before if tmp_path / "cache" not in (p, *p.parents)} == set()
    assert not Path("/evil.png").exists()
    assert not Path("/images_background").exists()


# Decoding


@pytest.mark.usefixtures("small")
def test_ink_is_one_and_paper_is_zero_as_drawn(tmp_path: Path) -> None:
    """At full size every way of resizing gives the drawing itself, bit for bit."""
    data = as_archives(tmp_path)
    for resize in ("lanczos", "bicubic", "bilinear", "area", "nearest"):
        task = draw(omniglot(data, image_size=105, resize=resize), "test", 1)
        small = decode(draw(omniglot(data), "test", 1).support)
        for image, (character, drawing, _) in zip(task.support.x[0, :, 0].numpy(), small[0], strict=True):
            np.testing.assert_array_equal(image, np.kron(code(character, drawing), np.ones((7, 7))))


@pytest.mark.usefixtures("small")
def test_area_is_the_mean_of_the_pixels_below_and_nearest_one_of_them(tmp_path: Path) -> None:
    """21 x 21 means of 5 x 5 pixels, rounded to 1 / 255; the nearest pixel is that in the middle."""
    data = as_archives(tmp_path)
    full, area, nearest = (
        draw(omniglot(data, image_size=size, resize=resize)).support.x.double()
        for size, resize in [(105, "nearest"), (21, "area"), (21, "nearest")]
    )
    blocks = full.reshape(4, 6, 1, 21, 5, 21, 5)
    torch.testing.assert_close(area, blocks.mean((-3, -1)), rtol=0, atol=0.51 / 255)
    torch.testing.assert_close(nearest, blocks[:, :, :, :, 2, :, 2], rtol=0, atol=1e-6)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("size", [8, 28, 84])
@pytest.mark.parametrize("resize", ["lanczos", "bicubic", "bilinear", "area", "nearest"])
def test_every_size_and_resize_gives_that_shape_in_zero_to_one(tmp_path: Path, size: int, resize: str) -> None:
    """Ink is kept on average; only nearest, which takes single pixels, stays without greys."""
    data = omniglot(as_archives(tmp_path), image_size=size, resize=resize)
    assert data.input_shape() == (1, size, size)
    x = draw(data).support.x
    assert x.shape[2:] == (1, size, size)
    assert x.min() == 0
    assert 0.5 < x.max() <= 1
    assert (len(x.unique()) == 2) == (resize == "nearest")
    if resize != "nearest":
        full = draw(omniglot(tmp_path, image_size=105)).support.x
        assert abs(x.mean() - full.mean()) < 0.01


@pytest.mark.usefixtures("small")
def test_decoded_drawings_are_cached_by_source_size_and_resize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = as_archives(tmp_path / "data")
    decoded = []

    def counting(file: Any, entries: Any, read: Any, pixels: Pixels) -> Any:
        decoded.append((pixels.size, pixels.resize))
        return write_images(file, entries, read, pixels)

    monkeypatch.setattr("metarun.data.omniglot.write_images", counting)
    first = draw(omniglot(data))
    assert_same(draw(omniglot(data, split="vinyals", rotations="none", split_seed=3)), first)
    assert decoded == [(15, "nearest")]
    for settings in ({"image_size": 16}, {"resize": "area"}):
        draw(omniglot(data, **settings))
    assert decoded == [(15, "nearest"), (16, "nearest"), (15, "area")]
    name = "images_background/Arcadian/character01/0000_01.png"
    as_archives(data, {**miniature(), name: png(np.zeros((105, 105), dtype=bool))})
    draw(omniglot(data))
    assert len(decoded) == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("split", "Vinyals"), ("rotations", "rotate"), ("rotations", True), ("resize", "hamming")],
        *[("image_size", 7), ("image_size", 106), ("image_size", 0), ("split_seed", -1)],
    ],
)
def test_settings_that_cannot_work_are_refused_by_their_name(name: str, value: object) -> None:
    """Before any file is looked for."""
    with pytest.raises(SettingError) as caught:
        omniglot(**{name: value})
    assert (caught.value.key, caught.value.value) == (name, value)


# Rotations, with drawings that say how they are turned


def draw_drawings(data: ImageData, split: str, spec: EpisodeSpec = SPEC, tasks: int = 200) -> np.ndarray:
    """[T, rows, 3] of support and query together: character, drawing, turns."""
    return np.concatenate([decode(batch) for batch in draw(data, split, tasks, spec)], axis=1)


def of_class(rows: np.ndarray) -> Iterable[np.ndarray]:
    """Each label's rows, [T, K + Q, 3]."""
    return (rows[:, n :: SPEC.ways] for n in range(SPEC.ways))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_without_rotations_every_drawing_is_upright_and_of_its_split(tmp_path: Path, split: str) -> None:
    data = omniglot(as_archives(tmp_path))
    rows = draw_drawings(data, split)
    assert not rows[..., 2].any()
    assert {MINIATURE[c] for c in rows[..., 0].ravel()} == set(data.members[split])
    assert set(rows[..., 1].ravel()) == set(range(20))


@pytest.mark.usefixtures("small")
def test_rotations_by_task_turn_each_class_alike_and_never_let_two_turns_meet(tmp_path: Path) -> None:
    rows = draw_drawings(omniglot(as_archives(tmp_path), rotations="task"), "train")
    for part in of_class(rows):
        assert (part[:, :, [0, 2]] == part[:, :1, [0, 2]]).all()
        assert set(part[..., 2].ravel()) == {0, 1, 2, 3}
    characters = rows[:, : SPEC.ways, 0]
    assert all(len(set(row)) == SPEC.ways for row in characters.tolist())
    assert (rows[:, : SPEC.ways, 2] != rows[:, :1, 2]).any()


@pytest.mark.usefixtures("small")
def test_rotations_as_classes_let_two_turns_of_a_character_be_two_classes(tmp_path: Path) -> None:
    """All 4 x 3 classes of the validation split in one episode: each character in each of its turns, once."""
    data = omniglot(as_archives(tmp_path), rotations="classes")
    rows = draw_drawings(data, "val", EpisodeSpec(ways=12, shots=1, queries=1), tasks=3)
    pairs = [(c, r) for c in (4, 5, 6) for r in range(4)]
    assert [sorted(map(tuple, row[:12, [0, 2]].tolist())) for row in rows] == [pairs] * 3


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("rotations", "classes"), [("none", 3), ("task", 3), ("classes", 12)])
def test_check_counts_classes_with_their_rotations(tmp_path: Path, rotations: str, classes: int) -> None:
    data = omniglot(as_archives(tmp_path), rotations=rotations)
    data.check("val", EpisodeSpec(classes, 1, 19))
    for spec, key in [
        (EpisodeSpec(classes + 1, 1, 1), "ways"),
        (EpisodeSpec(2, 20, 1), "shots"),
        (EpisodeSpec(2, 5, 16), "queries"),
    ]:
        with pytest.raises(SettingError) as caught:
            data.check("val", spec)
        assert caught.value.key == key
    assert data.outputs(classes) == classes


@pytest.mark.usefixtures("small")
def test_reference_inputs_are_fixed_training_drawings_apart_from_all_steps(tmp_path: Path) -> None:
    """One of each class while there are classes, several when there are none left, no drawing twice; what statistics
    of the population are measured on."""
    data = omniglot(as_archives(tmp_path))
    x = data.reference_inputs(4)
    assert x.shape == (4, 1, 15, 15)
    torch.testing.assert_close(x, data.reference_inputs(4), rtol=0, atol=0)
    for count, least, most in [(4, 0, 1), (5, 1, 1), (7, 1, 2), (95, 19, 19)]:
        found = decode(Batch(data.reference_inputs(count)[None], torch.empty(0)))[0]
        assert len({*map(tuple, found.tolist())}) == len(found) == count
        drawings = Counter(MINIATURE[c] for c in found[:, 0])
        assert set(drawings) <= set(data.members["train"])
        assert {drawings[name] for name in data.members["train"]} == set(range(least, most + 1))
    assert torch.equal(data.reference_inputs(1000), data.reference_inputs(100))  # there are no more
    spec = EpisodeSpec(5, 1, 1)
    assert not torch.equal(data.reference_inputs(5), data.episodes("train", 0, 0, range(1), spec).support.x[0])


# Splits, at full size


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ImageData]:
    """Data sets on 1623 x 20 drawings in two archives, looked at and decoded to 8 x 8 pixels once."""
    folder = tmp_path_factory.mktemp("full")
    some = [code(i % 16, i) for i in range(23)]
    drawings = [png(np.kron(squares, np.ones((7, 7), dtype=bool))) for squares in some]
    number = 0
    for part, alphabets in zip(PARTS, (BACKGROUND, EVALUATION), strict=True):
        files = {}
        for alphabet, count in alphabets.items():
            for character in range(1, count + 1):
                number += 1
                stem = f"{part}/{alphabet}/character{character:02d}/{number:04d}"
                files |= {f"{stem}_{d:02d}.png": drawings[(number * 7 + d) % 23] for d in range(1, 21)}
        zipped(folder / f"{part}.zip", files)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("METARUN_CACHE", str(folder / "cache"))
        patched.setattr(Pixels, "decode", functools.cache(Pixels.decode))
        assert len(omniglot(folder, image_size=8).source.table.images) == 32460

    def make(**settings: Any) -> ImageData:
        data = omniglot(folder, image_size=8, **settings)
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("METARUN_CACHE", str(folder / "cache"))
            patched.setattr(Pixels, "decode", None)  # it is not called a second time
            assert data.source
        return data

    return make


def short(names: Iterable[str]) -> set[str]:
    """alphabet/character, without the part."""
    return {name.split("/", 1)[1] for name in names}


ALL = {
    f"{part}/{alphabet}/character{i:02d}"
    for part, alphabets in zip(PARTS, (BACKGROUND, EVALUATION), strict=True)
    for alphabet, count in alphabets.items()
    for i in range(1, count + 1)
}
SIZES = {
    "vinyals": {"train": 1028, "val": 172, "test": 423},
    "random1200": {"train": 1100, "val": 100, "test": 423},
    "background": {"train": 964 - 151, "val": 151, "test": 659},
}


@pytest.mark.parametrize("split", SIZES)
def test_splits_have_the_published_sizes_and_are_disjoint_and_complete(
    full: Callable[..., ImageData], split: str
) -> None:
    members = full(split=split).members
    assert {part: len(names) for part, names in members.items()} == SIZES[split]
    everyone = [name for names in members.values() for name in names]
    assert len(everyone) == len(set(everyone)) == 1623
    assert set(everyone) == ALL


def test_the_vinyals_split_is_by_alphabet_but_for_gurmukhi(full: Callable[..., ImageData]) -> None:
    members = {split: short(names) for split, names in full(split="vinyals").members.items()}
    whole = {**BACKGROUND, **EVALUATION}
    listed = {a: {f"{a}/character{i:02d}" for i in range(1, whole[a] + 1)} for a in (*VAL_ALPHABETS, *TEST_ALPHABETS)}
    assert members["val"] == set().union(*(listed[a] for a in VAL_ALPHABETS))
    assert members["test"] == set().union(TEST_CHARACTERS, *(listed[a] for a in TEST_ALPHABETS))
    assert {m for m in members["test"] if m.startswith("Gurmukhi")} == {
        f"Gurmukhi/character{i}" for i in (42, 43, 44, 45)
    }


def test_the_background_split_is_lakes_with_its_last_five_alphabets_held_out(full: Callable[..., ImageData]) -> None:
    members = full(split="background").members
    assert set(members["test"]) == {name for name in ALL if name.startswith("images_evaluation/")}
    held_out = {name.split("/")[1] for name in members["val"]}
    assert held_out == set(sorted(BACKGROUND)[-5:])
    assert len(members["val"]) == sum(BACKGROUND[a] for a in held_out)


def test_the_random_split_is_a_function_of_its_seed(full: Callable[..., ImageData]) -> None:
    """Of 1623 characters 423 are tests, so that two seeds share about 423^2 / 1623 = 110 of them; the background part
    has 964 / 1623 of them, 251 with a standard deviation below sqrt(423 / 4) = 10."""
    first, again, other = (full(split="random1200", split_seed=seed) for seed in (0, 0, 1))
    assert first.members == again.members
    assert first.facts() == again.facts()
    assert first.facts()["split_sha256"] != other.facts()["split_sha256"]
    assert abs(len({*first.members["test"]} & {*other.members["test"]}) - 110) < 50
    assert abs(sum(m.startswith("images_background") for m in first.members["test"]) - 251) < 50


def test_other_splits_ignore_the_split_seed(full: Callable[..., ImageData]) -> None:
    for split in ("vinyals", "background"):
        assert full(split=split, split_seed=5).members == full(split=split).members


@pytest.mark.parametrize(("rotations", "turns"), [("classes", 4), ("task", 1), ("none", 1)])
def test_facts_say_what_was_decided(full: Callable[..., ImageData], rotations: str, turns: int) -> None:
    """The hash is that of the characters: it is the same whatever becomes of them."""
    data = full(rotations=rotations)
    assert data.facts() == {
        "split": "vinyals",
        "split_sha256": members_sha256(data.members),
        "classes": {split: turns * count for split, count in SIZES["vinyals"].items()},
        "images_are": str(data.pixels),
        "rotations": rotations,
        "image_size": 8,
        "channels": 1,
        "resize": "nearest",
        "fit": "stretch",
        "normalize": "none",
    }
    assert data.facts()["split_sha256"] == full().facts()["split_sha256"]


def test_splits_differ_in_their_hash(full: Callable[..., ImageData]) -> None:
    assert len({full(split=split).facts()["split_sha256"] for split in SIZES}) == 3


# Download


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


class Rude(BaseHTTPRequestHandler):
    """Answers with something that is not HTTP, as some proxies and captive portals do."""

    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(b"220 welcome to the mail server\r\n\r\n")


class Shop:
    """A local stand-in for the authors' site: what it serves, and the setting `urls` that leads there."""

    def __init__(self, folder: Path) -> None:
        self.folder = as_archives(folder)
        self.sums = {p: hashlib.md5((folder / f"{p}.zip").read_bytes(), usedforsecurity=False) for p in PARTS}
        self.servers: list[ThreadingHTTPServer] = []
        self.open(functools.partial(Quiet, directory=str(folder)))

    @property
    def urls(self) -> list[dict[str, Any]]:
        return [
            {"file": f"{p}.zip", "checksum": f"md5:{sum.hexdigest()}", "urls": [f"{self.address}/{p}.zip"]}
            for p, sum in self.sums.items()
        ]

    def omniglot(self, root: Path | None = None) -> ImageData:
        return omniglot(root, download=True, urls=self.urls)

    def open(self, handler: Any) -> None:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        self.servers.append(server)
        self.move(server.server_port)

    def move(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()
        self.servers.clear()


@pytest.fixture
def shop(tmp_path: Path, small: None) -> Iterator[Shop]:
    shop = Shop(tmp_path / "site")
    yield shop
    shop.close()


def test_what_is_downloaded_can_be_drawn_from_at_once_and_later(tmp_path: Path, shop: Shop) -> None:
    """Into metarun's own data folder; afterwards no server is needed."""
    episodes = draw(shop.omniglot())
    assert_same(episodes, draw(omniglot(shop.folder)))
    folder = tmp_path / "cache/data/omniglot"
    recorded = {f".{part}.zip.checksum" for part in PARTS}
    assert {p.name for p in folder.iterdir()} == {f"{part}.zip" for part in PARTS} | recorded
    shop.close()
    assert_same(draw(omniglot()), episodes)
    assert_same(draw(shop.omniglot()), episodes)


def test_nothing_is_downloaded_when_the_data_are_there(tmp_path: Path, shop: Shop) -> None:
    shop.close()
    root = as_archives(tmp_path / "data")
    before = everything(root)
    draw(shop.omniglot(root))
    assert everything(root) == before


@pytest.mark.parametrize("there", PARTS)
def test_only_the_part_that_is_missing_is_downloaded(tmp_path: Path, shop: Shop, there: str) -> None:
    """After a download that was interrupted between the two."""
    part = tmp_path / "data/omniglot" / f"{there}.zip"
    part.parent.mkdir(parents=True)
    part.write_bytes((shop.folder / part.name).read_bytes())
    (shop.folder / part.name).unlink()
    draw(shop.omniglot(tmp_path / "data"))


def wrong_sum(shop: Shop) -> None:
    for part in PARTS:
        (shop.folder / f"{part}.zip").write_bytes(b"<html>Sign in to the network</html>")


def not_found(shop: Shop) -> None:
    (shop.folder / "images_background.zip").unlink()


def refused(shop: Shop) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shop.move(port)


def not_http(shop: Shop) -> None:
    shop.open(Rude)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (wrong_sum, "md5 checksum is wrong"),
        (not_found, "404"),
        (refused, "refused"),
        (not_http, "welcome to the mail server"),
    ],
)
def test_a_failed_download_is_one_line_with_the_reason_and_three_ways(
    tmp_path: Path, shop: Shop, spoil: Callable[[Shop], None], reason: str
) -> None:
    spoil(shop)
    message = refusal(lambda: draw(shop.omniglot(tmp_path / "data")))
    assert f"data.root={tmp_path / 'data'}: no Omniglot below it (downloading failed: " in message
    assert reason in message
    assert shop.address in message
    assert_three_ways(message)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, shop: Shop) -> None:
    (tmp_path / "file").write_text("in the way")
    message = refusal(lambda: draw(shop.omniglot(tmp_path / "file/data")))
    assert "downloading failed: " in message
    assert_three_ways(message)


@pytest.mark.parametrize("part", PARTS)
def test_a_failed_download_can_be_repeated(tmp_path: Path, shop: Shop, part: str) -> None:
    """A file with a wrong sum must not count as the data from then on, nor as the beginning of them."""
    path = shop.folder / f"{part}.zip"
    sound = path.read_bytes()
    path.write_bytes(b"<html>Sign in to the network</html>")
    refusal(lambda: draw(shop.omniglot(tmp_path / "data")))
    path.write_bytes(sound)
    assert_same(draw(shop.omniglot(tmp_path / "data")), draw(omniglot(shop.folder)))


@pytest.mark.parametrize("urls", [[], ["images_background.zip"]])
def test_addresses_that_do_not_give_both_parts_are_not_called_downloading_is_off(
    tmp_path: Path, shop: Shop, urls: list[str]
) -> None:
    """Whoever allowed the download must not be told to allow it."""
    some = [entry for entry in shop.urls if entry["file"] in urls]
    message = refusal(lambda: draw(omniglot(tmp_path / "data", download=True, urls=some)))
    assert f"data.root={tmp_path / 'data'}: no Omniglot below it " in message
    assert "downloading is off" not in message


def test_the_addresses_of_the_configuration_have_the_sums_that_torchvision_expects() -> None:
    """So that its copies and metarun's are the same."""
    urls = metarun.compose(["data=omniglot"]).data["urls"]
    sums = {f"{part}.zip": f"md5:{sum}" for part, sum in load_torchvision().datasets.Omniglot.zips_md5.items()}
    assert {entry["file"]: entry["checksum"] for entry in urls} == sums
    assert all(entry["urls"] for entry in urls)
    assert all(address.endswith(f"/{entry['file']}") for entry in urls for address in entry["urls"])


# The real data


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    if not all((SHARED / f"{part}.zip").is_file() for part in PARTS):
        pytest.skip(f"no real Omniglot at {SHARED}")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("METARUN_CACHE", str(tmp_path_factory.getbasetemp() / "omniglot"))
        data = omniglot(SHARED, image_size=28, resize="lanczos", rotations="classes")
        assert data.input_shape() == data.reference_inputs(1).shape[1:]
        patched.setattr(Pixels, "decode", None)  # it is not called a second time
        again = omniglot(SHARED, image_size=28, resize="lanczos", rotations="classes")
        assert_same(draw(data), draw(again))
    return again


@pytest.mark.slow
@pytest.mark.xdist_group("omniglot")  # decoded once
def test_the_real_data_have_1623_characters_of_20_drawings_in_the_published_split(real: ImageData) -> None:
    """The lists name each rotation of a character, as alphabet/character/rotXXX: 4112, 688 and 1692 lines."""
    assert len(real.source.table.names) == 1623
    assert set(real.source.table.counts) == {20}
    assert set(real.source.table.names) == ALL
    for split, lines in (("train", 4112), ("val", 688), ("test", 1692)):
        published = (SHARED / f"vinyals_{split}.txt").read_text().split()
        assert len(published) == lines
        ours = {f"{name}/rot{turn:03d}" for name in short(real.members[split]) for turn in (0, 90, 180, 270)}
        assert ours == set(published)


@pytest.mark.slow
@pytest.mark.xdist_group("omniglot")
def test_real_episodes_are_thin_bright_strokes_on_a_dark_ground(real: ImageData) -> None:
    """Ink covers some 8 % of a drawing; inverted images would have a mean above 0.8."""
    task = draw(real, "test", 50, EpisodeSpec(5, 1, 15))
    assert task.query.x.shape == (50, 75, 1, 28, 28)
    for x in (task.support.x, task.query.x):
        assert x.min() == 0
        assert x.max() <= 1
        assert 0.03 < x.mean() < 0.2

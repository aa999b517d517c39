"""Files that are no image, or a damaged one: refused in one line, with nothing else printed."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import ALPHA, AVIF, FLAT, RGB, WEBP, decoded, file, paletted, png, png_of
from PIL import Image

from metarun.data.pixels import CorruptImage


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def claims(side: int) -> bytes:
    """A PNG of one bit a pixel, whose header has so many rows and columns, and which holds next to none of them."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return png_of((b"IHDR", header), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b""))


CHUNKS = [
    (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)),
    (b"IDAT", zlib.compress(bytes(72))),
    (b"IEND", b""),
]
DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "text": b"no image at all\n" * 99,
    "a page": b"<!doctype html><html>\n<body>Sign in to the network</body></html>",
    "JPEG, cut": cut(file(RGB, "jpeg")),
    "JPEG, its first bytes": file(RGB, "jpeg")[:20],
    "PNG, cut": cut(file(RGB, "png")),
    "GIF, cut": cut(paletted("gif")),
    "BMP, cut": cut(file(RGB, "bmp")),
    "TIFF, cut": cut(file(RGB, "tiff")),
    "TIFF, its first bytes": file(RGB, "tiff")[:60],
    "PNG, a byte too many": file(RGB, "png").replace(b"IDAT", b"IDAT\0", 1),
    "PNG, a byte changed": file(RGB, "png")[:-40] + b"?" + file(RGB, "png")[-39:],
    "PNG, a chunk that is none": png(RGB, 8, 2, (b"tRNS", b"\1"), (b"\0\0\0\0", b"")),
    "PNG, a profile that is empty": png_of(*CHUNKS[:2], (b"iCCP", b""), CHUNKS[2]),
    "PNG, a short header": file(RGB, "png").replace(b"\0\0\0\rIHDR", b"\0\0\0\6IHDR"),
    "3600 million pixels": claims(60_000),
    "100 million pixels": claims(10_000),
    "floats": file(RGB[..., 0].astype(np.float32), "tiff"),
}


def exif(*tags: tuple[int, int, int, int]) -> bytes:
    """Tag, type, count and value or offset of each; type 2 is text, 3 and 4 are integers, 5 a fraction, 12 a float."""
    body = b"".join(struct.pack(">HHII", *tag) for tag in tags)
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", len(tags)) + body + struct.pack(">IIII", 0, 1, 2, 3)


RIGHT_TOP = (0x0112, 3, 1, 6 << 16)  # the orientation of a camera that was turned
AT_THE_END = 26 + 12  # the offset of the last eight bytes behind two tags
EXIF: dict[str, tuple[bytes, bool]] = {  # and whether its orientation can be read
    "sound": (exif(RIGHT_TOP, (0x011A, 5, 1, AT_THE_END)), True),
    "a fraction for a name": (exif(RIGHT_TOP, (0x010F, 5, 1, AT_THE_END)), True),
    "a float for a name": (exif(RIGHT_TOP, (0x010F, 12, 1, AT_THE_END)), True),
    "a text for a fraction": (exif(RIGHT_TOP, (0x011A, 2, 4, 0x31320000)), True),
    "a fraction for a number": (exif(RIGHT_TOP, (0x0100, 5, 1, AT_THE_END)), True),
    "a tag of no type": (exif(RIGHT_TOP, (0x010F, 99, 1, 0)), True),
    "an offset beyond the end": (exif(RIGHT_TOP, (0x011A, 5, 1, 1 << 20)), True),
    "a text for the orientation": (exif((0x0112, 2, 2, 0x36000000)), False),
    "an orientation that does not exist": (exif((0x0112, 3, 1, 9 << 16)), False),
    "cut in its header": (b"MM\0*\0", False),
    "no header": (b"nothing that is known", False),
    "a directory before the beginning": (b"MM\0*\xff\xff\xff\xff\0\0", False),
    "empty": (b"", False),
}
SOUND: dict[str, bytes] = {
    "transparency of each colour": paletted("png", transparency=ALPHA.tobytes()),
    **{f"EXIF: {kind}": file(RGB, "jpeg", exif=b"Exif\0\0" + content) for kind, (content, _) in EXIF.items()},
}


def refusal(content: bytes) -> str:
    with pytest.raises(CorruptImage) as caught:
        decoded(content)
    return str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", DAMAGED)
def test_what_is_no_image_is_refused_in_one_line(kind: str) -> None:
    message = refusal(DAMAGED[kind])
    assert message.strip()
    assert "\n" not in message


def as_png(content: bytes) -> bytes:
    return png(FLAT, 8, 2, (b"eXIf", content))


def as_jpeg(content: bytes) -> bytes:
    return file(FLAT, "jpeg", quality=100, subsampling=0, exif=b"Exif\0\0" + content)


@pytest.mark.parametrize("kind", ["empty", "text", "a page"])
def test_the_reason_is_the_same_whenever_it_is_given(kind: str) -> None:
    """It is printed and read by people; where an object lay in memory tells them nothing."""
    assert "0x" not in refusal(DAMAGED[kind])


@pytest.mark.parametrize(
    ("error", "reason"), [(OSError("two\n  lines"), "two lines"), (EOFError(), "EOFError")], ids=repr
)
def test_an_error_without_words_or_with_many_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", failing)
    assert refusal(b"anything") == reason


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", EXIF)
@pytest.mark.parametrize("embed", [as_png, as_jpeg])
def test_a_picture_is_sound_whatever_is_wrong_with_its_exif(embed: Callable[[bytes], bytes], kind: str) -> None:
    """Viewers show it, and phones and editors write such. It is turned where at least that can be read."""
    content, turned = EXIF[kind]
    expected = FLAT.swapaxes(0, 1)[:, ::-1] if turned else FLAT
    np.testing.assert_allclose(decoded(embed(content)), expected, rtol=0, atol=4)


KINDS = ["png", "jpeg", "gif", "bmp", "tiff", "ppm", pytest.param("webp", marks=WEBP), pytest.param("avif", marks=AVIF)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_byte_is_wrong_the_file_is_decoded_or_refused(kind: str) -> None:
    """Pillow's readers fail with a dozen kinds of errors; one that gets through ends a run with a traceback. Pillow
    looks at the content and not at the name, so that an AVIF called .jpg counts as well."""
    whole = file(RGB, kind)
    damaged = [whole[:length] for length in range(0, len(whole), 7)]
    damaged += [
        whole[:i] + bytes([byte]) + whole[i + 1 :] for i in range(0, min(len(whole), 500), 3) for byte in (0, 255)
    ]
    refused = 0
    for content in damaged:
        try:
            decoded(content)
        except CorruptImage:
            refused += 1
    assert refused > len(damaged) // 20


TALKS = """
import contextlib, io, json, pathlib, sys
from metarun.data.pixels import CorruptImage, Pixels
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            found = len(Pixels(16, 3, "area").decode(path.read_bytes()))
        except CorruptImage:
            found = None
        except Exception as error:
            found = repr(error)
    print(json.dumps([path.name, found, said.getvalue()]))
"""


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int | str | None, str]]:
    """Of each file: what came out, and what was printed; in a process of its own, since pytest catches warnings."""
    folder = tmp_path_factory.mktemp("files")
    for name, content in (DAMAGED | SOUND).items():
        (folder / name).write_bytes(content)
    command = [sys.executable, "-W", "always", "-c", TALKS, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stderr) == (0, "")
    return {name: (found, said) for name, found, said in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("kind", [*DAMAGED, *SOUND])
def test_nothing_is_printed_of_a_file(talk: dict[str, tuple[int | str | None, str]], kind: str) -> None:
    """Pillow warns of what it then refuses, and of what does not matter: thousands of lines for a data set, none of
    which names the file."""
    assert talk[kind] == (3 if kind in SOUND else None, "")

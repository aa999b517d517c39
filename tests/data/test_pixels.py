"""Image files of every mode that people have, decoded to the bytes that they see, and scaled to floats and back.

What is expected is computed here from the numbers that were drawn, never by the calls that the module makes.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pictures import (
    ALPHA,
    AVIF,
    DEEP,
    FLAT,
    GREY,
    PALETTE,
    RGB,
    SIDE,
    WEBP,
    animated,
    decoded,
    file,
    paletted,
    png,
    png_of,
)
from PIL import Image

from metarun.data.pixels import CorruptImage, DepthUnknown, Pixels, largest_value
from metarun.errors import SettingError


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha.astype(float)[..., None] / 255
    return share * colours + (1 - share) * 255


def from_ink(cmyk: np.ndarray) -> np.ndarray:
    """What light four inks leave."""
    return (255.0 - cmyk[..., :3]) * (255.0 - cmyk[..., 3:]) / 255


CMYK = np.concatenate([RGB, ALPHA[..., None]], axis=-1)
FLAT_CMYK = np.concatenate([FLAT, FLAT[..., :1] // 4], axis=-1)
RGBA = np.concatenate([RGB, ALPHA[..., None]], axis=-1)
TRANSPARENT_7 = np.where(GREY == 7, 0, 255)
WHITE_AT_0 = np.where((DEEP == 255)[..., None], 255, three(DEEP >> 8))

EXACT: dict[str, tuple[Callable[[], bytes], np.ndarray]] = {
    "1": (lambda: file(GREY % 3 == 0, "png"), three(np.where(GREY % 3 == 0, 255, 0))),
    "1, TIFF": (lambda: file(GREY % 3 == 0, "tiff"), three(np.where(GREY % 3 == 0, 255, 0))),
    "L": (lambda: file(GREY, "png"), three(GREY)),
    "L, BMP": (lambda: file(GREY, "bmp"), three(GREY)),
    "L, PGM": (lambda: file(GREY, "ppm"), three(GREY)),
    "L, one transparent": (lambda: file(GREY, "png", transparency=7), over_white(three(GREY), TRANSPARENT_7)),
    "L, 2 bits": (lambda: png(GREY % 4, 2, 0), three(GREY % 4 * 85)),
    "L, 4 bits": (lambda: png(GREY % 16, 4, 0), three(GREY % 16 * 17)),
    "P": (lambda: paletted("png"), PALETTE[GREY]),
    "P, GIF": (lambda: paletted("gif"), PALETTE[GREY]),
    "P, animated": (animated, PALETTE[GREY]),
    "P, one transparent": (lambda: paletted("png", transparency=7), over_white(PALETTE[GREY], TRANSPARENT_7)),
    "P, GIF, one transparent": (lambda: paletted("gif", transparency=7), over_white(PALETTE[GREY], TRANSPARENT_7)),
    "RGB": (lambda: file(RGB, "png"), RGB),
    "RGB, BMP": (lambda: file(RGB, "bmp"), RGB),
    "RGB, PPM": (lambda: file(RGB, "ppm"), RGB),
    "RGB, TIFF": (lambda: file(RGB, "tiff"), RGB),
    "RGB, TIFF in LZW": (lambda: file(RGB, "tiff", compression="tiff_lzw"), RGB),
    "RGB, one transparent": (
        lambda: file(RGB, "png", transparency=tuple(RGB[3, 5].tolist())),
        over_white(RGB, np.where((RGB[3, 5] == RGB).all(-1), 0, 255)),
    ),
    "16 bits": (lambda: file(DEEP, "png"), three(DEEP >> 8)),
    "16 bits, TIFF": (lambda: file(DEEP, "tiff"), three(DEEP >> 8)),
    "16 bits, TIFF, high byte first": (lambda: file(DEEP.astype(">u2"), "tiff"), three(DEEP >> 8)),
    "16 bits, PGM": (lambda: b"P5 16 16 65535\n" + DEEP.astype(">u2").tobytes(), three(DEEP >> 8)),
    "16 bits, one transparent": (lambda: png(DEEP, 16, 0, (b"tRNS", struct.pack(">H", 255))), WHITE_AT_0),
    "16 bits, RGB": (lambda: png(three(DEEP), 16, 2), three(DEEP >> 8)),
    "32 bits that hold 16": (lambda: file(DEEP.astype(np.int32), "tiff"), three(DEEP >> 8)),
}
WITHIN_1: dict[str, tuple[Callable[[], bytes], np.ndarray]] = {
    "P, each with its alpha": (
        lambda: paletted("png", transparency=ALPHA.tobytes()),
        over_white(PALETTE[GREY], ALPHA.ravel()[GREY]),
    ),
    "RGBA": (lambda: file(RGBA, "png"), over_white(RGB, ALPHA)),
    "RGBA, TIFF": (lambda: file(RGBA, "tiff"), over_white(RGB, ALPHA)),
    "LA": (lambda: file(np.stack([GREY, ALPHA], -1), "png", "LA"), over_white(three(GREY), ALPHA)),
    "16 bits, grey and alpha": (
        lambda: png(np.stack([DEEP, 257 * ALPHA.astype(int)], -1), 16, 4),
        over_white(three(DEEP >> 8), ALPHA),
    ),
    "CMYK, TIFF": (lambda: file(CMYK, "tiff", "CMYK"), from_ink(CMYK)),
}
LOSSY: dict[str, tuple[Callable[[], bytes], np.ndarray]] = {
    "JPEG": (lambda: file(FLAT, "jpeg", quality=100, subsampling=0), FLAT),
    "JPEG, grey": (lambda: file(FLAT[..., 0], "jpeg", quality=100), three(FLAT[..., 0])),
    "JPEG, progressive": (lambda: file(FLAT, "jpeg", quality=100, subsampling=0, progressive=True), FLAT),
    "JPEG, CMYK": (lambda: file(FLAT_CMYK, "jpeg", "CMYK", quality=100), from_ink(FLAT_CMYK)),
}


@pytest.mark.parametrize("kind", EXACT)
def test_what_is_stored_without_loss_is_decoded_exactly(kind: str) -> None:
    make, expected = EXACT[kind]
    np.testing.assert_array_equal(decoded(make()), expected)


@pytest.mark.parametrize(("cases", "kind", "off"), [(c, k, t) for c, t in ((WITHIN_1, 1), (LOSSY, 4)) for k in c])
def test_what_is_rounded_is_decoded_to_the_nearest_byte_or_nearly(cases: dict[str, Any], kind: str, off: int) -> None:
    """Transparency is laid over white, CMYK is light that the inks leave."""
    make, expected = cases[kind]
    np.testing.assert_allclose(decoded(make()), expected, rtol=0, atol=off + 1e-9)


@pytest.mark.parametrize("kind", [pytest.param("webp", marks=WEBP)])
def test_webp_with_transparency_is_laid_over_white(kind: str) -> None:
    np.testing.assert_array_equal(decoded(file(RGB, kind, lossless=True)), RGB)
    content = file(RGBA, kind, lossless=True, exact=True)
    np.testing.assert_allclose(decoded(content), over_white(RGB, ALPHA), rtol=0, atol=1)


def test_a_progressive_jpeg_is_the_same_picture_as_a_sequential_one() -> None:
    """The same coefficients in another order."""
    both = [decoded(file(RGB, "jpeg", quality=80, progressive=p)) for p in (False, True)]
    np.testing.assert_array_equal(*both)


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    for content in (file(DEEP, "png"), file(DEEP, "tiff"), file(DEEP.astype(np.int32), "tiff")):
        assert decoded(content, channels=1)[0, :4, 0].tolist() == [0, 128, 255, 0]


@pytest.mark.parametrize("value", [-1, -(2**31), 65536, 2**31 - 1])
def test_numbers_beyond_sixteen_bits_are_refused(value: int) -> None:
    wide = np.zeros((SIDE, SIDE), dtype=np.int32)
    wide[0, 0] = value
    with pytest.raises(CorruptImage, match=r"its numbers are .* not 0 to 65535 \(data.depth=16\)"):
        decoded(file(wide, "tiff"), channels=1)


@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
@pytest.mark.parametrize(("channels", "kind"), [(3, 2), (4, 6), (2, 4)], ids=["RGB", "RGBA", "grey and alpha"])
def test_colours_of_sixteen_bits_are_read_by_their_depth(depth: int, channels: int, kind: int) -> None:
    """Opaque alpha is the largest number of all 16 bits or of the depth."""
    rng = np.random.default_rng(depth)
    values = rng.integers(0, 2**depth, (SIDE, SIDE, channels))
    for opaque in (2**depth - 1, 65535):
        if channels != 3:
            values[..., -1] = opaque
        content = png(values, 16, kind)
        colours = values[..., :3] if channels > 2 else three(values[..., 0])
        found = Pixels(SIDE, 3, "nearest", depth=depth).decode(content)
        np.testing.assert_array_equal(found.transpose(1, 2, 0), colours >> (depth - 8))
        assert largest_value(content) == colours.max()
        with pytest.raises(DepthUnknown):
            Pixels(SIDE, 3, "nearest", depth=None).decode(content)


def test_a_colour_of_sixteen_bits_may_be_transparent_and_one_too_large_is_refused() -> None:
    """Two colours that differ in their low bytes alone are two."""
    values = np.zeros((SIDE, SIDE, 3), dtype=int)
    values[0, 0], values[0, 1] = (1, 2, 3), (1, 2, 4)
    content = png(values, 16, 2, (b"tRNS", struct.pack(">HHH", 1, 2, 3)))
    found = Pixels(SIDE, 3, "nearest", depth=8).decode(content)
    assert (found[:, 0, 0].tolist(), found[:, 0, 1].tolist()) == ([255] * 3, [1, 2, 4])
    with pytest.raises(CorruptImage, match=r"its numbers are 0 to 300, not 0 to 255 \(data.depth=8\)"):
        Pixels(SIDE, 3, "nearest", depth=8).decode(png(np.where(values == 4, 300, values), 16, 2))


@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
def test_the_bits_in_use_are_scaled_to_the_whole_range(depth: int) -> None:
    values = np.resize(np.array([0, 2 ** (depth - 1), 2**depth - 1], dtype=np.uint16), (SIDE, SIDE))
    pixels = Pixels(SIDE, 1, "nearest", depth=depth)
    assert pixels.decode(file(values, "png"))[0].flatten()[:3].tolist() == [0, 128, 255]
    if depth < 16:
        with pytest.raises(CorruptImage, match="not 0 to"):
            pixels.decode(file(values + 1, "png"))


def test_colours_become_grey_by_their_luma() -> None:
    """ITU-R BT.601, as everywhere; a grey file stays what it is, and transparency is white in grey too."""
    luma = RGB @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(decoded(file(RGB, "png"), channels=1)[..., 0], luma, rtol=0, atol=0.51)
    np.testing.assert_array_equal(decoded(file(GREY, "png"), channels=1)[..., 0], GREY)
    grey = over_white(RGB, ALPHA) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(decoded(file(RGBA, "png"), channels=1)[..., 0], grey, rtol=0, atol=1.51)


# How a viewer turns the stored picture, by where EXIF says that its row 0 and its column 0 are.
SHOWN: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,  # top, left
    2: lambda stored: stored[:, ::-1],  # top, right
    3: lambda stored: stored[::-1, ::-1],  # bottom, right
    4: lambda stored: stored[::-1],  # bottom, left
    5: lambda stored: stored.swapaxes(0, 1),  # left, top
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],  # right, top
    7: lambda stored: stored.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda stored: stored.swapaxes(0, 1)[::-1],  # left, bottom
}


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize("kind", ["png", "tiff", "jpeg", pytest.param("webp", marks=WEBP)])
@pytest.mark.parametrize("value", SHOWN)
def test_pictures_are_turned_as_the_camera_was_held(value: int, kind: str) -> None:
    options = {"jpeg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(kind, {})
    found = decoded(file(FLAT, kind, exif=orientation(value), **options))
    np.testing.assert_allclose(found, SHOWN[value](FLAT), rtol=0, atol=4 if kind == "jpeg" else 0)


def test_the_turned_picture_is_what_is_cropped() -> None:
    """A portrait that is stored lying: 16 wide and 32 high once it stands."""
    lying = np.random.default_rng(2).integers(0, 256, (SIDE, 2 * SIDE, 3), dtype=np.uint8)
    for value in (6, 8):
        standing = SHOWN[value](lying)
        found = decoded(file(lying, "png", exif=orientation(value)), fit="crop")
        np.testing.assert_array_equal(found, standing[8:24])


# Resizing

PICTURE = np.random.default_rng(1).integers(80, 176, (96, 64, 3), dtype=np.uint8)  # what overshoots stays a byte
FILTERS: dict[str, tuple[Image.Resampling, float, Callable[[np.ndarray], np.ndarray]]] = {
    "area": (Image.Resampling.BOX, 0.5, lambda x: ((x > -0.5) & (x <= 0.5)).astype(float)),
    "bilinear": (Image.Resampling.BILINEAR, 1, lambda x: (1 - abs(x)).clip(0)),
    "bicubic": (
        Image.Resampling.BICUBIC,
        2,
        lambda x: np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2) * (x < 2),
    ),
    "lanczos": (Image.Resampling.LANCZOS, 3, lambda x: np.sinc(x) * np.sinc(x / 3) * (x < 3)),
}


def weights(old: int, new: int, support: float, kernel: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """[new, old]: the kernel is stretched where the picture shrinks, so that every pixel counts."""
    scale = old / new
    centres = (np.arange(new)[:, None] + 0.5) * scale
    distance = (np.arange(old) + 0.5 - centres) / max(scale, 1)
    found = np.where(abs(distance) <= support, kernel(abs(distance) if support > 0.5 else distance), 0)
    return found / found.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [8, 24, 64, 128])
@pytest.mark.parametrize("name", FILTERS)
def test_resizing_is_the_convolution_that_the_filter_names(name: str, size: int) -> None:
    """In float64, where Pillow rounds to bytes after each of two passes."""
    pillow, support, kernel = FILTERS[name]
    found = decoded(file(PICTURE, "png"), size=size, resize=name)
    direct = Image.fromarray(PICTURE).resize((size, size), pillow)
    np.testing.assert_array_equal(found, np.asarray(direct))
    rows, columns = (weights(old, size, support, kernel) for old in (96, 64))
    expected = np.einsum("rh,cw,hwk->rck", rows, columns, PICTURE.astype(float), optimize=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1.5)


def test_area_is_the_mean_of_a_block_and_nearest_its_middle() -> None:
    square = PICTURE[:48, :48]
    blocks = square.reshape(16, 3, 16, 3, 3)
    np.testing.assert_allclose(decoded(file(square, "png"), resize="area"), blocks.mean((1, 3)), rtol=0, atol=1)
    np.testing.assert_array_equal(decoded(file(square, "png"), resize="nearest"), blocks[:, 1, :, 1])


def test_stretch_keeps_the_edges_and_crop_the_proportions() -> None:
    for picture, middle in ((PICTURE, PICTURE[16:80]), (PICTURE.swapaxes(0, 1), PICTURE.swapaxes(0, 1)[:, 16:80])):
        cropped = decoded(file(picture, "png"), fit="crop", resize="area")
        np.testing.assert_allclose(cropped, middle.reshape(16, 4, 16, 4, 3).mean((1, 3)), rtol=0, atol=1)
        stretched = decoded(file(picture, "png"), fit="stretch", resize="area")
        high, wide = (n // 16 for n in picture.shape[:2])
        blocks = picture.reshape(16, high, 16, wide, 3).mean((1, 3))
        np.testing.assert_allclose(stretched, blocks, rtol=0, atol=1)


def test_ink_is_what_is_dark() -> None:
    for channels in (1, 3):
        plain, ink = (decoded(file(PICTURE, "png"), channels=channels, resize="area", ink=i) for i in (False, True))
        np.testing.assert_array_equal(ink, 255 - plain)


def test_arrays_are_taken_as_files_are() -> None:
    """miniImageNet's pickles hold arrays."""
    colour, grey = PICTURE, PICTURE[:, :, :1]
    for array, content in ((colour, file(colour, "png")), (grey, file(grey[..., 0], "png"))):
        before = array.copy()
        for channels in (1, 3):
            settings = {"channels": channels, "resize": "lanczos", "fit": "crop"}
            np.testing.assert_array_equal(decoded(array, **settings), decoded(content, **settings))
        np.testing.assert_array_equal(array, before)
    np.testing.assert_array_equal(decoded(RGB[:, ::-1]), RGB[:, ::-1])
    with pytest.raises(ValueError, match="read-only"):
        decoded(RGB)[0, 0, 0] = 1  # whatever is handed out cannot reach the array that came in


# Settings


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        *[("image_size", {"size": size}) for size in (-8, 0, 7, 1025)],
        *[("channels", {"channels": channels}) for channels in (0, 2, 4)],
        *[("resize", {"resize": resize}) for resize in ("box", "Lanczos", "", "hamming")],
        *[("fit", {"fit": fit}) for fit in ("pad", "", "Crop")],
        *[("normalize", {"normalize": normalize}) for normalize in ("", "zero", "ImageNet")],
        ("normalize", {"normalize": "imagenet", "channels": 1}),
    ],
)
def test_settings_that_cannot_work_are_refused_by_their_name(key: str, settings: dict[str, Any]) -> None:
    defaults: dict[str, Any] = {"size": 84, "channels": 3, "resize": "area"}
    with pytest.raises(SettingError) as caught:
        Pixels(**defaults | settings)
    assert caught.value.key == key
    assert caught.value.value == settings.get("normalize", next(iter(settings.values())))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [8, 1024])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_limits_themselves_work(size: int, channels: int) -> None:
    assert decoded(RGB, size=size, channels=channels).shape == (size, size, channels)


# Floats

MEAN_AND_DEVIATION = {
    "none": ([0, 0, 0], [1, 1, 1]),
    "centred": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}
BOTH = pytest.mark.parametrize(
    ("normalize", "channels"), [("none", 1), ("none", 3), ("centred", 1), ("centred", 3), ("imagenet", 3)]
)


@BOTH
def test_inputs_are_the_closed_form(normalize: str, channels: int) -> None:
    """(byte / 255 - mean) / deviation for each channel, whatever stands before the channels."""
    pixels = Pixels(SIDE, channels, "area", normalize=normalize)
    images = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (2, 5, channels, 8, 6), dtype=np.uint8))
    before = images.clone()
    mean, deviation = (np.array(v, dtype=float)[:channels, None, None] for v in MEAN_AND_DEVIATION[normalize])
    expected = torch.from_numpy((before.numpy() / 255 - mean) / deviation).float()
    found = pixels.to_inputs(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(pixels.to_inputs(images[0, 0]), found[0, 0], rtol=0, atol=0)
    assert torch.equal(images, before)


@BOTH
def test_normalising_is_of_values_in_zero_to_one_and_leaves_them_alone(normalize: str, channels: int) -> None:
    pixels = Pixels(SIDE, channels, "area", normalize=normalize)
    values = torch.linspace(0, 1, 3 * channels * 4).view(3, channels, 2, 2)
    before = values.clone()
    mean, deviation = (np.array(v, dtype=float)[:channels, None, None] for v in MEAN_AND_DEVIATION[normalize])
    expected = torch.from_numpy((before.numpy() - mean) / deviation).float()
    torch.testing.assert_close(pixels.standardize(values), expected, rtol=0, atol=1e-6)
    assert torch.equal(values, before)


@BOTH
def test_showing_inputs_gives_back_every_byte(normalize: str, channels: int) -> None:
    pixels = Pixels(SIDE, channels, "area", normalize=normalize)
    every = torch.arange(256, dtype=torch.uint8).view(16, 16).expand(2, channels, 16, 16)
    assert torch.equal(pixels.to_bytes(pixels.to_inputs(every)), every)


def test_showing_values_beyond_the_range_ends_at_black_and_white() -> None:
    values = torch.tensor([-7.0, -1.0, 0.0, 1.0, 7.0]).expand(3, 1, 5)
    shown = Pixels(SIDE, 3, "area", normalize="centred").to_bytes(values)
    assert shown[0, 0].tolist() == [0, 0, 128, 255, 255]


def truncate(content: bytes) -> bytes:
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
    "JPEG, cut": truncate(file(RGB, "jpeg")),
    "JPEG, its first bytes": file(RGB, "jpeg")[:20],
    "PNG, cut": truncate(file(RGB, "png")),
    "GIF, cut": truncate(paletted("gif")),
    "BMP, cut": truncate(file(RGB, "bmp")),
    "TIFF, cut": truncate(file(RGB, "tiff")),
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

"""Pictures whose numbers are known, and files of them in every mode."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from metarun.data.pixels import Pixels

SIDE = 16
_RNG = np.random.default_rng(0)
RGB = _RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREY = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)  # every byte once
ALPHA = _RNG.permutation(GREY.ravel()).reshape(SIDE, SIDE)
DEEP = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)  # 16 bits
DEEP[0, :4] = (0, 32768, 65535, 255)
FLAT = np.kron(_RNG.integers(0, 256, (2, 2, 3)), np.ones((8, 8, 1))).astype(np.uint8)  # JPEG keeps flat blocks of 8
PALETTE = _RNG.integers(0, 256, (256, 3), dtype=np.uint8)

AVIF = [pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")]
WEBP = [pytest.mark.skipif(not features.check("webp"), reason="Pillow without WebP")]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def file(pixels: np.ndarray, kind: str, mode: str | None = None, **options: Any) -> bytes:
    """The numbers as a file; `mode` where the shape does not tell it."""
    image = Image.fromarray(pixels)
    if mode is not None:
        image = Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes())
    return encoded(image, kind, **options)


def png(samples: np.ndarray, bits: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Written by hand, since Pillow writes few kinds: `colour` 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""
    height, width = samples.shape[:2]
    rows = samples.reshape(height, -1).astype(">u2")
    packed = (
        rows.tobytes() if bits == 16 else np.packbits(np.unpackbits(rows.astype(np.uint8)[..., None], -1)[..., -bits:])
    )
    lines = np.frombuffer(bytes(packed), np.uint8).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))
    return png_of((b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b""))


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    """Each chunk with its length and its sum."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def paletted(kind: str, **options: Any) -> bytes:
    image = Image.fromarray(GREY).convert("P")
    image.putdata(GREY.ravel())
    image.putpalette(PALETTE.tobytes())
    return encoded(image, kind, **options)


def animated() -> bytes:
    """A blue frame after the one that counts, and a smaller one."""
    first = Image.open(io.BytesIO(paletted("gif")))
    return encoded(first, "gif", save_all=True, append_images=[Image.new("RGB", first.size, "blue")] * 2, duration=50)


def decoded(content: bytes | np.ndarray, **settings: Any) -> np.ndarray:
    """As [H, W, C]; at full size unless the settings say otherwise, so that nothing is resized."""
    defaults: dict[str, Any] = {"size": SIDE, "channels": 3, "resize": "nearest"}
    pixels = Pixels(**defaults | settings)
    found = pixels.decode(content)
    assert found.dtype == np.uint8
    assert found.shape == pixels.shape == (pixels.channels, pixels.size, pixels.size)
    return found.transpose(1, 2, 0)

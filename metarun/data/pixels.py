"""Image files -> numbers: decoded as a viewer shows them, resized to a square of bytes, then scaled to floats.

Every mode of Pillow is converted to grey or RGB: palettes and CMYK are converted, `depth` bits are scaled to 8,
transparency is laid over white, the first frame of an animation is taken, and the camera's orientation is applied.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from metarun.errors import one_line, require

RESIZE = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the operation that makes the image upright."""

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""The formats that are read, whatever the ending of the name. Some of Pillow's other formats start programs, as EPS."""

FITS = ("stretch", "crop")
NORMALIZE = {
    "none": ((0.0,), (1.0,)),
    "centred": ((0.5,), (0.5,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation per channel, of values in [0, 1]."""

warnings.filterwarnings("ignore", module=r"PIL\.")  # about damaged and large files, which raise if it matters


class CorruptImage(Exception):
    """A file is not a readable image; the message says why."""


class DepthUnknown(Exception):
    """A file has numbers of 16 bits, and how many of these are in use is to be found out first."""


LOW_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L", "LA;16B": "RGBA"}
"""The order of the bytes in a PNG of 16 bits, in Pillow's words -> the one that reads the low bytes."""

DEPTHS = (8, 10, 12, 14, 16)
"""The bits of a number that cameras and scanners use of 16."""


@dataclass(frozen=True)
class Pixels:
    """The settings that determine the numbers of an image."""

    size: int  # of the square, in pixels
    channels: int  # 1 grey, 3 RGB
    resize: str  # the filter
    fit: str = "stretch"  # or crop: the middle square of a picture that is not one
    normalize: str = "none"
    ink: bool = False  # dark strokes on white become 1 on 0
    depth: int | None = 16  # bits in use of the numbers of 16; None: raise `DepthUnknown` at the first of such files

    def __post_init__(self) -> None:
        require(8 <= self.size <= 1024, "image_size", self.size, "must be 8 to 1024")
        require(self.channels in (1, 3), "channels", self.channels, "choices: 1 (grey), 3 (colour)")
        for name, choices in (("resize", RESIZE), ("fit", FITS), ("normalize", NORMALIZE)):
            value = getattr(self, name)
            require(value in choices, name, value, "choices: " + ", ".join(choices))
        deep = self.depth is None or 8 <= self.depth <= 16
        require(deep, "depth", self.depth, "must be 8 to 16, or null for that of the largest value")
        wrong = self.normalize == "imagenet" and self.channels != 3
        require(not wrong, "normalize", self.normalize, "is for 3 channels; choices: none, centred")

    def __str__(self) -> str:
        colour = "grey" if self.channels == 1 else "colour"
        return f"{self.size}x{self.size} {colour} ({self.resize}, {self.fit}, normalize {self.normalize})"

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, self.size, self.size)

    def decode(self, content: bytes | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """An image file, or an array [H, W, C] -> bytes [C, size, size]. Raise `CorruptImage` if that fails."""
        try:
            image, wanted = self._load(content), (self.size, self.size)
            if image.size != wanted:
                crops, method = self.fit == "crop", RESIZE[self.resize]
                image = ImageOps.fit(image, wanted, method) if crops else image.resize(wanted, method)
        except UnidentifiedImageError as error:
            raise CorruptImage(f"its format is none of {', '.join(FORMATS)}") from error
        except (MemoryError, DepthUnknown):
            raise
        except Exception as error:  # Pillow raises many kinds
            raise CorruptImage(one_line(error)) from error
        pixels = np.asarray(image).reshape(self.size, self.size, self.channels).transpose(2, 0, 1)
        return 255 - pixels if self.ink else pixels

    def to_inputs(self, images: Tensor) -> Tensor:
        """Bytes [..., C, H, W] -> float32, scaled to [0, 1] and normalised."""
        return self.standardize(images.to(torch.float32).div_(255))

    def standardize(self, images: Tensor) -> Tensor:
        """[..., C, H, W] in [0, 1] -> minus the mean, divided by the deviation, of the setting `normalize`."""
        if self.normalize == "none":
            return images
        mean, deviation = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in NORMALIZE[self.normalize])
        return (images - mean) / deviation

    def to_bytes(self, inputs: Tensor) -> Tensor:
        """The inverse of `to_inputs`."""
        mean, deviation = (torch.tensor(v).view(-1, 1, 1) for v in NORMALIZE[self.normalize])
        return ((inputs.cpu() * deviation + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def _load(self, content: bytes | NDArray[np.uint8]) -> Image.Image:
        if not isinstance(content, bytes):
            image = Image.fromarray(content.squeeze(-1) if content.shape[-1] == 1 else content)
        else:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            deep = read_deep_colour(image, content)
            image.load()
            upright = image.format == "TIFF"  # Pillow turns TIFFs itself
            image = image if deep is None else flatten_deep_colour(deep, self.depth, image.info)
            image = image if upright else make_upright(image)
        depth = 16 if isinstance(content, bytes) and image.format == "PPM" else self.depth  # Pillow scales these itself
        return flatten_modes(image, depth).convert("L" if self.channels == 1 else "RGB")


def make_upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation, if readable. (`ImageOps.exif_transpose` fails at any damage in the EXIF data.)"""
    try:
        turn = TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF data; the image itself may be sound
        return image
    return image if turn is None else image.transpose(turn)


def read_deep_colour(image: Image.Image, content: bytes) -> NDArray[np.uint16] | None:
    """The numbers [H, W, C] of a PNG of 16 bits with 2 to 4 channels, opened and not loaded; None for any other file.

    Pillow keeps the high byte of each. A second reading, which calls the order of the bytes the other one, has the low
    bytes.
    """
    opened: Any = image
    tiles = opened.tile if opened.format == "PNG" else []
    order = str(tiles[0][3]) if len(tiles) == 1 else ""
    if order not in LOW_BYTES:
        return None
    low: Any = Image.open(io.BytesIO(content), formats=FORMATS)
    low.tile = [(*tiles[0][:3], LOW_BYTES[order])]
    found: NDArray[np.uint16] = np.asarray(low).astype(np.uint16)
    if order == "LA;16B":  # high and low bytes side by side
        high, found = found[..., ::2], found[..., 1::2]
    else:
        high = np.asarray(Image.open(io.BytesIO(content), formats=FORMATS)).astype(np.uint16)
    return np.left_shift(high, np.uint16(8)) | found


def flatten_deep_colour(values: NDArray[np.uint16], depth: int | None, info: dict[Any, Any]) -> Image.Image:
    """Numbers [H, W, C] of `depth` bits as an image of bytes. Alpha that is larger than these bits is opaque."""
    if depth is None:
        raise DepthUnknown
    require_depth(colours_of(values), depth)
    scaled = (np.minimum(values, 2**depth - 1) >> (depth - 8)).astype(np.uint8)
    if "transparency" in info:  # one colour
        clear = (values == np.array(info["transparency"])).all(-1)
        scaled = np.dstack([scaled, np.where(clear, 0, 255).astype(np.uint8)])
    image = Image.fromarray(scaled)
    image.info = {key: value for key, value in info.items() if key != "transparency"}  # with the orientation
    return image


def colours_of(values: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """The channels without alpha, which is the second of two or the fourth of four."""
    return values[..., : values.shape[-1] - (values.shape[-1] != 3)]


def require_depth(values: NDArray[Any], depth: int) -> None:
    """Raise `ValueError` for numbers of more bits."""
    least, most = int(values.min()), int(values.max())
    if least < 0 or most >= 2**depth:
        raise ValueError(f"its numbers are {least} to {most}, not 0 to {2**depth - 1} (data.depth={depth})")


def largest_value(content: bytes | NDArray[np.uint8]) -> int:
    """The largest number of an image of 16 bits, 0 for any other file."""
    if not isinstance(content, bytes):
        return 0
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        deep = read_deep_colour(image, content)
        if deep is not None:
            return int(colours_of(deep).max())
        return int(np.asarray(image).max()) if image.mode.startswith("I") and image.format != "PPM" else 0
    except MemoryError:
        raise
    except Exception:  # Pillow raises many kinds; decoding says what is wrong
        return 0


def flatten_modes(image: Image.Image, depth: int | None = 16) -> Image.Image:
    """Scale `depth` bits to 8 and lay transparency over white, which `Image.convert` does not do correctly."""
    if image.mode.startswith("I"):  # 16 bits, or 32 that hold 16
        if depth is None:
            raise DepthUnknown
        values = np.asarray(image).astype(np.int64)
        require_depth(values, depth)
        scaled = values >> (depth - 8)
        if "transparency" in image.info:
            scaled[values == image.info["transparency"]] = 255
        return Image.fromarray(scaled.astype(np.uint8))
    if image.mode == "F":
        raise ValueError("images of floating-point numbers have no agreed range")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def summarize_bytes(images: Tensor) -> dict[str, float]:
    """Least, mean, largest and standard deviation of bytes, as numbers of [0, 1]."""
    counts = torch.zeros(256, dtype=torch.int64)
    for part in images.split(1024):
        counts += torch.bincount(part.flatten(), minlength=256)
    values, share = torch.arange(256, dtype=torch.float64) / 255, counts.double() / counts.sum()
    mean = float(values @ share)
    here = values[counts > 0]
    deviation = float(((values - mean) ** 2 @ share).sqrt())
    return {"min": float(here.min()), "mean": mean, "max": float(here.max()), "deviation": deviation}

r"""Changes of images that a network was not trained on: turned, out of focus, with less contrast, noisy.

    turned     about the middle, counter-clockwise by `rotate` degrees, bilinear (which softens fine strokes, but not at
               multiples of 90). What comes in from outside is paper (0) for drawings in ink, and for photographs the
               picture mirrored at its edge
    blurred    by a Gaussian whose standard deviation is `blur` pixels
    contrast   v -> m + c (v - m), c = `contrast`, m the mean grey of the image
    noisy      v -> v + e, e ~ N(0, noise^2) for each value

in this order, then cut to [0, 1]. The noise is a function of (seed, step, task, support or query).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from metarun.compute.random import augmentation_bits
from metarun.data.augment import luma
from metarun.data.torchvision import load_torchvision
from metarun.errors import require


@dataclass(frozen=True)
class ImageChange:
    """A function of images [T, rows, C, H, W] in [0, 1]; the defaults change nothing."""

    rotate: float = 0.0  # degrees
    blur: float = 0.0  # pixels
    contrast: float = 1.0
    noise: float = 0.0  # of values between 0 and 1

    def __post_init__(self) -> None:
        require(math.isfinite(self.rotate), "rotate", self.rotate, "must be finite (degrees)")
        for name in ("blur", "contrast", "noise"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, value, "must be at least 0 and finite")

    def __call__(self, images: Tensor, ink: bool, seed: int, step: int, tasks: range, part: int) -> Tensor:
        """`part` tells support from query."""
        flat = images.flatten(0, 1)
        if self.rotate:
            flat = turned(flat, self.rotate, "zeros" if ink else "reflection")
        if self.blur:
            flat = blurred(flat, self.blur)
        if self.contrast != 1:
            flat = torch.lerp(luma(flat).mean((1, 2, 3), keepdim=True), flat, self.contrast)
        changed = flat.view_as(images)
        if self.noise:
            changed = changed + self.noise * _normals(changed, seed, step, tasks, part)
        return changed.clamp(0, 1)


def turned(images: Tensor, degrees: float, outside: str) -> Tensor:
    """[B, C, H, W] turned counter-clockwise; `outside` is a padding mode of grid_sample."""
    angle = math.radians(degrees)
    inverse = [[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]]
    where = images.new_tensor(inverse).expand(len(images), 2, 3)
    grid = affine_grid(where, list(images.shape), align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode=outside, align_corners=False)


def blurred(images: Tensor, deviation: float) -> Tensor:
    """[B, C, H, W]; the kernel reaches three deviations far, but not beyond the image."""
    load_torchvision()
    from torchvision.transforms.functional import gaussian_blur

    reach = min(math.ceil(3 * deviation), *(side - 1 for side in images.shape[-2:]))
    return gaussian_blur(images, [2 * reach + 1] * 2, [deviation] * 2)


def _normals(images: Tensor, seed: int, step: int, tasks: range, part: int) -> Tensor:
    """Standard normals in the shape of images [T, ...], each task's from a seed of its own."""
    seeds = augmentation_bits(seed, step, tasks, part, 1)[:, 0] >> 1  # below 2^63
    draws = [torch.Generator().manual_seed(int(s)) for s in seeds]
    return torch.stack([torch.randn(images.shape[1:], generator=draw) for draw in draws]).to(images)

"""Random changes of training images: shifted crop, mirror image, colours. Off by default, as in the papers.

The random words of an image are a function of (seed, step, task, row) and of the episodes' size, in another stream
than those that draw the episodes: augmentation changes no episode, and a resumed run sees the same images.

crop    the image is padded by `crop` pixels (reflected), and a window of the original size is cut at a random location
flip    an image is mirrored left to right with probability 1/2
jitter  brightness, contrast and saturation are multiplied by factors uniform in [1 - jitter, 1 + jitter]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from metarun.compute.random import augmentation_bits, uniform
from metarun.errors import require

WORDS = 6  # per image: mirror, row, column, brightness, contrast, saturation
GREY = (0.299, 0.587, 0.114)  # luma of RGB (ITU-R BT.601)


@dataclass(frozen=True)
class Augmentation:
    crop: int = 0
    flip: bool = False
    jitter: float = 0.0

    def __post_init__(self) -> None:
        require(self.crop >= 0, "crop", self.crop, "must be at least 0 (pixels of padding)")
        require(0 <= self.jitter < 1, "jitter", self.jitter, "must be at least 0 and below 1")

    @property
    def active(self) -> bool:
        return bool(self.crop or self.flip or self.jitter)

    def __call__(self, images: Tensor, seed: int, step: int, tasks: range, part: int) -> Tensor:
        """Images [T, rows, C, H, W] in [0, 1] -> the same shape; `part` is 0 for support, 1 for query."""
        words = augmentation_bits(seed, step, tasks, part, images.shape[1] * WORDS)
        draws = torch.from_numpy(uniform(words, 0, 1)).view(-1, WORDS).to(images.device)
        flat = images.flatten(0, 1)
        if self.flip:
            flat = torch.where(draws[:, 0].view(-1, 1, 1, 1) < 0.5, flat.flip(-1), flat)
        if self.crop:
            flat = self._crop(flat, draws[:, 1:3])
        if self.jitter:
            flat = self._jitter(flat, draws[:, 3:])
        return flat.view_as(images)

    def _crop(self, images: Tensor, draws: Tensor) -> Tensor:
        """Images [B, C, H, W], draws [B, 2] in [0, 1) -> windows [B, C, H, W] at row and column offsets 0 .. 2 crop."""
        _, _, height, width = images.shape
        padded = pad(images, (self.crop,) * 4, mode="reflect")
        offsets = (draws * (2 * self.crop + 1)).long()  # float64: float32 would round the largest draws to 1
        rows = offsets[:, :1] + torch.arange(height, device=images.device)
        columns = offsets[:, 1:] + torch.arange(width, device=images.device)
        batch = torch.arange(len(images), device=images.device).view(-1, 1, 1)
        return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def _jitter(self, images: Tensor, draws: Tensor) -> Tensor:
        """Images [B, C, H, W], draws [B, 3] in [0, 1) -> other brightness, contrast and saturation."""
        factors = (1 + self.jitter * (2 * draws - 1)).to(images.dtype)
        brightness, contrast, saturation = factors.view(-1, 3, 1, 1, 1).unbind(1)
        images = (images * brightness).clamp(0, 1)
        mean = luma(images).mean((1, 2, 3), keepdim=True)
        images = torch.lerp(mean, images, contrast).clamp(0, 1)
        return torch.lerp(luma(images), images, saturation).clamp(0, 1)


def luma(images: Tensor) -> Tensor:
    """[B, C, H, W] -> the grey image [B, 1, H, W]."""
    if images.shape[1] == 1:
        return images
    return (images * torch.tensor(GREY, device=images.device).view(3, 1, 1)).sum(1, keepdim=True)

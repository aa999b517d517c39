"""Random changes of training images: resized or shifted crop, mirror image, colours. Off by default, as in the papers.

The random words of an image are a function of (seed, step, task, row) and of the episodes' size, in another stream
than those that draw the episodes: augmentation changes no episode, and a resumed run sees the same images.

resized_crop    a box is cut out, whose area is uniform in these shares of the image's and whose aspect ratio is
        log-uniform in [3/4, 4/3], at a uniform place, and is resized to the image, bilinear. Sides are whole pixels; of
        ten boxes the first that lies in the image counts, else the whole image: as torchvision's RandomResizedCrop
crop    the image is padded by `crop` pixels (reflected), and a window of the original size is cut at a random location
flip    an image is mirrored left to right with probability 1/2
jitter  brightness, contrast and saturation are multiplied by factors uniform in [1 - jitter, 1 + jitter]

in this order, but that the mirror image comes before the shift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from metarun.compute.random import augmentation_bits, uniform
from metarun.errors import require

WORDS = 6  # per image: mirror, row, column, brightness, contrast, saturation
BOXES = 10  # of which the first that lies in the image is cut out
BOX_WORDS = 2 * BOXES + 2  # per image: areas, aspect ratios, row, column; in a stream beside that of the others
ASPECT = math.log(4 / 3)  # the logarithm of the largest aspect ratio, and minus that of the least
GREY = (0.299, 0.587, 0.114)  # luma of RGB (ITU-R BT.601)


@dataclass(frozen=True)
class Augmentation:
    crop: int = 0
    flip: bool = False
    jitter: float = 0.0
    resized_crop: tuple[float, ...] | None = None  # least and largest share of the area

    def __post_init__(self) -> None:
        require(self.crop >= 0, "crop", self.crop, "must be at least 0 (pixels of padding)")
        require(0 <= self.jitter < 1, "jitter", self.jitter, "must be at least 0 and below 1")
        shares = self.resized_crop
        valid = shares is None or (len(shares) == 2 and 0 < shares[0] <= shares[1] <= 1)
        needed = "must be [least, largest] share of the image's area, above 0 and at most 1; or null"
        require(valid, "resized_crop", list(shares or ()), needed)

    @property
    def active(self) -> bool:
        return bool(self.crop or self.flip or self.jitter or self.resized_crop)

    def __call__(self, images: Tensor, seed: int, step: int, tasks: range, part: int) -> Tensor:
        """Images [T, rows, C, H, W] in [0, 1] -> the same shape; `part` is 0 for support, 1 for query."""
        words = augmentation_bits(seed, step, tasks, part, images.shape[1] * WORDS)
        draws = torch.from_numpy(uniform(words, 0, 1)).view(-1, WORDS).to(images.device)
        flat = images.flatten(0, 1)
        if self.resized_crop:
            words = augmentation_bits(seed, step, tasks, 2 + part, images.shape[1] * BOX_WORDS)
            places = torch.from_numpy(uniform(words, 0, 1)).view(-1, BOX_WORDS)
            flat = resize_boxes(flat, draw_boxes(places, self.resized_crop, *images.shape[-2:]).to(flat.device))
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


def draw_boxes(draws: Tensor, shares: tuple[float, ...], height: int, width: int) -> Tensor:
    """Draws [B, BOX_WORDS] in [0, 1) -> boxes [B, 4] in an image of this size: top, left, height, width."""
    areas, aspects = draws[:, :BOXES], draws[:, BOXES : 2 * BOXES]
    areas = height * width * (shares[0] + (shares[1] - shares[0]) * areas)
    aspects = (ASPECT * (2 * aspects - 1)).exp()
    sides = torch.stack([(areas / aspects).sqrt(), (areas * aspects).sqrt()], 1).round().long()  # [B, 2, BOXES]
    whole = torch.tensor([height, width])
    inside = ((sides > 0) & (sides <= whole[:, None])).all(1)
    first = sides[torch.arange(len(sides)), :, inside.int().argmax(1)]
    chosen = torch.where(inside.any(1, keepdim=True), first, whole)
    corners = (draws[:, 2 * BOXES :] * (whole - chosen + 1)).long()
    return torch.cat([corners, chosen], 1)


def resize_boxes(images: Tensor, boxes: Tensor) -> Tensor:
    """Images [B, C, H, W] and boxes [B, 4] -> the contents of the boxes as images [B, C, H, W], bilinear, where a box
    goes on beyond its edge as at the edge."""
    places = []
    for axis, size in enumerate(images.shape[-2:]):
        start, side = boxes[:, [axis]].double(), boxes[:, [2 + axis]].double()
        centres = (torch.arange(size, dtype=torch.float64, device=images.device) + 0.5) / size
        inside = (centres * side - 0.5).clamp_min(0).minimum(side - 1)  # pixels of the box [B, size]
        places.append(((2 * (start + inside) + 1) / size - 1).to(images.dtype))  # of the image, -1 to 1
    rows, columns = torch.broadcast_tensors(places[0][:, :, None], places[1][:, None, :])
    grid = torch.stack([columns, rows], -1)
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def luma(images: Tensor) -> Tensor:
    """[B, C, H, W] -> the grey image [B, 1, H, W]."""
    if images.shape[1] == 1:
        return images
    return (images * torch.tensor(GREY, device=images.device).view(3, 1, 1)).sum(1, keepdim=True)

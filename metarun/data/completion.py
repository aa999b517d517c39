r"""Image completion as regression (Garnelo et al. 2018, arXiv 1807.01613): a task is one image, a function from the
location of a pixel to its grey.

    x = (-1 + 2 i / (H - 1), -1 + 2 j / (W - 1)) of row i and column j, from the top left;   y = the pixel's grey

The image of a task is one drawing of a character of the split (train, val and test as in omniglot.py, with its
rotations), the character uniform over the split and the drawing uniform over the character. The context is `shots`
pixels, uniform without replacement. Queries are the next `queries` pixels of the same random order, hence none of the
context; or, if `queries` is the number of all pixels, all pixels from the top left on, including the context.

`train_classes` and `split` select characters, not pixels. Ink is 1, paper 0, and `resize` makes greys between. The
random order is a function of (seed, split, step, task index), independent of the choice of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metarun.compute.random import choose, pixel_bits
from metarun.data.images import ImageData
from metarun.data.omniglot import omniglot
from metarun.errors import require
from metarun.types import Batch, EpisodeSpec, Kind, Split, Task

ONE_IMAGE = EpisodeSpec(ways=1, shots=1, queries=0)
ONE_QUERY = EpisodeSpec(ways=1, shots=0, queries=1)  # which is the same image
SHOWN, SCALE, GAP = 8, 4, 6  # contact sheet: tasks, size of a pixel, pixels between images
UNKNOWN = (70, 110, 190)  # the colour of pixels outside of the context


@dataclass(frozen=True)
class Completion:
    """Tasks of pixels, from the images of a grey data set."""

    images: ImageData

    kind: ClassVar[Kind] = "regression"
    row: ClassVar[str] = "picture"

    @property
    def picture(self) -> tuple[int, int]:
        """Rows and columns of an image."""
        return self.images.pixels.shape[1:]

    def input_shape(self) -> tuple[int, ...]:
        return (2,)

    def outputs(self, ways: int) -> int:
        return 1

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        count, characters = self._count, len(self.images.source.splits[split])  # reads the images
        require(characters >= 1, "split", self.images.source.split, f"has no characters for {split}")
        require(1 <= spec.shots < count, "shots", spec.shots, f"must be 1 to {count - 1} of the {count} pixels")
        rest = count - spec.shots
        needed = f"must be 1 to {rest}, the pixels beside the {spec.shots} of the context, or {count} for all"
        require(1 <= spec.queries <= rest or spec.queries == count, "queries", spec.queries, needed)

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        drawn = self.images.episodes(split, seed, step, tasks, ONE_IMAGE).support.x
        grey_TP = drawn.flatten(1)
        count, k = self._count, spec.shots
        all_pixels = spec.queries == count
        bits = pixel_bits(split, seed, step, tasks, count)
        order_TE = torch.from_numpy(choose(bits, k if all_pixels else k + spec.queries))
        query_TM = torch.arange(count).expand(len(tasks), -1) if all_pixels else order_TE[:, k:]
        locations, parts = self._locations(), (order_TE[:, :k], query_TM)
        return Task(*(Batch(locations[rows], grey_TP.gather(1, rows)[..., None]) for rows in parts))

    def query_names(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> list[list[str]]:
        """The file of each task's image, once for each query."""
        names = self.images.query_names(split, seed, step, tasks, ONE_QUERY)
        return [name * spec.queries for name in names]

    def reference_inputs(self, count: int) -> Tensor:
        """Locations spread evenly over the image, repeated if it has fewer."""
        return self._locations()[torch.linspace(0, self._count - 1, count).round().long()]

    def facts(self) -> dict[str, Any]:
        return self.images.facts()

    def describe(self) -> dict[str, Any]:
        return self.images.describe()

    @property
    def members(self) -> dict[str, list[str]]:
        """The class names of each split."""
        return self.images.members

    def contact_sheet(self, spec: EpisodeSpec) -> Image.Image:
        """A few training tasks: contexts above, their images below."""
        self.check("train", spec)
        drawn = self.episodes("train", 0, 0, range(SHOWN), spec._replace(queries=self._count))
        height, width = self.picture
        whole = drawn.query.y.view(SHOWN, height, width, 1).expand(-1, -1, -1, 3)
        known = torch.tensor(UNKNOWN).div(255).expand(SHOWN, height * width, 3).clone()
        pixels = (drawn.support.x + 1) / 2 * torch.tensor([height - 1, width - 1])
        row, column = pixels.round().long().unbind(-1)
        for image, index, grey in zip(known, row * width + column, drawn.support.y, strict=True):
            image[index] = grey.expand(-1, 3)
        scaled = torch.stack([known.view_as(whole), whole]).repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3)
        padded = torch.nn.functional.pad(scaled, (0, 0, 0, GAP, 0, GAP), value=1.0)
        sheet = torch.cat([torch.cat(list(row), 1) for row in padded], 0)
        return Image.fromarray((sheet * 255).round().to(torch.uint8).numpy())

    @property
    def _count(self) -> int:
        return int(np.prod(self.picture))

    def _locations(self) -> Tensor:
        """The locations x of all pixels [P, 2]."""
        rows, columns = (torch.linspace(-1, 1, side, dtype=torch.float64) for side in self.picture)
        return torch.cartesian_prod(rows, columns).float()


def completion(
    root: str | None,
    download: bool | None,
    urls: list[Any],
    split: str,
    split_seed: int,
    rotations: str,
    image_size: int,
    resize: str,
    train_classes: int | None = None,
    within: str | None = None,
    channels: int = 1,
    normalize: str = "none",
) -> Completion:
    """The drawings of Omniglot with these settings, which conf/data/completion.yaml explains."""
    require(within is None, "within", within, "must be null: a task is one image")
    require(channels == 1, "channels", channels, "must be 1: what is predicted is a pixel's grey")
    require(normalize == "none", "normalize", normalize, "must be none: what is predicted is a pixel's grey, 0 to 1")
    return Completion(omniglot(root, download, urls, split, split_seed, rotations, image_size, resize, train_classes))

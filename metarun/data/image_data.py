"""What every image data set is once its files are known: episodes of a table's classes, by split.

`omniglot.py` and `folder.py` are functions that fill one in. Nothing is read before the first episode is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from PIL.Image import Image
from torch import Tensor

from metarun.data.augment import Augmentation
from metarun.data.contact import contact_sheet
from metarun.data.images import ImageEpisodes, ImageTable, Index, members_sha256, variants
from metarun.data.pixels import Pixels
from metarun.errors import SettingError, UserError, require
from metarun.types import Batch, EpisodeSpec, Kind, Split, Task

EPISODES_SHOWN = 3
ROTATIONS = ("classes", "train", "task", "none")


class Source(NamedTuple):
    """The images of a data set, decoded, and which classes each split has."""

    table: ImageTable
    splits: dict[Split, Index]
    split: str  # what the split is called
    notes: dict[str, Any]  # more that belongs beside a number
    cache: Path  # where the decoded images lie


@dataclass(frozen=True)
class ImageData:
    pixels: Pixels
    rotations: str
    augmentation: Augmentation
    load: Callable[[bool], Source]  # whether to verify the cache -> the images

    kind: ClassVar[Kind] = "classification"

    def __post_init__(self) -> None:
        require(self.rotations in ROTATIONS, "rotations", self.rotations, "choices: " + ", ".join(ROTATIONS))
        crop = self.augmentation.crop
        require(crop < self.pixels.size, "crop", crop, f"must be below data.image_size={self.pixels.size}")

    def input_shape(self) -> tuple[int, ...]:
        return self.pixels.shape

    def outputs(self, ways: int) -> int:
        return ways

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        self._episodes[split].check(spec, split)

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        """Images as float32, changed at random in training if that is asked for, then normalised."""
        drawn = self._episodes[split].draw(split, seed, step, tasks, spec)
        if split != "train" or not self.augmentation.active:
            return Task(*(Batch(self.pixels.to_inputs(b.x), b.y) for b in drawn))
        changed = (self.augmentation(b.x / 255, seed, step, tasks, part) for part, b in enumerate(drawn))
        return Task(*(Batch(self.pixels.normalised(x), b.y) for x, b in zip(changed, drawn, strict=True)))

    def reference_inputs(self, count: int) -> Tensor:
        """One image of each of `count` training classes (or several where there are fewer), drawn with seed 0 apart
        from every training episode, and never augmented."""
        episodes = self._episodes["train"]
        ways = min(count, len(episodes.classes))
        shots = min(-(-count // ways), episodes.fewest())
        drawn = episodes.draw("train", 0, 2**63, range(1), EpisodeSpec(ways, shots, queries=0))
        return self.pixels.to_inputs(drawn.support.x[0][:count])

    def facts(self) -> dict[str, Any]:
        pixels = self.pixels
        return {
            "split": self.source.split,
            "split_sha256": members_sha256(self.members),
            "classes": {split: len(e.classes) for split, e in self._episodes.items()},
            "images_are": str(pixels),
            "rotations": self.rotations,
            "image_size": pixels.size,
            "channels": pixels.channels,
            "resize": pixels.resize,
            "fit": pixels.fit,
            "normalize": pixels.normalize,
            **self.source.notes,
        }

    def describe(self) -> dict[str, Any]:
        """What the data set holds, after summing the decoded images again."""
        source = self._loaded(verify=True)
        counts = {split: source.table.counts[ids] for split, ids in source.splits.items()}
        return self.facts() | {
            "parts": {
                s: {"classes": len(c), "images": int(c.sum()), "fewest": int(c.min()), "most": int(c.max())}
                for s, c in counts.items()
            },
            "cache": str(source.cache),
            "cache_mb": source.cache.stat().st_size / 2**20,
        }

    def contact_sheet(self, spec: EpisodeSpec) -> Image:
        """A picture of the first training episodes, as they are trained on."""
        self.check("train", spec)
        return contact_sheet(self.episodes("train", 0, 0, range(EPISODES_SHOWN), spec), spec, self.pixels)

    @functools.cached_property
    def members(self) -> dict[str, list[str]]:
        """The class names of each split."""
        return {split: [self.source.table.names[i] for i in ids] for split, ids in self.source.splits.items()}

    @functools.cached_property
    def source(self) -> Source:
        return self._loaded(verify=False)

    def _loaded(self, verify: bool) -> Source:
        try:
            return self.load(verify)
        except SettingError as error:  # complete: what asks for images does not know whose keys these are
            raise UserError(str(error.under("data"))) from error

    @functools.cached_property
    def _episodes(self) -> dict[Split, ImageEpisodes]:
        table, splits = self.source.table, self.source.splits
        return {s: ImageEpisodes(table, variants(ids, len(table.names), self._turned(s))) for s, ids in splits.items()}

    def _turned(self, split: Split) -> str:
        """The rotations of a split: `train` turns the training classes alone."""
        if self.rotations != "train":
            return self.rotations
        return "classes" if split == "train" else "none"

"""Omniglot (Lake, Salakhutdinov, Tenenbaum 2015): 1623 characters of 50 alphabets, 20 drawings each, ink = 1.

Splits:
    vinyals     by character, 1028 / 172 / 423: whole alphabets but for Gurmukhi, as Vinyals et al. 2016 and ProtoNet
    random1200  a seeded shuffle of the characters, 1100 / 100 / 423, as MAML's code (its paper: 1200 = train + val)
    background  Lake's own: the 30 background alphabets (the last 5 by name for validation), the 20 evaluation alphabets
Rotations by 90 degrees: `classes` makes four classes of every character, in all splits (ProtoNet); `task` turns each
class of an episode at random, so that two rotations of a character never meet (MAML); `none`.
The drawings are 105x105 pixels of one bit. `resize=lanczos` and `area` give greys, `nearest` does not (what most
published code does).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from metarun.data.cache import cached_table
from metarun.data.draws import choose, random_bits
from metarun.data.images import ImageEpisodes, ImageTable, members_sha256, with_rotations
from metarun.data.omniglot_files import RESIZE, decode, find_drawings
from metarun.errors import require
from metarun.types import EpisodeSpec, Kind, Split, Task

SPLITS = ("vinyals", "random1200", "background")
ROTATIONS = ("classes", "task", "none")

VAL_ALPHABETS = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
TEST_ALPHABETS = (
    *("Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)", "Oriya"),
    *("Sylheti", "Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG"),
)
TEST_CHARACTERS = tuple(f"Gurmukhi/character{i}" for i in range(42, 46))  # the one alphabet in both train and test


@dataclass(frozen=True)
class Omniglot:
    root: str | None
    download: bool
    split: str
    split_seed: int
    rotations: str
    image_size: int
    resize: str

    kind: ClassVar[Kind] = "classification"

    def __post_init__(self) -> None:
        for name, choices in (("split", SPLITS), ("rotations", ROTATIONS), ("resize", tuple(RESIZE))):
            value = getattr(self, name)
            require(value in choices, name, value, "choices: " + ", ".join(choices))
        require(0 <= self.split_seed < 2**63, "split_seed", self.split_seed, "must be at least 0")
        require(8 <= self.image_size <= 105, "image_size", self.image_size, "must be 8 to 105")

    def input_shape(self) -> tuple[int, ...]:
        return (1, self.image_size, self.image_size)

    def outputs(self, ways: int) -> int:
        return ways

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        self._episodes[split].check(spec, split)

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        return self._episodes[split].draw(split, seed, step, tasks, spec)

    def reference_inputs(self, count: int) -> Tensor:
        """One drawing of each of `count` training classes, drawn with seed 0 apart from every training episode."""
        ways = min(count, len(self._episodes["train"].classes))
        spec = EpisodeSpec(ways, shots=1, queries=1)
        return self.episodes("train", seed=0, step=2**63, tasks=range(1), spec=spec).support.x[0]

    def facts(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "split_sha256": members_sha256(self.members),
            "classes": {split: len(e.classes) for split, e in self._episodes.items()},
            "rotations": self.rotations,
            "image_size": self.image_size,
            "resize": self.resize,
        }

    @functools.cached_property
    def members(self) -> dict[str, list[str]]:
        """The characters of each split, as folder/alphabet/character."""
        return {split: [self._table.names[i] for i in ids] for split, ids in self._characters().items()}

    @functools.cached_property
    def _table(self) -> ImageTable:
        drawings = find_drawings(self.root, self.download)
        fingerprint = f"{drawings.fingerprint} {self.image_size} {self.resize}"
        return cached_table("omniglot", fingerprint, lambda: decode(drawings, self.image_size, self.resize))

    @functools.cached_property
    def _episodes(self) -> dict[str, ImageEpisodes]:
        total = len(self._table.names)
        table = self._table if self.rotations == "none" else with_rotations(self._table)
        turns = 1 if self.rotations == "none" else 4
        classes = {s: np.add.outer(ids, np.arange(turns) * total) for s, ids in self._characters().items()}
        if self.rotations == "classes":
            classes = {s: ids.reshape(-1, 1) for s, ids in classes.items()}
        return {s: ImageEpisodes(table, ids) for s, ids in classes.items()}

    def _characters(self) -> dict[str, np.ndarray]:
        """Table classes of each split."""
        if self.split == "random1200":
            bits = random_bits("train", self.split_seed, 0, range(1), len(self._table.names))
            order = choose(bits[0], len(self._table.names))
            return {"train": order[:1100], "val": order[1100:1200], "test": order[1200:]}
        part = _vinyals if self.split == "vinyals" else _lake(self._table.names)
        parts = np.array([part(name) for name in self._table.names])
        return {split: np.flatnonzero(parts == split) for split in ("train", "val", "test")}


def _vinyals(name: str) -> str:
    alphabet = _alphabet(name)
    if alphabet in TEST_ALPHABETS or _character(name) in TEST_CHARACTERS:
        return "test"
    return "val" if alphabet in VAL_ALPHABETS else "train"


def _lake(names: tuple[str, ...]) -> Any:
    background = sorted({_alphabet(n) for n in names if n.startswith("images_background/")})
    held_out = background[-5:]

    def part(name: str) -> str:
        if name.startswith("images_evaluation/"):
            return "test"
        return "val" if _alphabet(name) in held_out else "train"

    return part


def _alphabet(name: str) -> str:
    return name.split("/")[1]


def _character(name: str) -> str:
    return name.split("/", 1)[1]

"""Data sets of rows in memory: a table, arrays or windows of signals, in classes or in tasks.

Classification: an episode has N classes, K + Q rows of each. Regression: an episode has one task, K + Q of its rows.
Classes (or tasks) are uniform over the split without replacement within an episode, rows uniform within the class (or
task) without replacement, so that support and query are disjoint. With `within` all classes of an episode are of one
group, uniform over those with enough classes. Every episode is a new draw: two episodes may have
the same task with other rows.

Rows that share readings, such as overlapping windows of a signal, are sorted into parts that do not share any. An
episode takes one part of each class, at random, and all its rows from there.

Inputs, and the targets of a regression, are scaled by means and deviations of the training rows alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.compute.random import Bits, random_bits, sample, uniform
from metarun.data.images import Index, members_sha256
from metarun.errors import SettingError, require
from metarun.storage.text import count_nouns
from metarun.types import Batch, EpisodeSpec, Kind, Split, Task

Array = NDArray[Any]


class Groups(NamedTuple):
    """The classes or tasks of all rows. Part p of group g owns rows starts[g, p] .. starts[g, p] + counts[g, p] - 1."""

    noun: str  # class, task
    names: tuple[str, ...]
    starts: Index  # [G, P]
    counts: Index  # [G, P]
    splits: dict[Split, Index]  # the groups of each split
    split: str  # its name
    within: Index | None = None  # [G] the number of each class's group: all classes of an episode are of one

    @property
    def plural(self) -> str:
        return "classes" if self.noun == "class" else f"{self.noun}s"

    def together(self, split: Split) -> Index:
        """The sizes of the sets of classes that an episode takes its classes from."""
        ids = self.splits[split]
        return np.array([len(ids)]) if self.within is None else np.unique(self.within[ids], return_counts=True)[1]

    def rows(self, split: Split) -> Index:
        """The rows of a split, its groups in order."""
        starts, counts = self.starts[:, 0], self.counts.sum(1)
        return np.concatenate([np.arange(starts[i], starts[i] + counts[i]) for i in self.splits[split]])


class Scale(NamedTuple):
    """scaled = (value - mean) / deviation, which broadcast over rows; and that in words."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    words: str


@dataclass(frozen=True)
class RowData:
    """Few-shot classification (`y` is None) or regression of rows.

    Made by `from_frame`, `from_arrays`, `from_tasks`, `from_recordings`, or by `data=table`, `arrays`, `windows`.
    """

    x: Tensor  # [n, ...] sorted by group and part; scaled float32, or the bytes of images, scaled when they are drawn
    y: Tensor | None  # [n, d_out] scaled float32
    groups: Groups
    x_scale: Scale
    y_scale: Scale | None
    x_names: tuple[str, ...] = ()
    y_names: tuple[str, ...] = ()
    row: str = "row"  # what a row is called
    place: Callable[[int], str] = "row {}".format  # row of x -> where it came from: `sites.csv, line 7`
    notes: Mapping[str, Any] = field(default_factory=dict)  # further facts

    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")

    @property
    def kind(self) -> Kind:
        return "classification" if self.y is None else "regression"

    @property
    def most_ways(self) -> int:
        """The classes of the smallest split, or of its largest group."""
        return min(int(self.groups.together(split).max()) for split in self.groups.splits)

    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    def outputs(self, ways: int) -> int:
        return ways if self.y is None else self.y.shape[1]

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        ids = self.groups.splits[split]
        if self.y is None:
            most = int(self.groups.together(split).max())
            place = f"the {split} split" if self.groups.within is None else f"each group of the {split} split"
            several = f"must be {'2' if most == 2 else f'2 to {most}'}, the classes of the {split} split"
            if self.groups.within is not None:
                several += "'s largest group (data.within)"
            one = f"an episode needs 2 classes, {place} has one (data.ratios, data.split)"
            require(2 <= spec.ways <= most, "ways", spec.ways, several if most > 1 else one)
        counts = self.groups.counts[ids].min(1)
        if counts.min() < spec.shots + spec.queries:
            key = "shots" if spec.shots >= counts.min() else "queries"
            raise SettingError(key, getattr(spec, key), self._name_small(split, spec, ids, counts))

    def _name_small(self, split: Split, spec: EpisodeSpec, ids: Index, counts: Index) -> str:
        """What is wrong where some groups `ids` have too few rows, `counts`, for an episode."""
        groups, needed = self.groups, spec.shots + spec.queries
        few = count_nouns(int((counts < needed).sum()), f"{groups.noun} has", f"{groups.plural} have")
        remedies = [f"data.min_rows={needed} leaves such {groups.plural} out"] if counts.max() >= needed else []
        apart = ""
        if groups.counts.shape[1] > 1:
            apart, remedies = " that do not overlap", ["data.overlap=true allows overlaps", *remedies]
        least = f"{groups.names[ids[counts.argmin()]]} ({split}) has {counts.min()}{apart}"
        total = f"{needed} {self.row}s of each {groups.noun} ({spec.shots} support, {spec.queries} queries)"
        return f"an episode needs {total}; {few} fewer: {'; '.join([least, *remedies])}"

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        """Rows ordered shot by shot: row k N + n is of class n, and labels are the order of the draw."""
        rows_TNE = self._draw_rows(split, seed, step, tasks, spec)
        return Task(self._gather(rows_TNE[..., : spec.shots]), self._gather(rows_TNE[..., spec.shots :]))

    def _draw_rows(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Index:
        """The rows of each task [T, N, K + Q]; a regression has N = 1."""
        ways, each, groups = (spec.ways if self.y is None else 1), spec.shots + spec.queries, self.groups
        group_TN, part_bits, row_bits = self._draw_groups(split, seed, step, tasks, ways, each)
        part_TN = uniform(part_bits, 0, groups.starts.shape[1]).astype(np.intp)
        starts_TN, counts_TN = groups.starts[group_TN, part_TN], groups.counts[group_TN, part_TN]
        return starts_TN[..., None] + sample(row_bits.reshape(len(tasks), ways, each), counts_TN)

    def _draw_groups(
        self, split: Split, seed: int, step: int, tasks: range, ways: int, each: int
    ) -> tuple[Index, Bits, Bits]:
        """The groups of each task [T, N], and random words for their parts [T, N] and rows [T, N * each]."""
        words, within, ids = ways * (2 + each), self.groups.within, self.groups.splits[split]
        bits = random_bits(split, seed, step, tasks, words + (within is not None))
        group_bits, part_bits, row_bits = np.split(bits[:, :words], [ways, 2 * ways], axis=1)
        if within is None:
            return ids[sample(group_bits, len(ids))], part_bits, row_bits
        ids = ids[np.argsort(within[ids], kind="stable")]
        _, starts, sizes = np.unique(within[ids], return_index=True, return_counts=True)
        large = np.flatnonzero(sizes >= ways)
        chosen_T = large[uniform(bits[:, -1], 0, len(large)).astype(np.intp)]
        return ids[starts[chosen_T][:, None] + sample(group_bits, sizes[chosen_T])], part_bits, row_bits

    def class_names(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> list[tuple[str, ...]]:
        """The classes of each task in the order of their labels."""
        group_TN, _, _ = self._draw_groups(split, seed, step, tasks, spec.ways, spec.shots + spec.queries)
        return [tuple(self.groups.names[i] for i in row) for row in group_TN.tolist()]

    def query_names(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> list[list[str]]:
        """Where each task's queries come from, in their order: `line 7`, without the name of the file."""
        rows_TM = self._draw_rows(split, seed, step, tasks, spec)[..., spec.shots :].swapaxes(1, 2)
        return [[self.place(row).partition(", ")[2] for row in rows.ravel().tolist()] for rows in rows_TM]

    def _gather(self, rows_TNK: Index) -> Batch:
        tasks, ways, each = rows_TNK.shape
        rows = torch.from_numpy(np.ascontiguousarray(rows_TNK.swapaxes(1, 2)).reshape(tasks, each * ways))
        y = torch.arange(ways).repeat(each).expand(tasks, -1) if self.y is None else self.y[rows]
        return Batch(self._inputs(rows), y)

    def _inputs(self, rows: Tensor) -> Tensor:
        x = self.x[rows]
        return x if x.is_floating_point() else x.float() / float(self.x_scale.deviation)

    def reference_inputs(self, count: int) -> Tensor:
        """Training rows at even distances, the groups in order."""
        rows = self._training_rows
        return self._inputs(torch.from_numpy(rows[np.linspace(0, len(rows) - 1, count).astype(np.intp)]))

    @functools.cached_property
    def _training_rows(self) -> Index:
        return self.groups.rows("train")

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "split": self.groups.split,
            "split_sha256": members_sha256(self.members),
            self.groups.plural: {split: len(ids) for split, ids in self.groups.splits.items()},
            f"{self.row}s": int(self.groups.counts.sum()),
            "inputs_are": self.x_scale.words,
        }
        if self.y_scale is not None:
            units = {"mean": self.y_scale.mean.tolist(), "deviation": self.y_scale.deviation.tolist()}
            facts |= {"targets_are": self.y_scale.words, "targets": {"names": list(self.y_names), **units}}
        return facts | dict(self.notes)

    def describe(self) -> dict[str, Any]:
        """The facts, the size of each part of the split, and the range of the training rows in units of the data."""
        groups = self.groups
        counts = {split: groups.counts[ids].sum(1) for split, ids in groups.splits.items()}
        parts = {
            split: {groups.plural: len(c), f"{self.row}s": int(c.sum()), "fewest": int(c.min()), "most": int(c.max())}
            for split, c in counts.items()
        }
        columns = _describe_columns("input", self.x, self.x_scale, self.x_names, self._training_rows)
        if self.y is not None and self.y_scale is not None:
            columns += _describe_columns("target", self.y, self.y_scale, self.y_names, self._training_rows)
        return self.facts() | {"parts": parts, "columns": columns}

    def encode(self, x: Array, y: Array | None) -> tuple[Array, Array | None]:
        """Rows in the units of the data -> as the learner gets them."""
        scaled = (x - self.x_scale.mean) / self.x_scale.deviation
        return scaled, None if y is None or self.y_scale is None else (y - self.y_scale.mean) / self.y_scale.deviation

    def decode(self, values: Array, deviations: Array) -> tuple[Array, Array]:
        """Predicted targets [n, d_out] and their standard deviations, if any, in the units of the data."""
        if self.y_scale is None:
            return values, deviations
        spread = deviations * self.y_scale.deviation if deviations.size else deviations
        return values * self.y_scale.deviation + self.y_scale.mean, spread

    @property
    def members(self) -> dict[str, list[str]]:
        """The names of the classes or tasks of each split."""
        return {split: [self.groups.names[i] for i in ids] for split, ids in self.groups.splits.items()}

    @property
    def metrics(self) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
        """The mean absolute error of each target in its own units. (Its mean over tasks is that over all queries.)"""
        if self.y_scale is None:
            return {}
        units = self.y_scale.deviation.tolist()
        errors = [functools.partial(_absolute_error, column=i, units=units) for i in range(len(units))]
        return {f"mae_{name}": error for name, error in zip(self.y_names, errors, strict=True)}


def _absolute_error(prediction: Tensor, y: Tensor, column: int, units: list[float]) -> Tensor:
    """unit mean_m |f(x_m) - y_m| of one target; a Gaussian prediction begins with its means."""
    means = prediction[..., : len(units)]
    return units[column] * (means[..., column] - y[..., column]).double().abs().mean()


def _describe_columns(
    role: str, values: Tensor, scale: Scale, names: tuple[str, ...], rows: Index
) -> list[dict[str, Any]]:
    """Mean, deviation and range of the training rows: of each column with a name, or of all numbers together."""
    found = values[torch.from_numpy(rows)].double().numpy()
    if values.is_floating_point():
        found = found * scale.deviation + scale.mean
    size = np.abs(found).max(0 if names else None)
    found = np.round(found / np.where(size > 0, size, 1), 7) * size  # what float32 keeps of them
    columns = found.reshape(len(found), -1).T if names else [found]
    return [
        {
            **{"role": role, "name": name, "mean": float(column.mean()), "deviation": float(column.std())},
            **{"low": float(column.min()), "high": float(column.max())},
        }
        for name, column in zip(names or ("all",), columns, strict=True)
    ]

"""From arrays to the rows of a data set: group them by class or task, share the groups out, scale the numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from metarun.data.image_list import SPLIT_NAMES
from metarun.data.images import Index
from metarun.data.rows import Array, Groups, RowData, Scale
from metarun.data.splits import SplitSettings, check_split, split_classes
from metarun.errors import UserError, require
from metarun.storage.text import count_nouns, shorten
from metarun.types import Split

SCALES = ("auto", "zscore", "depth", "none")
CONTENTS = ("auto", "images", "signals", "vectors")
AXES = {"vectors": (2,), "signals": (2, 3), "images": (3, 4)}  # of the array, the rows' included
NAMES_SHOWN = 6
CHUNK = 1 << 22  # numbers that are converted to float64 at a time


@dataclass(frozen=True)
class Grouping:
    """The settings of data sets of rows, whatever their source."""

    split_seed: int = 0
    ratios: tuple[float, ...] = (0.6, 0.2, 0.2)
    min_rows: int | None = None  # classes or tasks with fewer rows are left out; None: none
    scale: str = "auto"

    def __post_init__(self) -> None:
        check_split(SplitSettings("ratio", self.split_seed, self.ratios))
        sound = self.min_rows is None or self.min_rows >= 1
        require(sound, "min_rows", self.min_rows, "must be at least 1, or null to keep all")
        require(self.scale in SCALES, "scale", self.scale, "choices: " + ", ".join(SCALES))


@dataclass(frozen=True)
class Source:
    """n rows as they come from a file or from Python."""

    x: Array  # [n], [n, D], [n, L], [n, C, L], [n, H, W] or [n, C, H, W]
    y: Array | None  # [n, d_out] of tasks; None of classes
    group: Sequence[str]  # the class or task of each row
    place: Callable[[int], str]  # row -> where it comes from, with which a message begins
    x_names: tuple[str, ...] = ()  # of the columns, where they have names
    y_names: tuple[str, ...] = ()
    split: Sequence[str] | None = None  # of each row: train, val, test
    split_file: str | None = None  # or a split.json with the names of the classes or tasks
    within: Sequence[str] | None = None  # of each row: the group of its class
    content: str = "auto"
    part: Index | None = None  # [n]: the rows of a part share no readings
    row: str = "row"  # what a row is called
    notes: Mapping[str, Any] = field(default_factory=dict)  # further facts

    @property
    def noun(self) -> str:
        return "class" if self.y is None else "task"


def group_rows(source: Source, settings: Grouping) -> RowData:
    """The data set of these rows."""
    x, content = arrange(source.x, source.content)
    for values, columns in ((x, source.x_names), (source.y, source.y_names)):
        if values is not None:
            _refuse_infinite(values, columns, source)
    groups, order, left_out = _sort_rows(source, settings)
    training = order[groups.rows("train")]
    fitted_on = count_nouns(len(groups.splits["train"]), f"training {groups.noun}", f"training {groups.plural}")
    by = f"z-scored on {fitted_on}"
    x_scale = _scale_inputs(x, training, content, settings.scale, by)
    x_scale = x_scale._replace(words=f"{_describe_inputs(x, content, source.x_names)} {x_scale.words}")
    y = y_scale = None
    if source.y is not None:
        fitted = settings.scale != "none"
        y_scale = _fit(source.y, training, (0,), by) if fitted else _keep_scale(source.y.shape[1:])
        y_scale = y_scale._replace(words=f"{', '.join(source.y_names)} {y_scale.words}")
        y = torch.from_numpy(_apply(source.y, order, y_scale))
    place = source.place  # without the source, whose arrays would stay in memory
    as_bytes = x.dtype == np.uint8 and x_scale.deviation.ndim == 0  # a quarter of the memory
    return RowData(
        x=torch.from_numpy(x[order] if as_bytes else _apply(x, order, x_scale)),
        y=y,
        groups=groups,
        x_scale=x_scale,
        y_scale=y_scale,
        x_names=source.x_names,
        y_names=source.y_names,
        row=source.row,
        place=lambda row: place(int(order[row])),
        notes=({f"{groups.plural}_left_out": left_out} if left_out else {}) | dict(source.notes),
    )


def _sort_rows(source: Source, settings: Grouping) -> tuple[Groups, Index, int]:
    """The groups of the rows that are kept, the order that sorts them by group and part, and how many were left out."""
    names, group = number_words(source.group)
    part = np.zeros(len(group), np.intp) if source.part is None else source.part
    parts = int(part.max(initial=0)) + 1
    sizes = np.bincount(group * parts + part, minlength=len(names) * parts).reshape(-1, parts)
    kept = np.flatnonzero(sizes.min(1) >= (settings.min_rows or 0))
    most = f"leaves no {source.noun}: the largest of {len(names)} has {sizes.min(1).max(initial=0)}"
    require(len(kept) > 0, "min_rows", settings.min_rows, most)
    given, kept_names = _read_split(source, names, group), [names[i] for i in kept]
    how = source.split_file or ("given" if source.split is not None else "ratio")
    shared = SplitSettings(how, settings.split_seed, settings.ratios)
    split, splits = split_classes(kept_names, {name: given.get(name) for name in kept_names}, shared, source.noun)
    order = np.lexsort((part, group))
    order, sizes = order[np.isin(group[order], kept)], sizes[kept]
    starts = (np.cumsum(sizes) - sizes.ravel()).reshape(-1, parts)
    within = _number_within(source, names, group)
    within = None if within is None else within[kept]
    return Groups(source.noun, tuple(kept_names), starts, sizes, splits, split, within), order, len(names) - len(kept)


def number_words(words: Sequence[str]) -> tuple[list[str], Index]:
    """The different words [G], sorted, and the number of each word given [n]. Not by an array of text, in which every
    word takes as much memory as the longest one."""
    names = sorted(set(words))
    number = {name: i for i, name in enumerate(names)}
    return names, np.fromiter((number[word] for word in words), np.intp, len(words))


def _number_within(source: Source, names: Sequence[str], group: Index) -> Index | None:
    """The number of each class's group [G]. Raise `UserError` for a class in two."""
    if source.within is None:
        return None
    values, number = number_words(source.within)
    first = np.unique(group, return_index=True)[1]  # the first row of each class
    of_class: Index = number[first].astype(np.intp)
    wrong = np.flatnonzero(number != of_class[group])
    if len(wrong):
        row, before = int(wrong[0]), int(first[group[wrong[0]]])
        texts = (names[group[row]], values[number[row]], values[number[before]])
        label, value, other = (shorten(text) for text in texts)
        raise UserError(
            f"{source.place(row)}: class {label} is in the group {value}, but in {other} at {source.place(before)}; "
            "data.within needs one group for each class"
        )
    return of_class


def _read_split(source: Source, names: Sequence[str], group: Index) -> dict[str, Split | None]:
    """The split of each group. Raise `UserError` for an unknown word, and for a group in two splits."""
    given: dict[str, Split | None] = {}
    if source.split is None:
        return given
    first: dict[str, int] = {}
    for row, word in enumerate(source.split):
        split, name = SPLIT_NAMES.get(word.lower()), names[group[row]]
        if split is None:
            raise UserError(f"{source.place(row)}: split {shorten(word)!r} is none of train, val, test")
        if given.setdefault(name, split) != split:
            before = f"but in {given[name]} at {source.place(first[name])}"
            raise UserError(
                f"{source.place(row)}: {source.noun} {shorten(name)} is in {split}, {before}; a {source.noun} belongs "
                "to one split"
            )
        first.setdefault(name, row)
    return given


def arrange(x: Array, content: str) -> tuple[Array, str]:
    """The rows with a channel axis where their content has one, and the content.

    `auto`: two axes are vectors, four images; three are images [n, H, W] if the numbers are unsigned bytes or 16 bits,
    else signals [n, C, L]. Raise `SettingError` for other shapes.
    """
    require(content in CONTENTS, "content", content, "choices: " + ", ".join(CONTENTS))
    x = x[:, None] if x.ndim == 1 else x
    if content == "auto":
        three = "images" if x.dtype in (np.uint8, np.uint16) else "signals"
        content = {2: "vectors", 3: three, 4: "images"}.get(x.ndim, "auto")
    shape = list(x.shape)
    require(x.ndim in AXES.get(content, ()), "x", shape, f"is no shape of {'rows' if content == 'auto' else content}")
    require(x.size > 0, "x", shape, "has no numbers")
    without_channel = (content == "images" and x.ndim == 3) or (content == "signals" and x.ndim == 2)
    return (x[:, None] if without_channel else x), content


def _refuse_infinite(values: Array, columns: Sequence[str], source: Source) -> None:
    for start in range(0, len(values) if values.dtype.kind == "f" else 0, step := _rows_a_chunk(values)):
        bad = np.argwhere(~np.isfinite(values[start : start + step]))
        if len(bad):
            row, *at = bad[0].tolist()
            where = f"column {columns[at[0]]}" if columns else f"position {at}"
            value = values[(start + row, *at)]
            raise UserError(f"{source.place(start + row)}: {where} holds {value}; remove or fill such rows first")


def _describe_inputs(x: Array, content: str, names: Sequence[str]) -> str:
    if 0 < len(names) <= NAMES_SHOWN:
        return ", ".join(names)
    if content == "vectors":
        return count_nouns(x.shape[1], "column" if names else "feature")
    return f"{content} {'x'.join(map(str, x.shape[1:]))}"


def _scale_inputs(x: Array, training: Index, content: str, scale: str, by: str) -> Scale:
    deep = x.dtype in (np.uint8, np.uint16)
    require(
        scale != "depth" or deep, "scale", scale, f"is for numbers of 8 or 16 bits without a sign; these are {x.dtype}"
    )
    if scale == "depth" or (scale == "auto" and content == "images" and deep):
        most = float(np.iinfo(x.dtype).max)
        return Scale(np.zeros(()), np.array(most), f"divided by {most:.0f}")
    if scale == "none" or (scale == "auto" and content == "images"):
        return _keep_scale(())
    if content == "vectors":
        return _fit(x, training, (0,), by)
    return _fit(x, training, (0, *range(2, x.ndim)), f"{by}, each channel")


def _keep_scale(shape: tuple[int, ...]) -> Scale:
    return Scale(np.zeros(shape), np.ones(shape), "as they are")


def _fit(values: Array, rows: Index, axes: tuple[int, ...], words: str) -> Scale:
    """Mean and deviation of the given rows over these axes, in float64; a constant has the deviation 1."""
    step, mean = _rows_a_chunk(values), np.zeros(())
    for power in (1, 2):
        total = 0.0
        for start in range(0, len(rows), step):
            chunk = values[rows[start : start + step]].astype(np.float64)
            total = total + ((chunk - mean) ** power).sum(axes, keepdims=True)[0]
        moment = total / (len(rows) * np.prod([values.shape[a] for a in axes[1:]]))
        mean, variance = (moment, moment) if power == 1 else (mean, moment)
    varies = variance > (1e-12 * np.maximum(np.abs(mean), 1e-150)) ** 2
    return Scale(mean, np.where(varies, np.sqrt(variance), 1.0), words)


def _apply(values: Array, rows: Index, scale: Scale) -> Array:
    """The given rows scaled, float32; the arithmetic is in float64."""
    step, scaled = _rows_a_chunk(values), np.empty((len(rows), *values.shape[1:]), np.float32)
    for start in range(0, len(rows), step):
        chunk = values[rows[start : start + step]].astype(np.float64)
        scaled[start : start + step] = (chunk - scale.mean) / scale.deviation
    return scaled


def _rows_a_chunk(values: Array) -> int:
    return max(1, CHUNK // max(1, int(np.prod(values.shape[1:]))))

"""Your own signals: recordings cut to windows of `length` readings, one every `stride`.

With a class for each recording it is a classification of windows. Without one it is a regression, a forecast:
recordings are tasks, and the targets of a window are the `horizon` readings after it, of every channel.

A window never reaches from one recording into another, and a class or task belongs to one split, so that no recording
is in two. Unless `overlap` is set, no two windows of an episode share a reading, forecasts included: windows whose
numbers in their recording are equal modulo m = ceil((length + horizon) / stride) form a set without overlaps, and an
episode draws all windows of a class from one of these m sets.

A csv has a row for each recording: the columns of its class, task and split, then its readings in order. Shorter
recordings end in empty cells. An npz has `x` [R, L] or [R, C, L], or arrays arr_0, arr_1, ... of [L] or [C, L] each (as
`np.savez(path, *recordings, label=label)` writes them), and `label`, `task`, `split` [R].
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from metarun.data.arrays import Arrays, as_words, check_numbers, read_arrays
from metarun.data.columns import Columns, is_missing, read_columns
from metarun.data.files import expand_path
from metarun.data.row_groups import Grouping, Source, group_rows
from metarun.data.rows import Array, RowData
from metarun.errors import UserError, require

TABLES = (".csv", ".tsv", ".txt", ".parquet", ".pq")


class Cut(NamedTuple):
    """How recordings become windows; the horizon is 0 in a classification."""

    length: int
    stride: int
    horizon: int
    overlap: bool

    @property
    def span(self) -> int:
        return self.length + self.horizon


class Recordings(NamedTuple):
    """Signals [C, L], and the class, task and split of each; None: not given."""

    signals: Sequence[Array]
    label: Sequence[str] | None
    task: Sequence[str] | None
    split: Sequence[str] | None
    place: Callable[[int], str]


def windows(
    file: str | None,
    label: str | None,
    task: str | None,
    split: str | None,
    length: int | None,
    stride: int | None,
    horizon: int,
    overlap: bool,
    grouping: Grouping,
) -> RowData:
    """The data set of these settings, which conf/data/windows.yaml explains."""
    names = {"label": label, "task": task, "split": split}
    if file and expand_path(file).suffix.lower() in TABLES:
        path = expand_path(file)
        require(path.is_file(), "file", file, "there is no such file")
        recordings = _read_table(read_columns(path), names)
    else:
        recordings = _read_arrays(read_arrays(file), names)
    return _cut_all(recordings, length, stride, horizon, overlap, grouping)


def from_recordings(
    recordings: Any,
    *,
    length: int,
    stride: int | None = None,
    label: Sequence[Any] | None = None,
    task: Sequence[Any] | None = None,
    split: Sequence[str] | None = None,
    horizon: int = 1,
    overlap: bool = False,
    split_seed: int = 0,
    ratios: Sequence[float] = (0.6, 0.2, 0.2),
    min_rows: int | None = None,
    scale: str = "auto",
) -> RowData:
    """The data set of windows of signals, for `metarun.run(config, dataset=...)`.

    Args:
        recordings: arrays [L] or [C, L] of any lengths.
        length: readings of a window.
        stride: from the start of one window to that of the next; None: `length`, of a
            forecast `length + horizon`, so that windows share no reading.
        label: the class of each recording; None: a regression, whose targets are the next readings.
        task: the task of each recording, of a regression; None: each is one.
        split: train, val or test of each recording.
        horizon: readings to forecast, of a regression.
        overlap: whether windows of an episode may share readings.
        split_seed, ratios, min_rows, scale: as in `from_arrays`; `min_rows` counts windows.
    """
    given = {"label": label, "task": task, "split": split}
    values: dict[str, Any] = {f"arr_{i}": np.asarray(recording) for i, recording in enumerate(recordings)}
    values |= {key: np.asarray(value) for key, value in given.items() if value is not None}
    read = _read_arrays(Arrays(values, "from_recordings"), {key: key for key in given})
    return _cut_all(read, length, stride, horizon, overlap, Grouping(split_seed, tuple(ratios), min_rows, scale))


def _cut_all(
    recordings: Recordings, length: int | None, stride: int | None, horizon: int, overlap: bool, grouping: Grouping
) -> RowData:
    forecasts = recordings.label is None
    require(length is not None and length >= 1, "length", length, "set it to the readings of a window, at least 1")
    require(stride is None or stride >= 1, "stride", stride, "must be at least 1, or null for the length (and horizon)")
    require(not forecasts or horizon >= 1, "horizon", horizon, "must be at least 1, the readings to forecast")
    readings_ahead = horizon if forecasts else 0
    cut = Cut(int(length or 0), stride or int(length or 0) + readings_ahead, readings_ahead, overlap)
    pieces, owners, numbers = [], [], []
    for owner, signal in enumerate(recordings.signals):
        if signal.shape[1] < cut.span:
            beyond = f" and {cut.horizon} to forecast" if cut.horizon else ""
            has = f"has {signal.shape[1]} readings, a window {cut.length}{beyond} (data.length)"
            raise UserError(f"{recordings.place(owner)}: {has}; remove shorter recordings or shorten the windows")
        found = np.lib.stride_tricks.sliding_window_view(signal, cut.span, axis=1)[:, :: cut.stride].swapaxes(0, 1)
        pieces.append(found)
        owners += [owner] * len(found)
        numbers.append(np.arange(len(found)))
    spans = np.concatenate(pieces)  # [n, C, length + horizon]
    number, place = np.concatenate(numbers), recordings.place
    sets = min(math.ceil(cut.span / cut.stride), int(number.max()) + 1)
    group = recordings.task if forecasts else recordings.label
    names = [f"{i:0{len(str(len(recordings.signals) - 1))}d}" for i in range(len(recordings.signals))]
    ahead = spans[:, :, cut.length :].reshape(len(spans), -1) if forecasts else None
    shown = {"length": cut.length, "stride": cut.stride, "overlap": overlap}
    source = Source(
        x=spans[:, :, : cut.length],
        y=ahead,
        group=[(group or names)[owner] for owner in owners],
        place=lambda row: f"{place(owners[row])}, window {number[row]}",
        y_names=_name_targets(spans.shape[1], cut.horizon),
        split=None if recordings.split is None else [recordings.split[owner] for owner in owners],
        content="signals",
        part=None if overlap else number % sets,
        row="window",
        notes={"recordings": len(recordings.signals), "window": shown | ({"horizon": horizon} if forecasts else {})},
    )
    return group_rows(source, grouping)


def _name_targets(channels: int, horizon: int) -> tuple[str, ...]:
    """`next`, or `next2` of the second reading, or `channel1_next2`."""
    steps = ["next"] if horizon == 1 else [f"next{i + 1}" for i in range(horizon)]
    return tuple(step if channels == 1 else f"channel{c}_{step}" for c in range(channels) for step in steps)


def _read_arrays(found: Arrays, names: Mapping[str, str | None]) -> Recordings:
    picked = {key: found.pick(key, name) for key, name in names.items()}
    listed = sorted(
        (name for name in found.values if re.fullmatch(r"arr_\d{1,9}", name)), key=lambda name: int(name[4:])
    )
    if not listed and "x" not in found.values:
        raise UserError(f"{found.where}: has neither x [R, L] or [R, C, L] nor arr_0, arr_1, ... of a recording each")
    if not listed:
        check_numbers(found.where, "x", found.values["x"])
    arrays = [found.values[name] for name in listed] if listed else list(found.values["x"])
    for number, array in enumerate(arrays):
        at = f"{found.where}, recording {number}"
        check_numbers(at, "it", array)
        if array.ndim > 2 or (array.ndim == 2 and len(array) != len(np.atleast_2d(arrays[0]))):
            needed = "it must be [L], or [C, L] with the same channels in all"
            raise UserError(f"{at}: has the shape {list(array.shape)}; {needed}")
    words = {key: None if array is None else as_words(found.where, key, array) for key, array in picked.items()}
    for key, values in words.items():
        if values is not None and len(values) != len(arrays):
            raise UserError(f"{found.where}: has {len(arrays)} recordings and {len(values)} of {key}")
    where = found.where
    return Recordings([np.atleast_2d(a) for a in arrays], **words, place=lambda r: f"{where}, recording {r}")


def _read_table(columns: Columns, names: Mapping[str, str | None]) -> Recordings:
    used = {k: n for k, n in names.items() if n is not None and (n in columns.values or n != k)}
    words = {key: columns.words(columns.find(key, used[key])) if key in used else None for key in names}
    readings = [name for name in columns.values if name not in used.values()]
    require(bool(readings), "file", columns.place(0), "has no columns of readings")
    present = np.array([[not is_missing(value) for value in columns.values[name]] for name in readings])  # [L, R]
    lengths = present.sum(0)
    for row in np.flatnonzero(present.argmin(0) != np.where(lengths == len(readings), 0, lengths)):
        name = readings[int(present[:, row].argmin())]
        gap = f"column {name} has no value, but a later one has"
        raise UserError(f"{columns.place(int(row))}: {gap}; fill it first")
    signals = np.zeros((len(lengths), len(readings)))
    for index, name in enumerate(readings):
        rows = np.flatnonzero(present[index])
        column = columns._replace(values={name: columns.values[name]})  # alone: each of L columns would copy all L
        signals[rows, index] = column.take(rows).numbers([name])[:, 0]
    return Recordings([s[None, :n] for s, n in zip(signals, lengths, strict=True)], **words, place=columns.place)

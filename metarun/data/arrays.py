"""Your own arrays: an npz or safetensors file, a folder of .npy files, or arrays in Python.

`x` holds the rows: vectors [n, D], signals [n, C, L], images [n, H, W] or [n, C, H, W]. With `label` [n] it is a
classification; with `y` [n] or [n, d_out] and `task` [n] a regression. `split` [n], if it is there, holds train, val,
test. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metarun.data.files import expand_path
from metarun.data.npy import LONGEST_REASON, check_regular, read_npy, read_npz
from metarun.data.row_groups import Grouping, Source, group_rows
from metarun.data.rows import Array, RowData
from metarun.errors import SettingError, UserError, nearest, one_line, require
from metarun.storage.text import shorten

NUMBERS = "biuf"  # kinds of NumPy's types


class Arrays(NamedTuple):
    """Arrays by name, and where they come from, with which messages begin."""

    values: Mapping[str, Array]
    where: str

    def pick(self, key: str, name: Any) -> Array | None:
        """The array that the setting `key` names. None if the setting is null, or its default is not there."""
        if name is None or (name == key and name not in self.values):
            return None
        if name not in self.values:
            raise SettingError(key, name, f"{self.where} has no such array, {nearest(str(name), self.values)}")
        return self.values[str(name)]


def arrays(
    file: str | None,
    x: str,
    y: str | None,
    task: str | None,
    label: str | None,
    split: str | None,
    content: str,
    grouping: Grouping,
    within: str | None = None,
) -> RowData:
    """The data set of these settings, which conf/data/arrays.yaml explains."""
    found = read_arrays(file)
    rows = found.pick("x", x)
    if rows is None:
        raise SettingError("x", x, f"{found.where} has no such array, {nearest(x, found.values)}")
    columns = {"y": y, "task": task, "label": label, "split": split, "within": within}
    picked = {key: found.pick(key, name) for key, name in columns.items()}
    return _group(found.where, rows, picked, content, grouping, str(within))


def from_arrays(
    x: Any,
    *,
    label: Any = None,
    y: Any = None,
    task: Any = None,
    split: Any = None,
    within: Any = None,
    content: str = "auto",
    split_seed: int = 0,
    ratios: Sequence[float] = (0.6, 0.2, 0.2),
    min_rows: int | None = None,
    scale: str = "auto",
) -> RowData:
    """The data set of arrays (NumPy, torch on the CPU, lists), for `metarun.run(config, dataset=...)`.

    Args:
        x: the rows: vectors [n, D], signals [n, C, L], images [n, H, W] or [n, C, H, W].
        label: the class of each row [n], of a classification.
        y: the targets [n] or [n, d_out] of a regression, with `task`.
        task: the task of each row [n].
        split: train, val or test for each row [n], the same for all of a class or task; None: by `ratios`.
        within: a word for each row, the same for all of a class: all classes of an episode have the same.
        content: images, signals or vectors; auto: by the number of axes.
        split_seed: of the shuffle that `ratios` cuts.
        ratios: shares of the classes or tasks for train, val and test.
        min_rows: leave out classes or tasks with fewer rows.
        scale: zscore (by mean and deviation of the training rows), depth (of bytes and 16 bits: divided by the largest
            number), none; auto: depth for images of bytes and 16 bits, none for other images, else zscore.

    Raises:
        UserError: for arrays of other shapes or types, and numbers that are not finite.
    """
    picked = {"label": label, "y": y, "task": task, "split": split, "within": within}
    given = {key: None if value is None else np.asarray(value) for key, value in picked.items()}
    return _group("from_arrays", np.asarray(x), given, content, Grouping(split_seed, tuple(ratios), min_rows, scale))


def from_tasks(
    tasks: Sequence[tuple[Any, Any]],
    *,
    split: Sequence[str] | None = None,
    split_seed: int = 0,
    ratios: Sequence[float] = (0.6, 0.2, 0.2),
    min_rows: int | None = None,
    scale: str = "auto",
) -> RowData:
    """The data set of a list of regression tasks, for `metarun.run(config, dataset=...)`.

    Args:
        tasks: (x, y) of each task, with x [n] or [n, D] and y [n] or [n, d_out]; n may differ.
        split: train, val or test of each task; None: by `ratios`.
        split_seed, ratios, min_rows, scale: as in `from_arrays`.
    """
    require(len(tasks) > 0, "tasks", "[]", "must be a list of pairs (x, y), one for each task")
    pairs = [(_as_columns(x), _as_columns(y)) for x, y in tasks]
    for number, (x, y) in enumerate(pairs):
        shapes = f"x {list(x.shape)} and y {list(y.shape)}"
        same = x.shape[1:] == pairs[0][0].shape[1:] and y.shape[1:] == pairs[0][1].shape[1:]
        require(len(x) == len(y), "tasks", number, f"has {shapes}: not one target for each row")
        require(same, "tasks", number, f"has {shapes}, other columns than the first task")
    lengths, digits = [len(x) for x, _ in pairs], len(str(len(pairs) - 1))
    return from_arrays(
        np.concatenate([x for x, _ in pairs]),
        y=np.concatenate([y for _, y in pairs]),
        task=np.repeat([f"{number:0{digits}d}" for number in range(len(pairs))], lengths),
        split=None if split is None else np.repeat(np.asarray(split), lengths),
        split_seed=split_seed,
        ratios=ratios,
        min_rows=min_rows,
        scale=scale,
    )


def _as_columns(values: Any) -> Array:
    array = np.asarray(values)
    return array[:, None] if array.ndim == 1 else array


def _group(
    where: str,
    x: Array,
    picked: Mapping[str, Array | None],
    content: str,
    grouping: Grouping,
    within_is: str = "within",
) -> RowData:
    label, y, task, split, within = (picked[key] for key in ("label", "y", "task", "split", "within"))
    if (label is None) == (task is None):
        has = "neither label nor task" if label is None else "both label and task"
        kinds = "label is for a classification, task and y for a regression (null leaves one out)"
        raise UserError(f"{where}: has {has}; {kinds}")
    if label is None and y is None:
        raise UserError(f"{where}: has task and no y, the targets of a regression")
    if label is None and within is not None:
        raise UserError(f"{where}: within is for a classification, whose classes it groups; this has task")
    check_numbers(where, "x", x)
    for key, array in picked.items():
        if array is not None and len(array) != len(x):
            raise UserError(f"{where}: x has {len(x)} rows, {key} has {len(array)}; each needs one for every row")
    targets = None
    if label is None and y is not None:
        check_numbers(where, "y", y)
        targets = _as_columns(y).reshape(len(y), -1)
    group = label if label is not None else task
    names = [] if targets is None else ["y"] if targets.shape[1] == 1 else [f"y{i}" for i in range(targets.shape[1])]
    source = Source(
        x=x,
        y=targets,
        group=as_words(where, "task" if label is None else "label", group),
        place=lambda row: f"{where}, row {row}",
        y_names=tuple(names),
        split=None if split is None else as_words(where, "split", split),
        within=None if within is None else as_words(where, "within", within),
        content=content,
        notes={} if within is None else {"within": within_is},
    )
    return group_rows(source, grouping)


def check_numbers(where: str, name: str, array: Array) -> None:
    """Raise `UserError` unless the array has numbers in rows."""
    if array.dtype.kind not in NUMBERS:
        raise UserError(f"{where}: {name} holds {array.dtype}, not numbers")
    if array.ndim == 0 or not array.size:
        raise UserError(f"{where}: {name} has the shape {list(array.shape)}, and no rows")


def as_words(where: str, name: str, array: Any) -> list[str]:
    """Labels [n] of any type as text."""
    array = np.asarray(array)
    if array.ndim != 1 or array.dtype.kind not in "biufUSO":
        shape = f"has the shape {list(array.shape)} of {array.dtype}"
        raise UserError(f"{where}: {name} {shape}; it needs one word or number a row")
    words = [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in array.tolist()]
    if "" in words or "nan" in words:
        row = min(words.index(word) for word in ("", "nan") if word in words)
        raise UserError(f"{where}, row {row}: {name} is empty; every row needs a value")
    return words


def read_arrays(file: str | None) -> Arrays:
    """The arrays of an npz or safetensors file, or of a folder of .npy files, by name."""
    require(bool(file), "file", file, "set it to the path of an npz or safetensors file, or of a folder of .npy files")
    path = expand_path(str(file))
    require(path.exists(), "file", file, "there is no such file or folder")
    readable = path.is_dir() or path.suffix in (".npz", ".safetensors")
    kinds = "must be npz, safetensors or a folder of .npy files (data=table reads csv and parquet)"
    require(readable, "file", file, kinds)
    try:
        if path.is_dir():
            values = {item.stem: read_npy(item) for item in sorted(path.glob("*.npy"))}
        else:
            values = _read_safetensors(path) if path.suffix == ".safetensors" else read_npz(path)
    except ValueError as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    require(bool(values), "file", file, "holds no named arrays: np.savez(path, x=x, label=label) writes such a file")
    return Arrays(values, str(path))


def _read_safetensors(path: Path) -> dict[str, Array]:
    try:
        from safetensors import numpy  # optional
    except ImportError as error:
        raise UserError(f"{path}: needs safetensors: pip install 'metarun[export]'") from error
    check_regular(path)
    try:
        return numpy.load_file(path)
    except Exception as error:  # of a type that NumPy does not have, several kinds
        unknown = isinstance(error, (AttributeError, TypeError)) and "float" in str(error)
        hint = "; save it as float32" if unknown else ""
        raise ValueError(shorten(one_line(error), LONGEST_REASON) + hint) from error

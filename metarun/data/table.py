"""Your own table, a csv or parquet file or a DataFrame: a column says which class or which task a row is of.

`label` names the column of the classes: classification. `task` and `y` name those of the tasks and of the targets:
regression. All other columns are inputs unless `x` names some.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarun.data.columns import Columns, frame_columns, read_columns
from metarun.data.files import expand_path
from metarun.data.row_groups import Grouping, Source, group_rows
from metarun.data.rows import RowData
from metarun.errors import SettingError, list_names, require

ARRAYS = (".npz", ".npy", ".safetensors")


def table(
    file: str | None, x: Any, y: Any, task: Any, label: Any, split: Any, grouping: Grouping, within: Any = None
) -> RowData:
    """The data set of these settings, which conf/data/table.yaml explains."""
    require(bool(file), "file", file, "set it to the path of a csv or parquet file")
    path = expand_path(str(file))
    require(path.is_file(), "file", file, "there is no such file")
    require(path.suffix not in ARRAYS, "file", file, "holds arrays, which data=arrays reads")
    return _choose_columns(read_columns(path), x, y, task, label, split, within, grouping)


def from_frame(
    frame: Any,
    *,
    x: Any = None,
    y: Any = None,
    task: Any = None,
    label: Any = None,
    split: Any = None,
    within: Any = None,
    split_seed: int = 0,
    ratios: tuple[float, ...] = (0.6, 0.2, 0.2),
    min_rows: int | None = None,
    scale: str = "auto",
) -> RowData:
    """The data set of a DataFrame (pandas or polars), for `metarun.run(config, dataset=...)`.

    Args:
        frame: a row for each example.
        x: names of the input columns; None: all that are nothing else.
        y: names of the target columns, of a regression.
        task: the column that says which task a row is of, of a regression.
        label: the column of the classes, of a classification, in place of `y` and `task`.
        split: a column with train, val or test, the same for all rows of a class or task; None: by `ratios`.
        within: a column with one value for all rows of a class: all classes of an episode have the same.
        split_seed: of the shuffle that `ratios` cuts.
        ratios: shares of the classes or tasks for train, val and test.
        min_rows: leave out classes or tasks with fewer rows.
        scale: auto or zscore (by mean and deviation of the training rows), or none.

    Raises:
        UserError: for a column that is not there, missing values, text in place of numbers.
    """
    grouping = Grouping(split_seed, tuple(ratios), min_rows, scale)
    return _choose_columns(frame_columns(frame), x, y, task, label, split, within, grouping)


def _choose_columns(
    columns: Columns, x: Any, y: Any, task: Any, label: Any, split: Any, within: Any, grouping: Grouping
) -> RowData:
    if (label is None) == (task is None):
        known = list_names(filter(None, columns.values))
        needed = "name the column of the classes, or else data.task and data.y of a regression, not both"
        raise SettingError("label", label, f"{needed}; columns: {known}")
    key, group = ("task", str(task)) if label is None else ("label", str(label))
    group = columns.find(key, group)
    targets = _list_names("y", y, columns)
    if label is None:
        require(bool(targets), "y", y, "name the columns of the targets, as [price]")
    else:
        require(not targets, "y", y, "is for data.task; with data.label the classes are what is learned")
    require(within is None or label is not None, "within", within, "is for data.label, whose classes it groups")
    within = None if within is None else columns.find("within", str(within))
    split_column, split_file = _find_split(split, columns)
    used = {group, *targets, *([split_column] if split_column else [])}
    inputs = _list_names("x", x, columns) or [name for name in columns.values if name and name not in {*used, within}]
    twice = sorted({*inputs} & used)
    named, wrong = f"[{list_names(inputs)}]", f"column {list_names(twice)} is of task, label, split or y; leave it out"
    require(not twice, "x", named, wrong)
    require(bool(inputs), "x", x, "there is no column left for the inputs")
    source = Source(
        x=_take_numbers("x", x, inputs, columns),
        y=_take_numbers("y", y, targets, columns) if targets else None,
        group=columns.words(group),
        place=columns.place,
        x_names=tuple(inputs),
        y_names=tuple(targets),
        split=columns.words(split_column) if split_column else None,
        split_file=split_file,
        within=None if within is None else columns.words(within),
        content="vectors",
        notes={"columns": {key: group, "x": inputs, "y": targets, "split": split_column}}
        | ({} if within is None else {"within": within}),
    )
    return group_rows(source, grouping)


def _list_names(key: str, value: Any, columns: Columns) -> list[str]:
    """The column names of a setting: one, several, or None."""
    if value is None:
        return []
    names = [str(name) for name in ([value] if isinstance(value, (str, int)) else value)]
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    require(not twice, key, f"[{list_names(names)}]", f"names column {list_names(twice)} twice")
    return [columns.find(key, name) for name in names]


def _take_numbers(key: str, value: Any, names: list[str], columns: Columns) -> NDArray[np.float64]:
    """[n, D] of these columns. Raise `SettingError` for a column of words, and say what to do with it."""
    words = {name: first for name in names if (first := columns.first_word(name)) is not None}
    if words:
        name, first = next(iter(words.items()))
        kept = list_names(other for other in names if other not in words).replace(", ", ",")
        remedy = f"data.label={name} makes them classes"
        if key == "x":
            remedy = (f"data.x=[{kept}] leaves it out" if kept else "leave it out") + "; to keep it, make a column of "
            remedy += "0 and 1 for each of its words"
        raise SettingError(key, value, f"column {name} holds words, as {first!r}, not numbers; {remedy}")
    return columns.numbers(names)


def _find_split(split: Any, columns: Columns) -> tuple[str | None, str | None]:
    """The column of the split, or the path of a split.json."""
    if split is None or str(split) in columns.values:
        return split if split is None else str(split), None
    if expand_path(str(split)).exists():
        return None, str(split)
    return columns.find("split", str(split)), None

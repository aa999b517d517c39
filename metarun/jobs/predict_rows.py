"""job=predict for rows of numbers: a table of support rows, a table of inputs, and the predictions beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from metarun.compute.device import make_placement
from metarun.config.schema import Config, to_dict
from metarun.data.columns import Columns, read_columns
from metarun.data.npy import read_npz
from metarun.data.row_groups import number_words
from metarun.errors import UserError, list_names
from metarun.jobs.predict import predict, require_path, restore_learner
from metarun.jobs.result import Result
from metarun.jobs.terminal import show, small_table
from metarun.report.figures.drawing import finish, look, panels, plot_band, style
from metarun.storage.run_folder import RunFolder
from metarun.storage.text import count_nouns, round_digits
from metarun.training.experiment import NO_PARTS, OwnParts, option_name
from metarun.types import Batch, Dataset, DatasetOptions, optional

SHOWN = 12  # rows that the terminal lists
Array = NDArray[np.float64]


def predict_rows(
    config: Config, record: RunFolder, source: RunFolder, dataset: Dataset, own: OwnParts = NO_PARTS
) -> Result:
    """Write predictions.csv, summary.json and, for one input and one target, predictions.png into the run folder."""
    x_names, y_names = name_columns(config, dataset)
    support = read_rows(config, "support", x_names, y_names)
    query = read_rows(config, "query", x_names, ())
    support_x, query_x = (take_numbers(columns, x_names) for columns in (support, query))
    placement = make_placement(config.device)
    classes: list[str] = []
    y: Any
    targets = np.empty(0)
    if dataset.kind == "classification":
        require_columns(support, y_names)
        classes, y = number_words(support.columns.words(y_names[0]))
    else:
        targets = take_numbers(support, y_names)
        y = encode(dataset, support_x, targets)[1]
    x, points = (as_tensor(encode(dataset, values, None)[0]) for values in (support_x, query_x))
    batch = Batch(placement.move(x), placement.move(as_tensor(y)))
    learner, params = restore_learner(config, source, dataset, placement, batch, own)
    found = predict(learner, params, batch, placement.move(points)).cpu().double()
    if classes:
        columns = describe_classes(found.softmax(1).numpy(), classes)
    else:
        columns = describe_values(dataset, found.numpy(), y_names)
    rows = [
        dict(zip(x_names, point.tolist(), strict=True)) | {name: values[i] for name, values in columns.items()}
        for i, point in enumerate(query_x)
    ]
    record.create(to_dict(config))
    record.write_table("predictions.csv", rows)
    summary = {"run": str(source.path), "algo": option_name("algo", config), "support": len(x), "rows": len(rows)}
    record.write_json("summary.json", summary)
    lines = [f"table: {record.path / 'predictions.csv'}"]
    if len(x_names) == len(y_names) == 1 and not classes:
        draw_predictions(record.path / "predictions.png", rows, x_names[0], y_names[0], support_x, targets)
        lines.append(f"figure: {record.path / 'predictions.png'}")
    given = f"{count_nouns(len(x), 'support row')}, {count_nouns(len(rows), 'row')} to predict"
    show(f"metarun: {summary['algo']} of {source.path}, {given}", *list_rows(rows), *lines)
    return Result("completed", summary, record.path, params)


class Rows(NamedTuple):
    """A table of the user's, and the setting that names it."""

    columns: Columns
    setting: str  # predict.support=points.csv


def read_rows(config: Config, name: str, x_names: Sequence[str], y_names: Sequence[str]) -> Rows:
    """The table of `predict.NAME`: csv, parquet, or npz with the arrays x and y (label, of classes)."""
    path = require_path(config, name)
    setting = f"predict.{name}={path}"
    if path.suffix != ".npz":
        return Rows(read_columns(path), setting)
    try:
        arrays = read_npz(path)
    except ValueError as error:
        raise UserError(f"{setting}: is not a readable npz file ({error})") from error
    for key in arrays.keys() & {"x", "y", "label"}:
        if not arrays[key].size:
            raise UserError(f"{setting}: {key} has the shape {list(arrays[key].shape)}, and no rows")
    parts = [(x_names, "x"), (y_names, "label" if "label" in arrays else "y")]
    values = {
        column: arrays[key].reshape(len(arrays[key]), -1)[:, i]
        for names, key in parts
        for i, column in enumerate(names)
        if key in arrays and i < arrays[key].reshape(len(arrays[key]), -1).shape[1]
    }
    return Rows(Columns(values, lambda row: f"{path}, row {row}"), setting)


def list_rows(rows: Sequence[dict[str, Any]]) -> list[Any]:
    """The first rows as a table for the terminal, and how many there are more."""
    table = small_table(*rows[0], text=[name for name, value in rows[0].items() if isinstance(value, str)])
    for row in rows[:SHOWN]:
        table.add_row(*(value if isinstance(value, str) else f"{value:.4g}" for value in row.values()))
    return [table, *([f"... and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else [])]


def name_columns(config: Config, dataset: Dataset) -> tuple[list[str], list[str]]:
    """The columns of the inputs, and of the targets or of the class, as the run's own table had them. Without one: x
    and y, or x0, x1, ... and y0, y1, ..., and label."""
    shape = dataset.input_shape()
    if len(shape) != 1:
        name = option_name("data", config)
        raise UserError(f"job=predict: data={name} has inputs of shape {list(shape)}; tables have rows of numbers")
    x_names = list(optional(dataset, DatasetOptions, "x_names") or _number_names("x", shape[0]))
    if dataset.kind == "classification":
        return x_names, [config.data.get("label") or "label"]
    return x_names, list(optional(dataset, DatasetOptions, "y_names") or _number_names("y", dataset.outputs(1)))


def _number_names(letter: str, count: int) -> list[str]:
    return [letter] if count == 1 else [f"{letter}{i}" for i in range(count)]


def take_numbers(rows: Rows, names: Sequence[str]) -> Array:
    """[n, D] of these columns."""
    require_columns(rows, names)
    return rows.columns.numbers(names)


def require_columns(rows: Rows, names: Sequence[str]) -> None:
    """Raise `UserError` if a column is not there."""
    for name in names:
        if name not in rows.columns.values:
            has = f"the run has {list_names(names)}, the file {list_names(rows.columns.values)}"
            raise UserError(f"{rows.setting}: has no column {name}; {has}")


def encode(dataset: Dataset, x: Array, y: Array | None) -> tuple[Array, Array | None]:
    """Rows in the units of the data -> what the network gets."""
    scale = optional(dataset, DatasetOptions, "encode")
    return scale(x, y) if scale else (x, y)


def as_tensor(values: Any) -> Any:
    """Numbers as float32, labels as they are."""
    tensor = torch.as_tensor(np.asarray(values))
    return tensor.float() if tensor.is_floating_point() else tensor


def describe_values(dataset: Dataset, found: Array, names: Sequence[str]) -> dict[str, list[Any]]:
    values, deviations = found[:, : len(names)], found[:, len(names) :]
    decode = optional(dataset, DatasetOptions, "decode")
    if decode:
        values, deviations = decode(values, deviations)
    columns = {name: _round(values[:, i]) for i, name in enumerate(names)}
    return columns | {f"deviation_{name}": _round(deviations[:, i]) for i, name in enumerate(names) if deviations.size}


def _round(values: Array) -> list[float]:
    return [round_digits(value) for value in values.tolist()]


def describe_classes(probabilities: Array, names: Sequence[str]) -> dict[str, list[Any]]:
    best = probabilities.argmax(1)
    columns: dict[str, list[Any]] = {
        "predicted": [names[i] for i in best],
        "probability": _round(probabilities.max(1)),
    }
    return columns | {f"p({name})": _round(probabilities[:, i]) for i, name in enumerate(names)}


def draw_predictions(
    path: Path, rows: Sequence[dict[str, Any]], x: str, y: str, support_x: Array, support_y: Array
) -> None:
    """Draw the predictions over x with their 95 % band, if they have one, and the support rows."""
    ordered = sorted(rows, key=lambda row: row[x])
    at, mean = (np.array([row[name] for row in ordered]) for name in (x, y))
    half = 1.96 * np.array([row.get(f"deviation_{y}", 0.0) for row in ordered])
    with style():
        figure, (axes,) = panels(1, columns=1, height=3.0)
        label = "prediction, 95 % band" if half.any() else "prediction"
        plot_band(axes, at, mean, mean - half, mean + half, look(0), label)
        axes.plot(support_x[:, 0], support_y[:, 0], "o", color="black", markersize=4, label="support")
        finish(axes, "Predictions", x, y, [])
        axes.legend()
        figure.savefig(path, dpi=200)

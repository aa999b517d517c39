"""job=predict and metarun.load on rows of numbers: points of a function, rows of a table."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import metarun

TINY = ["train.steps=4", "train.tasks=2", "val.tasks=2", "test.tasks=3", "report=false", "device.threads=1"]


def write(path: Path, columns: dict[str, Any]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def read(folder: Path) -> list[dict[str, str]]:
    with open(folder / "predictions.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def predict(run: Path, support: Path, query: Path, folder: Path) -> list[dict[str, str]]:
    asked = ["job=predict", f"run={run}", f"predict.support={support}", f"predict.query={query}"]
    metarun.run(metarun.compose(asked), folder)
    return read(folder)


@pytest.fixture
def points(tmp_path: Path) -> tuple[Path, Path]:
    x = np.linspace(-4, 4, 6)
    return write(tmp_path / "s.csv", {"x": x, "y": np.sin(x)}), write(tmp_path / "q.csv", {"x": np.linspace(-5, 5, 9)})


@pytest.mark.parametrize("algo", ["maml", "cnp"])
def test_points_are_predicted_as_in_python(algo: str, points: tuple[Path, Path], tmp_path: Path) -> None:
    metarun.run(metarun.compose([f"algo={algo}", *TINY]), tmp_path / "run")
    rows = predict(tmp_path / "run", *points, tmp_path / "predicted")
    x = np.linspace(-4, 4, 6)
    adapted = metarun.load(tmp_path / "run").adapt(x, np.sin(x))
    values, deviations = adapted.predict_with_deviation(np.linspace(-5, 5, 9))
    written = [text for row in rows for name, text in row.items() if name != "x"]
    assert all(len(text.strip("-").replace(".", "").lstrip("0")) <= 7 for text in written)  # significant digits
    assert [row["x"] for row in rows] == [str(value) for value in np.linspace(-5, 5, 9)]
    assert not (tmp_path / "predicted/checkpoints").exists()
    assert [float(row["y"]) for row in rows] == pytest.approx(values[:, 0].tolist(), rel=1e-5)
    assert ("deviation_y" in rows[0]) == (algo == "cnp")
    if algo == "cnp":
        assert [float(row["deviation_y"]) for row in rows] == pytest.approx(deviations[:, 0].tolist(), rel=1e-5)
    assert (tmp_path / "predicted/predictions.png").exists()


def test_arrays_are_predicted_as_a_table(points: tuple[Path, Path], tmp_path: Path) -> None:
    metarun.run(metarun.compose(TINY), tmp_path / "run")
    x = np.linspace(-4, 4, 6)
    np.savez(tmp_path / "s.npz", x=x, y=np.sin(x))
    np.savez(tmp_path / "q.npz", x=np.linspace(-5, 5, 9))
    arrays = predict(tmp_path / "run", tmp_path / "s.npz", tmp_path / "q.npz", tmp_path / "a")
    assert arrays == predict(tmp_path / "run", *points, tmp_path / "b")


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    """A run on a table of tasks in large units: price = a width + b height, a and b of each task."""
    generator = np.random.default_rng(0)
    task = np.repeat(np.arange(30), 20)
    width, height = generator.uniform(100, 300, (2, 600))
    slopes = generator.uniform(1, 3, (30, 2))
    price = 1000 + slopes[task, 0] * width + slopes[task, 1] * height
    table = {"shop": task, "width": width, "height": height, "price": price}
    file = write(tmp_path / "shops.csv", table)
    own = [f"data.file={file}", "data.task=shop", "data.x=[width,height]", "data.y=[price]"]
    metarun.run(metarun.compose(["data=table", "algo=maml", *TINY, *own]), tmp_path / "run")
    return tmp_path / "run"


def test_a_table_is_predicted_in_its_own_units(prices: Path, tmp_path: Path) -> None:
    """Untrained weights predict the mean of the training tasks: about 1800, and not about 0."""
    support = write(tmp_path / "s.csv", {"width": [150, 200], "height": [150, 250], "price": [1700, 2000]})
    query = write(tmp_path / "q.csv", {"height": [120.0, 180.0], "width": [200.0, 220.0]})
    rows = predict(prices, support, query, tmp_path / "predicted")
    assert [list(row) for row in rows] == [["width", "height", "price"]] * 2
    assert all(1000 < float(row["price"]) < 3000 for row in rows)
    run = metarun.load(prices)
    values = run.adapt([[150, 150], [200, 250]], [1700, 2000]).predict([[200, 120], [220, 180]])
    assert values[:, 0].tolist() == pytest.approx([float(row["price"]) for row in rows], rel=1e-6)


def test_rows_of_classes_have_labels_and_probabilities(tmp_path: Path) -> None:
    label = np.repeat(np.arange(20), 8)
    table = {"a": label * 1.0, "b": -label * 2.0, "kind": [f"k{n}" for n in label]}
    file = write(tmp_path / "kinds.csv", table)
    own = [f"data.file={file}", "data.label=kind", "data.ways=3", "data.shots=2", "data.queries=3"]
    metarun.run(metarun.compose(["data=table", "algo=protonet", *TINY, *own, "data.test_queries=3"]), tmp_path / "run")
    support = write(
        tmp_path / "s.csv", {"a": [1, 1.1, 9, 9.1], "b": [-2, -2, -18, -18], "kind": ["low"] * 2 + ["high"] * 2}
    )
    query = write(tmp_path / "q.csv", {"a": [1.05, 8.9], "b": [-2.0, -18.0]})
    rows = predict(tmp_path / "run", support, query, tmp_path / "predicted")
    assert [row["predicted"] for row in rows] == ["low", "high"]
    assert float(rows[0]["p(low)"]) + float(rows[0]["p(high)"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("support", "line"),
    [
        ({"x": [1.0]}, r"predict.support=.*s.csv: has no column y; the run has y, the file x"),
        ({"x": ["one"], "y": [1.0]}, r"s.csv, line 2: column x holds 'one', which is no number"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(support: dict[str, Any], line: str, tmp_path: Path) -> None:
    metarun.run(metarun.compose(TINY), tmp_path / "run")
    write(tmp_path / "s.csv", support)
    write(tmp_path / "q.csv", {"x": [0.0]})
    with pytest.raises(metarun.UserError, match=line):
        predict(tmp_path / "run", tmp_path / "s.csv", tmp_path / "q.csv", tmp_path / "predicted")

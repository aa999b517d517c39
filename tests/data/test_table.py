"""Tables as tasks and as classes: the columns that are chosen, and a learner on one whose best error is known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import metarun as command

import metarun
from metarun.data import from_arrays, from_frame
from metarun.data.row_groups import Grouping
from metarun.data.rows import RowData
from metarun.data.table import table
from metarun.errors import SettingError, UserError
from metarun.training.episode_size import fill_ways
from metarun.training.experiment import build_dataset
from metarun.types import EpisodeSpec

SPEC = EpisodeSpec(1, 5, 4)
NOISE = 2.0


class Frame:
    """A DataFrame as far as metarun looks at one."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self.columns, self.values = list(columns), columns

    def __getitem__(self, name: str) -> Any:
        class Column:
            @staticmethod
            def to_numpy() -> np.ndarray:
                return self.values[name]

        return Column


def lines(tasks: int = 60, rows: int = 24) -> dict[str, np.ndarray]:
    """price = 100 + a width + noise, with a slope a ~ N(20, 5^2) for each site."""
    rng = np.random.default_rng(0)
    site = np.repeat([f"s{t:02d}" for t in range(tasks)], rows)
    width = rng.uniform(0, 10, tasks * rows).round(3)
    price = 100 + np.repeat(rng.normal(20, 5, tasks), rows) * width + NOISE * rng.normal(size=tasks * rows)
    part = np.repeat(["train", "val", "test"], [36 * rows, 12 * rows, 12 * rows])
    return {"site": site, "width": width, "price": price.round(6), "part": part}


def write(path: Path, columns: dict[str, np.ndarray]) -> Path:
    rows = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def read(path: Path, **settings: Any) -> RowData:
    columns = dict.fromkeys(("x", "y", "task", "label", "split", "within")) | settings
    return table(str(path), grouping=Grouping(scale=columns.pop("scale", "auto")), **columns)


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("table") / "sites.csv", lines())


@pytest.mark.parametrize(
    "columns",
    [{"task": "site", "y": ["price"], "split": "part"}, {"label": "site", "x": ["width", "price"]}],
    ids=["regression", "classification"],
)
def test_a_data_frame_gives_the_episodes_of_its_csv(csv: Path, columns: dict[str, Any]) -> None:
    from_file, made = read(csv, **columns), from_frame(Frame(lines()), **columns)
    assert from_file.facts() == made.facts()
    spec = SPEC._replace(ways=3) if "label" in columns else SPEC
    for a, b in zip(*(data.episodes("val", 1, 2, range(4), spec) for data in (from_file, made)), strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)


def test_a_real_data_frame(csv: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="makes a DataFrame")
    made = from_frame(pandas.read_csv(csv), task="site", y="price", split="part")
    assert made.facts() == read(csv, task="site", y="price", split="part").facts()


def test_inputs_are_the_columns_that_are_nothing_else(csv: Path) -> None:
    data = read(csv, task="site", y="price", split="part")
    assert data.facts()["columns"] == {"task": "site", "x": ["width"], "y": ["price"], "split": "part"}
    assert data.facts()["tasks"] == {"train": 36, "val": 12, "test": 12}
    assert (data.input_shape(), data.outputs(1), data.kind) == ((1,), 1, "regression")


def grouped(classes: int = 24, each: int = 6) -> dict[str, np.ndarray]:
    """Class c is of the kind c % 3 (the first kind has one class more) and has the value c."""
    label = np.repeat(np.arange(classes), each)
    return {"value": label * 1.0, "kind": np.array([f"k{c % 3}" for c in label]), "class": label}


@pytest.mark.parametrize("source", ["csv", "DataFrame", "arrays"])
def test_classes_of_a_task_are_within_one_value_of_a_column(source: str, tmp_path: Path) -> None:
    """And every class, and every kind with enough of them, comes."""
    columns, spec = grouped(), EpisodeSpec(3, 2, 3)
    settings: dict[str, Any] = {"label": "class", "within": "kind"}
    if source == "csv":
        data = read(write(tmp_path / "t.csv", columns), **settings, scale="none")
    elif source == "DataFrame":
        data = from_frame(Frame(columns), **settings, scale="none")
    else:
        data = from_arrays(columns["value"], label=columns["class"], within=columns["kind"], scale="none")
    for split in ("train", "val", "test"):
        ids = [int(name) for name in data.members[split]]
        most = max(sum(c % 3 == kind for c in ids) for kind in range(3))
        with pytest.raises(SettingError, match=f"ways=9: must be .*{most}, .*largest group"):
            data.check(split, spec._replace(ways=9))
        drawn = data.episodes(split, 0, 0, range(400), spec._replace(ways=2))
        values = torch.cat([drawn.support.x, drawn.query.x], 1)[..., 0].long()
        assert torch.equal(values % 3, values[:, :1].expand_as(values) % 3)
        assert [set(row.tolist()) for row in values] == [{row[0].item(), row[1].item()} for row in values]
        assert (values[:, 0] != values[:, 1]).all()
        assert {*values.flatten().tolist()} == {c for c in ids if sum(c % 3 == other % 3 for other in ids) > 1}
        names = data.class_names(split, 0, 0, range(400), spec._replace(ways=2))
        assert names == [(str(a), str(b)) for a, b in values[:, :2].tolist()]
    assert data.facts()["within"] == ("within" if source == "arrays" else "kind")
    assert data.input_shape() == (1,)


def test_ways_that_are_left_open_fit_the_groups(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", grouped())
    config = metarun.compose(["data=table", f"data.file={path}", "data.label=class", "data.within=kind"])
    dataset = build_dataset(config)
    ids = {split: [int(name) for name in names] for split, names in dataset.members.items()}  # type: ignore[attr-defined]
    most = min(max(sum(c % 3 == kind for c in found) for kind in range(3)) for found in ids.values())
    assert fill_ways(config, dataset).data["ways"] == min(5, most)


def test_a_split_may_be_that_of_another_run(csv: Path, tmp_path: Path) -> None:
    members = read(csv, task="site", y="price", split="part").members
    (tmp_path / "split.json").write_text(json.dumps(members))
    data = read(csv, task="site", y="price", x="width", split=str(tmp_path / "split.json"))
    assert data.members == members


MISTAKES: dict[str, dict[str, Any]] = {
    "label=None: name the column of the classes, or else data.task and data.y": {},
    "label=part: name the column of the classes, or else data.task": {"label": "part", "task": "site"},
    "task=sites: there is no such column, did you mean site?": {"task": "sites", "y": "price"},
    "y=None: name the columns of the targets, as [price]": {"task": "site"},
    "y=price: is for data.task; with data.label": {"label": "site", "y": "price"},
    "x=[site, width]: column site is of task, label, split or y": {"label": "site", "x": ["site", "width"]},
    "split=parts: there is no such column, did you mean part?": {"label": "site", "split": "parts"},
    "x=None: column part holds words, as 'train', not numbers; data.x=[width,price] leaves it out": {"label": "site"},
    "y=part: column part holds words, as 'train', not numbers; data.label=part makes them classes": {
        "task": "site",
        "y": "part",
    },
    "within=parts: there is no such column, did you mean part?": {"label": "site", "within": "parts"},
    "within=part: is for data.label, whose classes it groups": {"task": "site", "y": "price", "within": "part"},
    "line 3: class s00 is in the group": {"label": "site", "x": "price", "within": "width"},
    "y=[price, price]: names column price twice": {"task": "site", "y": ["price", "price"]},
    "x=[width, price, width]: names column width twice": {"label": "site", "x": ["width", "price", "width"]},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_each_mistake_gets_a_line(csv: Path, message: str) -> None:
    with pytest.raises(UserError) as error:
        read(csv, **MISTAKES[message])
    assert message in str(error.value)


def test_every_query_has_its_line(csv: Path) -> None:
    """Line 1 has the names of the columns, line 2 the first row."""
    width = lines()["width"]
    data = read(csv, label="site", x="width", scale="none")
    spec = EpisodeSpec(3, 2, 4)
    names, drawn = data.query_names("val", 0, 3, range(5), spec), data.episodes("val", 0, 3, range(5), spec)
    for task, x in zip(names, drawn.query.x, strict=True):
        assert [width[int(name.removeprefix("line ")) - 2] for name in task] == pytest.approx(x[:, 0].tolist())


def test_a_site_in_two_splits_is_named(tmp_path: Path) -> None:
    columns = lines(6, 3)
    columns["part"] = np.array(["train"] * 17 + ["test"])
    path = write(tmp_path / "t.csv", columns)
    with pytest.raises(UserError) as error:
        read(path, task="site", y="price", split="part")
    assert str(error.value) == (
        f"{path}, line 19: task s05 is in test, but in train at {path}, line 17; a task belongs to one split"
    )


def settings(csv: Path) -> list[str]:
    return ["data=table", f"data.file={csv}", "data.task=site", "data.y=[price]", "data.split=part"]


def test_the_command_says_what_it_understood(csv: Path, tmp_path: Path) -> None:
    done = command("job=data", *settings(csv), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "data set: table, split given (" in done.stdout
    for row in (["train", "36", "864", "24"], ["test", "12", "288", "24"]):
        assert row in [line.split() for line in done.stdout.splitlines()]
    data = lines()
    width = data["width"][:864]
    (shown,) = (line.split() for line in done.stdout.splitlines() if line.startswith("width"))
    assert shown == ["width", "input", *(f"{v:.4g}" for v in (width.mean(), width.std(), width.min(), width.max()))]
    assert "targets: price z-scored on 36 training tasks" in done.stdout


def test_ranges_are_those_of_the_file(tmp_path: Path) -> None:
    """Zero is not what float32 leaves of it."""
    columns = lines(10, 3) | {"width": np.tile([0.0, 1e-3, 12345.0], 10)}
    del columns["part"]
    data = read(write(tmp_path / "t.csv", columns), task="site", y="price", x="width")
    (width, _) = data.describe()["columns"]
    assert (width["low"], width["high"]) == (0.0, pytest.approx(12345.0))


def test_ways_that_are_left_open_are_those_of_the_smallest_split(csv: Path) -> None:
    for label, ways in (("site", 5), ("part", 2)):
        more = ["data.x=[width]", "data.split=null", f"data.label={label}", "data.task=null", "data.y=null"]
        config = metarun.compose([*settings(csv), *more, "data.ratios=[0.4,0.3,0.3]"])
        dataset = build_dataset(config)
        assert fill_ways(config, dataset).data["ways"] == ways
    regression = metarun.compose(settings(csv))
    assert fill_ways(regression, build_dataset(regression)).data["ways"] == 1


def test_a_wrong_column_ends_the_command_with_a_line(csv: Path, tmp_path: Path) -> None:
    done = command(*settings(csv), "data.x=[widht]", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == "metarun: data.x=widht: there is no such column, did you mean width?"


def test_the_best_predictor_has_the_error_of_the_noise(csv: Path) -> None:
    """Least squares through (0, 100), in units of the file: 1.67, as below."""
    data = read(csv, task="site", y="price", split="part")
    assert data.y_scale is not None
    drawn = data.episodes("train", 0, 0, range(2000), EpisodeSpec(1, 10, 10))
    support, query = (
        [b.double().numpy() * s.deviation + s.mean for b, s in zip(batch, (data.x_scale, data.y_scale), strict=True)]
        for batch in drawn
    )
    slope = (support[0] * (support[1] - 100)).sum(1) / (support[0] ** 2).sum(1)
    errors = np.abs(100 + slope[:, None] * query[0] - query[1])
    assert errors.mean() == pytest.approx(1.67, rel=0.05)


def test_a_learner_comes_near_the_best_error_of_a_table(csv: Path, tmp_path: Path) -> None:
    """With the slope known, the error is the noise: E|N(0, 2^2)| = 2 sqrt(2 / pi) = 1.596. Least squares through
    (0, 100) from K = 10 points has the variance s^2 / sum x_k^2 in its slope, about s^2 / (10 E x^2) = s^2 / 333, and
    so s^2 (1 + 33.3 / 333) in a prediction: 1.596 sqrt(1.1) = 1.67. Before adaptation the slopes' deviation of 5 gives
    E|5 x N(0, 1)| = 5 * 5 * 0.798 = 19.9."""
    small = ["data.shots=10", "data.queries=10", "data.test_queries=10", "algo.inner_lr=0.1", "algo.inner_steps=3"]
    quick = ["train.steps=600", "train.eval_every=200", "val.tasks=50", "test.tasks=200", "report=false"]
    config = metarun.compose([*settings(csv), *small, *quick, "optim.lr=0.003", "device.compile=off"])
    result = metarun.run(config, tmp_path / "run")
    error = result.summary["beside"]["mae_price"]["mean"]
    assert NOISE * math.sqrt(2 / math.pi) * 0.9 < error < 4.0
    assert result.summary["targets_are"] == "price z-scored on 36 training tasks"
    assert (tmp_path / "run/split.json").is_file()

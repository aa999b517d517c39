"""Arrays of vectors, signals and images from npz, safetensors and npy files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import metarun as command

from metarun.data import from_arrays
from metarun.data.arrays import arrays
from metarun.data.row_groups import Grouping
from metarun.data.rows import RowData
from metarun.errors import UserError
from metarun.types import EpisodeSpec

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (60, 2, 8, 8), dtype=np.uint8)
LABEL = np.repeat(np.arange(15), 4)
SPEC = EpisodeSpec(2, 1, 1)


def read(path: Path, **settings: Any) -> RowData:
    names = {name: name for name in ("x", "y", "task", "label", "split")}
    return arrays(str(path), **(names | {"content": "auto", "grouping": Grouping()} | settings))


def save(folder: Path, kind: str, **values: np.ndarray) -> Path:
    if kind == "folder":
        (folder / "arrays").mkdir()
        for name, value in values.items():
            np.save(folder / "arrays" / f"{name}.npy", value)
        return folder / "arrays"
    path = folder / f"arrays.{kind}"
    if kind == "npz":
        np.savez(path, **values)
    else:
        safetensors = pytest.importorskip("safetensors.numpy", reason="writes safetensors")
        safetensors.save_file(values, path)
    return path


@pytest.mark.parametrize("kind", ["npz", "safetensors", "folder"])
def test_every_file_gives_the_episodes_of_the_arrays(tmp_path: Path, kind: str) -> None:
    data, made = read(save(tmp_path, kind, x=IMAGES, label=LABEL)), from_arrays(IMAGES, label=LABEL)
    assert data.facts() == made.facts()
    a, b = (d.episodes("train", 0, 0, range(3), SPEC) for d in (data, made))
    assert torch.equal(a.support.x, b.support.x)
    assert a.support.x.shape == (3, 2, 2, 8, 8)


CONTENTS = {
    "vectors": (RNG.normal(size=(60, 5)), (5,), "5 features z-scored on 9 training classes"),
    "one number": (RNG.normal(size=60), (1,), "1 feature z-scored on 9 training classes"),
    "signals": (RNG.normal(size=(60, 3, 9)), (3, 9), "signals 3x9 z-scored on 9 training classes, each channel"),
    "grey bytes": (IMAGES[:, 0], (1, 8, 8), "images 1x8x8 divided by 255"),
    "colour bytes": (IMAGES, (2, 8, 8), "images 2x8x8 divided by 255"),
    "16 bits": (IMAGES.astype(np.uint16) * 256, (2, 8, 8), "images 2x8x8 divided by 65535"),
    "float images": (IMAGES / 255, (2, 8, 8), "images 2x8x8 as they are"),
    "integers": (IMAGES.astype(np.int32), (2, 8, 8), "images 2x8x8 as they are"),
    "truth values": (IMAGES[:, 0, 0] > 99, (8,), "8 features z-scored on 9 training classes"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_the_axes_say_what_the_rows_are(name: str) -> None:
    x, shape, words = CONTENTS[name]
    data = from_arrays(x, label=LABEL)
    assert data.input_shape() == shape
    assert data.facts()["inputs_are"] == words
    drawn = data.episodes("train", 0, 0, range(1), SPEC).support.x
    assert drawn.dtype == torch.float32
    if "divided" in words:
        numbers = torch.from_numpy(x.astype(np.float64)).reshape(60, *shape) / np.iinfo(x.dtype).max
        assert any(torch.allclose(drawn[0, 0].double(), image) for image in numbers)


def test_content_and_scale_are_settings() -> None:
    grey = IMAGES[:, 0]
    assert from_arrays(grey, label=LABEL, content="signals").input_shape() == (8, 8)
    assert from_arrays(grey.astype(float), label=LABEL, content="images").input_shape() == (1, 8, 8)
    assert from_arrays(grey[:, 0], label=LABEL, content="signals").input_shape() == (1, 8)
    scaled = from_arrays(IMAGES, label=LABEL, scale="zscore")
    training = scaled.x[torch.from_numpy(scaled.groups.rows("train"))].double()
    assert training.mean((0, 2, 3)).abs().max() < 1e-6
    assert training.std((0, 2, 3), correction=0) == pytest.approx(1.0)


def test_a_channel_is_scaled_by_its_own_deviation() -> None:
    x = RNG.normal(size=(60, 2, 50)) * np.array([[1.0], [1000.0]])
    data = from_arrays(x, label=LABEL)
    training = data.x[torch.from_numpy(data.groups.rows("train"))].double()
    assert training.std((0, 2), correction=0) == pytest.approx(1.0, abs=1e-5)


def test_arrays_of_a_regression(tmp_path: Path) -> None:
    x, y = RNG.normal(size=(60, 2)), RNG.normal(size=(60, 3))
    data = read(save(tmp_path, "npz", x=x, y=y, task=LABEL.astype(float)))
    assert (data.kind, data.outputs(1), data.facts()["tasks"]) == ("regression", 3, {"train": 9, "val": 3, "test": 3})
    other = read(save(tmp_path, "npz", inputs=x, y=y[:, 0], site=LABEL), x="inputs", task="site")
    assert other.outputs(1) == 1


MISTAKES: dict[str, dict[str, Any]] = {
    "arrays.npz: has neither label nor task; label is for a classification": {"x": IMAGES},
    "arrays.npz: has both label and task": {"x": IMAGES, "label": LABEL, "task": LABEL},
    "arrays.npz: has task and no y, the targets of a regression": {"x": IMAGES, "task": LABEL},
    "arrays.npz: x has 60 rows, label has 59; each needs one for every row": {"x": IMAGES, "label": LABEL[:59]},
    "arrays.npz: x holds <U1, not numbers": {"x": np.array(["a", "b"]), "label": np.array([1, 2])},
    "arrays.npz: label has the shape [60, 2] of int64": {"x": IMAGES, "label": np.stack([LABEL] * 2, 1)},
    "arrays.npz, row 3: label is empty": {"x": IMAGES, "label": np.where(np.arange(60) == 3, np.nan, LABEL)},
    "x=x: ": {"z": IMAGES, "label": LABEL},
    "x=[60, 1, 1, 2, 8, 8]: is no shape of rows": {"x": IMAGES[:, None, None], "label": LABEL},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_each_mistake_gets_a_line(tmp_path: Path, message: str) -> None:
    path = save(tmp_path, "npz", **MISTAKES[message])
    with pytest.raises(UserError) as error:
        read(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = save(tmp_path, "npz", x=np.array([print, 1], object), label=LABEL[:2])
    with pytest.raises(UserError, match="holds Python objects, which metarun does not load"):
        read(path)
    for name in ("a.npz", "b.safetensors"):
        (tmp_path / name).write_bytes(b"\x80\x04 no archive")
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            read(tmp_path / name)


def test_a_table_is_sent_to_its_reader(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"t.csv: must be npz, safetensors or a folder of .npy files \(data=table"):
        read(tmp_path / "t.csv")


def test_a_wrong_name_has_the_nearest(tmp_path: Path) -> None:
    path = save(tmp_path, "npz", x=IMAGES, labels=LABEL)
    with pytest.raises(UserError, match=r"label=lables: .* has no such array, did you mean labels\?"):
        read(path, label="lables")


def test_the_command_trains_on_images(tmp_path: Path) -> None:
    save(tmp_path, "npz", x=np.repeat(np.repeat(IMAGES[:, :1], 4, 2), 4, 3), label=LABEL)
    tiny = ["train.steps=3", "train.tasks=2", "train.eval_every=3", "val.tasks=2", "test.tasks=3", "report=false"]
    sizes = ["data.ways=2", "data.shots=1", "data.queries=2", "data.test_queries=2", "device.compile=off"]
    done = command("data=arrays", "data.file=arrays.npz", "model=conv4", *sizes, *tiny, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "inputs images 1x32x32 divided by 255" in done.stdout


def test_scikit_learns_digits() -> None:
    """1797 drawings of 64 numbers: seven digits learn, and three are new."""
    datasets = pytest.importorskip("sklearn.datasets", reason="ships the digits")
    digits = datasets.load_digits()
    data = from_arrays(digits.data, label=digits.target, ratios=(0.4, 0.3, 0.3))
    assert data.facts()["classes"] == {"train": 4, "val": 3, "test": 3}
    data.check("test", EpisodeSpec(3, 5, 15))

"""Image completion: pixels of a task are those of one image at their places, and completed pictures are reported."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.report_folders import write_run
from matplotlib import colormaps
from torch import Tensor

import metarun
from metarun.compute.device import Placement
from metarun.data.augment import Augmentation
from metarun.data.completion import GAP, SCALE, SHOWN, UNKNOWN, Completion
from metarun.data.images import ImageData, ImageTable, Source
from metarun.data.pixels import Pixels
from metarun.errors import SettingError
from metarun.report.figures.drawing import style
from metarun.report.figures.functions import draw_pictures
from metarun.report.read.runs import read_run
from metarun.storage.run_folder import RunFolder
from metarun.training.evaluation import Evaluator
from metarun.training.experiment import build_learner
from metarun.training.function_samples import sample_functions
from metarun.types import Batch, EpisodeSpec, Params, Split, Task

SIDE, CLASSES, EACH = 8, 6, 4
PIXELS = SIDE * SIDE
SPEC, ALL = EpisodeSpec(1, 10, 20), EpisodeSpec(1, 10, PIXELS)


def completion(rotations: str = "none") -> Completion:
    """Two classes for each split; images of 64 different greys, which begin with their own number."""
    draw = torch.Generator().manual_seed(0)
    shown = torch.stack([torch.randperm(256, generator=draw)[:PIXELS] for _ in range(CLASSES * EACH)])
    shown[:, 0] = torch.arange(CLASSES * EACH)
    images = shown.to(torch.uint8).view(-1, 1, SIDE, SIDE)
    names = tuple(f"alphabet/{i}" for i in range(CLASSES))
    files = [f"{i}.png" for i in range(len(images))]
    table = ImageTable(images, names, np.arange(CLASSES) * EACH, np.full(CLASSES, EACH), files)
    splits: dict[Split, Any] = {s: np.arange(2) + 2 * i for i, s in enumerate(("train", "val", "test"))}  # type: ignore[misc]
    source = Source(table, splits, "by hand", {}, Path())
    return Completion(ImageData(Pixels(SIDE, 1, "nearest", ink=True), rotations, Augmentation(), lambda verify: source))


DATA = completion()


def flat(places: Tensor) -> Tensor:
    """Pixel numbers, row by row, of places in [-1, 1]^2."""
    row, column = ((places + 1) / 2 * (SIDE - 1)).round().long().unbind(-1)
    return row * SIDE + column


def test_all_pixels_are_one_image_of_the_split_with_the_top_left_first() -> None:
    table = DATA.images.source.table.images
    for at, split in enumerate(("train", "val", "test")):
        task = DATA.episodes(split, 0, 0, range(60), ALL)
        numbers = (task.query.y[:, 0, 0] * 255).round().long()
        assert set(numbers.tolist()) == set(range(8 * at, 8 * at + 8))
        torch.testing.assert_close(task.query.y[..., 0], table[numbers].flatten(1) / 255)
        assert torch.equal(flat(task.query.x), torch.arange(PIXELS).expand(60, -1))
    assert task.query.x[0, 0].tolist() == [-1.0, -1.0]
    assert task.query.x[0, SIDE - 1].tolist() == [-1.0, 1.0]  # the first row, its last column


def test_every_query_has_the_file_of_its_image() -> None:
    names = DATA.query_names("val", 0, 0, range(60), SPEC)
    numbers = (DATA.episodes("val", 0, 0, range(60), ALL).query.y[:, 0, 0] * 255).round().long()
    assert names == [[f"{number}.png"] * SPEC.queries for number in numbers]


def test_context_and_queries_are_different_pixels_of_that_image() -> None:
    whole, part = (DATA.episodes("train", 3, 5, range(30), spec) for spec in (ALL, SPEC))
    context, query = (flat(b.x) for b in part)
    assert torch.equal(whole.support.x, part.support.x)  # however many are asked
    for rows, batch in ((context, part.support), (query, part.query)):
        torch.testing.assert_close(batch.y[..., 0], whole.query.y[..., 0].gather(1, rows))
    for task in torch.cat([context, query], 1).tolist():
        assert len(set(task)) == SPEC.shots + SPEC.queries


def test_every_pixel_comes_as_often_as_any_other() -> None:
    """Over 2000 tasks each of 64 pixels is in 10 of 64 contexts, within five standard deviations."""
    counts = flat(DATA.episodes("train", 0, 0, range(2000), SPEC).support.x).flatten().bincount(minlength=PIXELS)
    p = SPEC.shots / PIXELS
    assert float((counts - 2000 * p).abs().max()) < 5 * math.sqrt(2000 * p * (1 - p))


def test_a_task_is_a_function_of_its_place_alone() -> None:
    whole, part = (DATA.episodes("train", 1, 2, tasks, SPEC) for tasks in (range(9), range(4, 6)))
    for a, b in zip(part, whole, strict=True):
        assert torch.equal(a.x, b.x[4:6])
        assert torch.equal(a.y, b.y[4:6])
    for other in (("train", 1, 3), ("train", 2, 2), ("val", 1, 2)):
        assert not torch.equal(DATA.episodes(*other, range(9), SPEC).support.x, whole.support.x)


def test_rotated_images_are_rotated_as_pictures() -> None:
    task = completion("task").episodes("train", 0, 0, range(20), ALL)
    found = task.query.y.view(-1, SIDE, SIDE)
    upright = DATA.images.source.table.images[: 2 * EACH, 0] / 255
    turns = [[q for q in range(4) if any(torch.equal(torch.rot90(i, q), f) for i in upright)] for f in found]
    assert all(len(t) == 1 for t in turns)
    assert {t[0] for t in turns} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (EpisodeSpec(1, 64, 5), "shots=64: must be 1 to 63 of the 64 pixels"),
        (EpisodeSpec(1, 10, 55), "queries=55: must be 1 to 54, the pixels beside the 10 of the context, or 64 for all"),
        (EpisodeSpec(1, 10, 65), "queries=65: must be 1 to 54"),
    ],
)
def test_more_pixels_than_there_are_cannot_be_asked_for(spec: EpisodeSpec, words: str) -> None:
    for possible in (EpisodeSpec(1, 63, 1), EpisodeSpec(1, 10, 54), EpisodeSpec(1, 10, 64)):
        DATA.check("train", possible)
    with pytest.raises(SettingError, match=words):
        DATA.check("train", spec)


def test_reference_inputs_are_places_of_the_picture() -> None:
    assert torch.equal(flat(DATA.reference_inputs(PIXELS)), torch.arange(PIXELS))
    assert DATA.reference_inputs(200).shape == (200, 2)


def test_the_contact_sheet_shows_contexts_above_their_images() -> None:
    sheet = np.asarray(DATA.contact_sheet(SPEC))
    step = SIDE * SCALE + GAP
    assert sheet.shape == (2 * step, SHOWN * step, 3)
    for at in range(SHOWN):
        above, below = (
            sheet[r : r + SIDE * SCALE : SCALE, at * step : at * step + SIDE * SCALE : SCALE] for r in (0, step)
        )
        known = (above != np.array(UNKNOWN)).any(-1)
        assert known.sum() == SPEC.shots
        np.testing.assert_array_equal(above[known], below[known])


# ---------------------------------------------------------------- what is reported


@dataclass(frozen=True)
class Half:
    """Predicts half of the context's mean, with the deviation of the row's place."""

    def adapt(self, params: Params, support: Batch) -> Any:
        return support.y.mean() / 2

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        return torch.cat([adapted.expand(len(x), 1), 2 + x[:, :1]], 1)

    def assess(self, adapted: Any, task: Task) -> Any: ...

    def functions(self, adapted: Any, x: Tensor, count: int) -> Any: ...

    kinds = predicts = model = loss = head = test_inner_steps = None
    init = adaptations = meta_grad = print


def reported(tasks: int = 2) -> dict[str, Any]:
    placement = Placement(torch.device("cpu"), torch.float64, None, False)
    found = sample_functions(Evaluator(DATA, "test", SPEC, tasks, (0,), placement), Half(), {})  # type: ignore[arg-type]
    assert found is not None
    return found


def test_functions_json_holds_pictures_of_the_test_tasks() -> None:
    found, drawn = reported(), DATA.episodes("test", 0, 0, range(2), ALL)
    assert found["picture"] == [SIDE, SIDE]
    for at, task in enumerate(found["tasks"]):
        truth = np.array(task["truth"])
        np.testing.assert_allclose(truth, drawn.query.y[at, :, 0], rtol=1e-6)
        rows, columns, values = (np.array(v) for v in task["context"])
        np.testing.assert_allclose(values, truth.reshape(SIDE, SIDE)[rows.astype(int), columns.astype(int)])
        np.testing.assert_allclose(task["mean"], values.mean() / 2, rtol=1e-6)
        expected = np.linspace(1, 3, SIDE).repeat(SIDE)
        np.testing.assert_allclose(task["deviation"], expected, rtol=1e-6)


def test_the_report_shows_context_mean_deviation_and_truth(tmp_path: Path) -> None:
    folder, found = write_run(tmp_path / "run"), reported()
    RunFolder(folder).write_json("functions.json", found)
    with style():
        drawn = draw_pictures(read_run(folder)).figure
    assert [ax.get_ylabel() for ax in drawn.axes[:4]] == ["context", "mean", "deviation,\n0 to 3", "truth"]
    assert drawn.axes[0].get_title() == "10 pixels"
    context, mean, deviation, truth = (np.ma.getdata(ax.images[0].get_array()) for ax in drawn.axes[4:])
    task = found["tasks"][1]
    for shown, name in ((mean, "mean"), (deviation, "deviation"), (truth, "truth")):
        np.testing.assert_allclose(shown, np.reshape(task[name], (SIDE, SIDE)))
    known = np.isfinite(context)
    assert known.sum() == 10
    np.testing.assert_allclose(context[known], truth[known])
    assert [ax.images[0].get_clim() for ax in drawn.axes[:4]] == [(0, 1), (0, 1), (0, 3), (0, 1)]
    assert drawn.axes[0].images[0].get_cmap().get_bad().tolist() != colormaps["gray_r"](0.0)


@pytest.mark.parametrize("algo", ["cnp", "np", "anp", "cvae"])
def test_learners_take_places_of_two_axes(algo: str) -> None:
    smaller = ["algo.representation=8", "model.hidden=[8,6]", *([] if algo == "cnp" else ["algo.latent=4"])]
    algorithm = build_learner(metarun.compose([f"algo={algo}", *smaller]), DATA, 1)
    tasks = DATA.episodes("train", 0, 0, range(3), SPEC)
    params, drawn = algorithm.add_noise(algorithm.init(0), tasks, 0, 0)
    grads, metrics = algorithm.meta_grad(params, Task(*(Batch(b.x[0], b.y[0]) for b in drawn)))
    assert bool(metrics["loss"].isfinite())
    first = "encoder.block0.weight"
    assert grads[first].shape == (8, 3)
    assert bool((grads[first].abs().sum(0) > 0).all())  # both axes and the value matter

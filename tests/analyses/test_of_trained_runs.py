"""Analyses of a trained run: shifted tasks, other support sets, other settings at test."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.colours import class_folders

import metarun
from metarun.analyses.analysis import Context, mask_diverged
from metarun.analyses.sensitivity import robustness
from metarun.analyses.support_resampling import SupportResampling, resample_support
from metarun.analyses.task_shift import apply_shift, select_groups
from metarun.config.catalogue import conf_folder
from metarun.config.components import build
from metarun.data.augment import Augmentation
from metarun.data.images import ImageData, ImageTable, Source
from metarun.data.pixels import Pixels
from metarun.data.shifts import (
    ChangedImages,
    ImageChange,
    Shifted,
    WithinGroups,
    blurred,
    by_group,
    turned,
    with_test_classes,
)
from metarun.data.sinusoid import Sinusoid
from metarun.errors import SettingError, UserError
from metarun.jobs.train import train_job
from metarun.statistics.nested import nested_components
from metarun.storage.run_folder import RunFolder
from metarun.training.experiment import assemble
from metarun.types import Batch, EpisodeSpec, Task

SIDE, EACH = 8, 12
ALPHABETS = {"train": {"old/A": 4, "old/B": 3}, "val": {"old/C": 3}, "test": {"new/D": 5, "new/E": 3, "old/B": 2}}
SPEC = EpisodeSpec(ways=3, shots=2, queries=3)
SINUSOID = Sinusoid((0.1, 5.0), (0.0, 3.14), (-5.0, 5.0), 0.0)


def alphabets(channels: int = 1, normalize: str = "none", each: int = EACH, ink: bool = True) -> ImageData:
    """Noise, with the number of the class in the first pixel and that of the drawing in the second."""
    groups = [(split, group, n) for split, parts in ALPHABETS.items() for group, n in parts.items()]
    names = [f"{group}/{split}{i}" for split, group, n in groups for i in range(n)]
    draw = torch.Generator().manual_seed(0)
    shape = (len(names), each, channels, SIDE, SIDE)
    images = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
    images[..., 0, 0] = torch.arange(len(names), dtype=torch.uint8).view(-1, 1, 1)
    images[..., 0, 1] = torch.arange(each, dtype=torch.uint8).view(1, -1, 1)
    counts = np.full(len(names), each)
    table = ImageTable(images.flatten(0, 1), tuple(names), np.arange(len(names)) * each, counts)
    parts = np.array([split for split, _, n in groups for _ in range(n)])
    splits: Any = {s: np.flatnonzero(parts == s) for s in ("train", "val", "test")}
    source = Source(table, splits, "by hand", {}, Path())
    pixels = Pixels(SIDE, channels, "nearest", normalize=normalize, ink=ink)
    return ImageData(pixels, "none", Augmentation(), lambda verify: source)


def draw(data: Any, tasks: range = range(40), spec: EpisodeSpec = SPEC, split: Any = "test", step: int = 0) -> Task:
    return data.episodes(split, 0, step, tasks, spec)


def drawn_classes(task: Task) -> torch.Tensor:
    """Class numbers [T, rows] of support and query together."""
    return torch.cat([(b.x[:, :, 0, 0, 0] * 255).round().long() for b in task], 1)


def same(a: Task, b: Task) -> bool:
    return all(torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("outside", ["zeros", "reflection"])
def test_turning_by_quarters_is_rot90(side: int, outside: str) -> None:
    images = torch.rand(2, 3, side, side, dtype=torch.float64)
    for quarter in (1, 2, 3):
        expected = torch.rot90(images, quarter, (2, 3))
        torch.testing.assert_close(turned(images, 90 * quarter, outside), expected, rtol=0, atol=1e-12)


def test_turning_brings_paper_from_outside_of_a_drawing_and_the_picture_itself_for_photographs() -> None:
    white = torch.ones(1, 1, 20, 20)
    assert float(turned(white, 45, "zeros")[0, 0, 0, 0]) == 0
    torch.testing.assert_close(turned(white, 45, "reflection"), white)


def test_a_turned_spot_lies_where_the_rotation_matrix_puts_it() -> None:
    """A spot 8 pixels to the right of the middle, by 30 degrees counter-clockwise: 8 cos 30 right, 8 sin 30 up."""
    images = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    images[0, 0, 16, 24] = 1.0
    found = turned(images, 30, "zeros")[0, 0]
    rows, columns = torch.meshgrid(torch.arange(33), torch.arange(33), indexing="ij")
    mass = found / found.sum()
    middle = float((mass * rows).sum()) - 16, float((mass * columns).sum()) - 16
    assert middle == pytest.approx((-8 * 0.5, 8 * 3**0.5 / 2), abs=0.1)  # bilinear weights of a few pixels


def test_blur_is_the_convolution_with_a_gaussian() -> None:
    spot = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    spot[0, 0, 10, 10] = 1.0
    line = torch.exp(-((torch.arange(21, dtype=torch.float64) - 10) ** 2) / (2 * 1.5**2))
    line[(torch.arange(21) - 10).abs() > 5] = 0  # three deviations, rounded up
    line /= line.sum()
    torch.testing.assert_close(blurred(spot, 1.5)[0, 0], torch.outer(line, line), rtol=0, atol=1e-9)


def test_less_contrast_moves_every_value_towards_the_mean_grey() -> None:
    images = torch.rand(1, 2, 1, 6, 6, dtype=torch.float64)
    found = ImageChange(contrast=0.25)(images, True, 0, 0, range(1), 0)
    mean = images.mean((2, 3, 4), keepdim=True)
    torch.testing.assert_close(found, mean + 0.25 * (images - mean))


def test_noise_has_its_deviation_and_is_a_function_of_the_task() -> None:
    images, change = torch.full((4, 5, 1, 30, 30), 0.5), ImageChange(noise=0.1)
    noisy = change(images, True, 0, 0, range(4), 0)
    assert float(noisy.std()) == pytest.approx(0.1, rel=0.02)
    assert torch.equal(noisy[2:3], change(images[:1], True, 0, 0, range(2, 3), 0))
    for other in ((0, 0, range(4), 1), (0, 1, range(4), 0), (1, 0, range(4), 0)):
        assert not torch.equal(noisy, change(images, True, *other))
    assert float(change(images * 2, True, 0, 0, range(4), 0).max()) == 1


@pytest.mark.parametrize(("channels", "normalize", "ink"), [(1, "none", True), (3, "imagenet", False)])
def test_changed_images_are_those_of_the_same_episode_changed(channels: int, normalize: str, ink: bool) -> None:
    data = alphabets(channels, normalize, ink=ink)
    shifted = Shifted(data, ChangedImages(data, data.pixels, ImageChange(rotate=90)))
    plain, found = draw(data), draw(shifted)
    for a, b in zip(plain, found, strict=True):
        expected = torch.rot90(a.x, 1, (3, 4))
        torch.testing.assert_close(b.x, expected, rtol=0, atol=2e-5)  # values up to 2.6 in float32
        assert torch.equal(a.y, b.y)
    assert torch.equal(shifted.reference_inputs(5), data.reference_inputs(5))
    for split in ("train", "val"):
        assert same(draw(shifted, split=split), draw(data, split=split))
    assert "rotate" in str(shifted.facts()["tested_on"])


def test_a_change_that_changes_nothing_gives_the_same_bits() -> None:
    data = alphabets()
    assert same(draw(ChangedImages(data, data.pixels, ImageChange())), draw(data))


def test_within_groups_no_episode_leaves_its_alphabet_and_all_large_ones_come() -> None:
    data = alphabets()
    task = draw(WithinGroups(data), range(400))
    names, classes = data.source.table.names, drawn_classes(task)
    found = [{names[i].rpartition("/")[0] for i in row} for row in classes.tolist()]
    assert all(len(groups) == 1 for groups in found)
    counts = {g: sum(groups == {g} for groups in found) for g in ("new/D", "new/E", "old/B")}
    assert counts["old/B"] == 0  # two test classes are too few for three ways
    assert abs(counts["new/D"] - 200) < 5 * 10  # uniform over alphabets: a binomial's deviation is 10
    assert {names[i] for i in set(classes.flatten().tolist())} == {n for n in names if n.startswith("new/")}
    assert all(len(set(row)) == SPEC.ways for row in classes.tolist())


def test_within_groups_a_task_does_not_depend_on_those_drawn_beside_it() -> None:
    within = WithinGroups(alphabets())
    whole = draw(within, range(10))
    for i in (0, 7):
        one = draw(within, range(i, i + 1))
        assert torch.equal(one.support.x[0], whole.support.x[i])
        assert torch.equal(one.query.x[0], whole.query.x[i])
    assert not same(draw(within), draw(within, step=1))


def test_within_groups_more_ways_than_any_alphabet_has_are_refused() -> None:
    within = WithinGroups(alphabets())
    within.check("test", SPEC._replace(ways=5))
    with pytest.raises(SettingError, match="ways=6: no group of test classes has as many"):
        within.check("test", SPEC._replace(ways=6))


def test_a_data_set_with_other_test_classes_keeps_all_else() -> None:
    data = alphabets()
    chosen = data.source.splits["train"]
    other = with_test_classes(data, chosen)
    assert set(drawn_classes(draw(other)).flatten().tolist()) <= set(chosen.tolist())
    assert same(draw(other, split="train"), draw(data, split="train"))
    assert {g: len(ids) for g, ids in by_group(data, data.source.splits["test"]).items()} == ALPHABETS["test"]


@pytest.mark.parametrize("data", [alphabets(), SINUSOID], ids=["images", "points"])
def test_support_sets_are_disjoint_and_the_queries_the_same(data: Any) -> None:
    draws = 4
    task = resample_support(data, 7, SPEC, draws)
    whole = draw(data, range(7, 8), SPEC._replace(shots=SPEC.shots * draws))
    assert torch.equal(task.support.x.flatten(0, 1), whole.support.x[0])
    rows = [x.numpy().tobytes() for x in torch.cat([task.support.x.flatten(0, 1), task.query.x[0]])]
    assert len(set(rows)) == len(rows)
    for r in range(draws):
        assert torch.equal(task.query.x[r], whole.query.x[0])
        assert torch.equal(task.query.y[r], whole.query.y[0])
        if data is not SINUSOID:
            assert torch.bincount(task.support.y[r]).tolist() == [SPEC.shots] * SPEC.ways
            shown = drawn_classes(Task(*(Batch(b.x[r : r + 1], b.y[r : r + 1]) for b in task)))[0]
            names = {int(y): int(c) for y, c in zip(torch.cat([b.y[r] for b in task]), shown, strict=True)}
            labelled = torch.cat([b.y[r] for b in task]).tolist()
            assert [names[y] for y in labelled] == shown.tolist()  # a label means one class in all draws


class Own:
    """What the sizes are decided on."""

    def __init__(self, dataset: Any, spec: EpisodeSpec) -> None:
        self.dataset, self.test_spec = dataset, spec


@pytest.mark.parametrize(
    ("images", "shots", "queries", "asked", "expected"),
    [
        (20, 1, 15, None, (10, 10)),  # fewer queries so that ten draws fit
        (20, 5, 15, None, (3, 5)),  # fewer draws
        (20, 1, 15, 15, (5, 15)),  # the queries that were asked for
        (12, 5, 15, None, (2, 2)),  # fewer queries than five, for two draws
        (200, 5, 15, None, (10, 15)),
    ],
)
def test_as_many_draws_are_made_as_the_classes_hold(
    images: int, shots: int, queries: int, asked: int | None, expected: tuple[int, int]
) -> None:
    own: Any = Own(alphabets(each=images), EpisodeSpec(3, shots, queries))
    assert SupportResampling(5, 10, asked).choose_sizes(own) == expected


def test_too_few_images_for_two_support_sets_are_refused_in_one_line() -> None:
    own: Any = Own(alphabets(each=12), EpisodeSpec(3, 6, 5))
    with pytest.raises(UserError, match=r"^analysis.draws=10: not even two support sets of 6 shots .* images of class"):
        SupportResampling(5, 10, None).choose_sizes(own)


def test_components_within_and_between_are_those_of_the_analysis_of_variance() -> None:
    """By hand: means 1, 3, 8 and variances 1, 4, 1 of three repetitions; MS within 2, var of the means 13."""
    found = nested_components([[0, 1, 2], [1, 3, 5], [7, 8, 9]])
    assert found.within == pytest.approx(2)
    assert found.between == pytest.approx(13 - 2 / 3)
    assert found.share == pytest.approx(2 / (13 - 2 / 3 + 2))
    assert (found.mean, found.groups, found.repetitions) == (4, 3, 3)


def test_components_are_unbiased_and_cut_at_nothing() -> None:
    draw = np.random.default_rng(0)
    found = [
        nested_components(2 + 0.5 * draw.normal(size=(20, 1)) + 1.5 * draw.normal(size=(20, 4))) for _ in range(60)
    ]
    raw, within = (np.array([getattr(f, name) for f in found]) for name in ("between_raw", "within"))
    for values, expected in ((raw, 0.25), (within, 2.25)):
        assert abs(values.mean() - expected) < 4 * values.std(ddof=1) / 60**0.5
    assert min(raw) < 0
    assert min(f.between for f in found) == 0
    share = [f.low <= 0.9 <= f.high for f in found]
    assert np.mean(share) > 0.75  # a percentile interval of 20 groups, one end of which is often 1
    assert np.isnan(nested_components(np.ones((3, 2))).share)
    with pytest.raises(ValueError, match="at least two groups"):
        nested_components([[1, 2]])


def test_the_robustness_score_is_the_mean_drop_from_the_tuned_cell() -> None:
    found = robustness(0.9, 0.2, [0.8, 0.95, 0.2], higher_is_better=True)
    assert found["mean_drop"] == pytest.approx((0.1 - 0.05 + 0.7) / 3)
    assert found["gain_lost"] == pytest.approx((0.1 - 0.05 + 0.7) / 0.7 / 3)
    error = robustness(1.0, 5.0, [2.0, 0.5], higher_is_better=False)
    assert (error["mean_drop"], error["gain_lost"]) == pytest.approx((0.25, 0.0625))


def test_cells_that_diverge_make_a_run_no_more_robust() -> None:
    calm = robustness(1.0, 5.0, [2.0, 2.0], higher_is_better=False)
    wild = robustness(1.0, 5.0, [2.0, None], higher_is_better=False)
    huge = robustness(1.0, 5.0, [2.0, 1e9], higher_is_better=False)
    assert wild["gain_lost"] == huge["gain_lost"] == pytest.approx((0.25 + 1) / 2)
    assert calm["gain_lost"] == pytest.approx(0.25)
    assert (wild["cells"], wild["not_finite"]) == (2, 1)


def test_there_is_no_share_of_a_gain_where_adaptation_gains_nothing() -> None:
    assert robustness(5.0, 5.0, [6.0], higher_is_better=False)["gain_lost"] is None
    assert robustness(5.0, None, [6.0], higher_is_better=False)["gain_lost"] is None
    assert robustness(None, 5.0, [6.0], higher_is_better=False)["mean_drop"] is None
    assert robustness(1.0, 5.0, [], higher_is_better=False)["mean_drop"] is None


# Runs, from the settings to the files.

QUICK = ["train.steps=3", "train.tasks=2", "val.tasks=2", "test.tasks=6", "device.compile=false", "report=false"]
POINTS = ["data=sinusoid", "data.shots=5", "data.test_queries=8", "model.hidden=[8]", *QUICK]
IMAGES = [
    "data=folder",
    "data.image_size=16",
    "data.ways=2",
    "data.queries=2",
    "data.test_queries=2",
    "model.filters=4",
    *QUICK,
]
Run = tuple[list[str], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs and the cache of images, for the tests of this file together."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("analyses")
        patch.setenv("METARUN_CACHE", str(path / "cache"))
        patch.delenv("METARUN_DATA", raising=False)
        yield path


@pytest.fixture(scope="module")
def points(folder: Path) -> Run:
    return train(folder / "points", "algo=maml", "algo.test_inner_steps=3", *POINTS)


@pytest.fixture(scope="module")
def photographs(folder: Path) -> list[str]:
    """Settings of tiny photographs of twelve classes: in a csv they are called KIND/NUMBER."""
    labels = [f"{kind}/{i}" for kind in ("bird", "fish", "tool") for i in range(4)]
    root = class_folders(folder / "photos", [label.replace("/", "_") for label in labels], each=6)
    lines = [f"{label.replace('/', '_')}/{i:03d}.png,{label}" for label in labels for i in range(6)]
    (root / "data.csv").write_text("\n".join(["filename,label", *lines]))
    return [*IMAGES, f"data.root={root}", "data.csv=data.csv", "data.ratios=[0.25,0.25,0.5]"]


@pytest.fixture(scope="module")
def protonet(folder: Path, photographs: list[str]) -> Run:
    return train(folder / "protonet", "algo=protonet", *photographs)


def train(folder: Path, *settings: str) -> Run:
    metarun.run(metarun.compose(list(settings)), folder)
    return list(settings), folder


def analyse(run: Run, analysis: str, *more: str) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    settings, folder = run
    config = metarun.compose([*settings, "job=analyze", f"run={folder}", f"analysis={analysis}", *more])
    result = metarun.run(config, folder / "job")
    found = json.loads((result.folder / "results.json").read_text())
    assert (result.folder / "figure.png").stat().st_size > 1000
    with (result.folder / "results.csv").open() as file:
        assert len(list(csv.reader(file))) == len(found["rows"]) + 1
    return found["summary"], found["rows"], result.folder


def test_a_sinusoid_run_is_tested_under_shifts_of_its_tasks(points: Run) -> None:
    summary, rows, _ = analyse(points, "task_shift", "analysis.tasks=6")
    own = json.loads((points[1] / "summary.json").read_text())
    assert rows[0]["shift"] == "none"
    assert rows[0]["mean"] == pytest.approx(own["mean"], rel=1e-12)  # the run's own test
    by_name = {r["shift"]: r for r in rows}
    assert "shots_5" not in by_name  # it is the run's own
    wide = by_name["amplitude_5_to_10"]
    assert wide["difference"] == pytest.approx(wide["mean"] - rows[0]["mean"])
    own_scores = np.array(rows[0]["scores"])
    paired = (np.array(wide["scores"]) - own_scores).var(ddof=1)
    assert wide["half_difference"] == pytest.approx(1.96 * (paired / 6) ** 0.5)
    other = by_name["shots_20"]
    apart = np.var(other["scores"], ddof=1) + own_scores.var(ddof=1)
    assert other["half_difference"] == pytest.approx(1.96 * (apart / 6) ** 0.5)
    assert (wide["paired"], other["paired"]) == (True, False)
    assert summary["worst"] in by_name
    assert wide["before"] > rows[0]["before"]


def test_a_learner_without_a_head_is_tested_with_other_ways_and_image_changes(protonet: Run) -> None:
    more = ["+analysis.classification.three={ways:3}", "+analysis.classification.both={rotate:9,ways:3}"]
    _, rows, folder = analyse(protonet, "task_shift", "analysis.tasks=3", *more)
    by_name = {r["shift"]: r for r in rows}
    assert by_name["three"]["chance"] == pytest.approx(1 / 3)
    assert by_name["both"]["mean"] is not None
    assert by_name["ways_20"]["left_out"] == "ways=20: must be 2 to 6, the classes of the test split"
    assert "shots_1" not in by_name  # it is the run's own
    assert (by_name["rotated_30"]["paired"], by_name["within_groups"]["paired"]) == (True, False)
    assert 0 <= by_name["within_groups"]["mean"] <= 1
    assert "before" not in by_name["none"]
    assert folder.name == "task_shift"


def test_a_network_with_a_head_keeps_its_ways_and_the_row_says_so(
    folder: Path, photographs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(folder / "head", "algo=maml", "algo.test_inner_steps=1", *photographs)
    _, rows, _ = analyse(run, "task_shift", "analysis.tasks=2")
    by_name = {r["shift"]: r for r in rows}
    assert by_name["ways_20"] == {
        "shift": "ways_20",
        "left_out": "the network has one output per class, so it keeps to 2 ways",
    }
    assert "left out: ways_20 (the network" in capsys.readouterr().out
    assert by_name["blurred"]["mean"] is not None


def test_classes_without_groups_and_pools_of_tasks_leave_rows_out_with_the_reason(folder: Path) -> None:
    root = class_folders(folder / "plain", [f"class{i}" for i in range(9)], each=5)
    run = train(folder / "pool", "algo=protonet", *IMAGES, f"data.root={root}", "train.pool=4")
    _, rows, _ = analyse(run, "task_shift", "analysis.tasks=2")
    by_name = {r["shift"]: r for r in rows}
    assert "tell no groups" in by_name["within_groups"]["left_out"]
    assert "training saw the tasks of its pool" in by_name["training_classes"]["left_out"]
    assert by_name["validation_classes"]["mean"] is not None


@pytest.mark.parametrize(("classes", "groups"), [("new_groups", {"new/D", "new/E"}), ("seen_groups", {"old/B"})])
def test_test_classes_are_told_apart_by_whether_training_had_of_their_group(classes: str, groups: set[str]) -> None:
    data = alphabets()
    found = select_groups(data, classes)
    assert {data.source.table.names[i].rpartition("/")[0] for i in found} == groups
    assert len(found) == sum(ALPHABETS["test"][g] for g in groups)


def refusal(action: Callable[[], object]) -> str:
    """The one line that the user is told."""
    with pytest.raises(UserError) as error:
        action()
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_shifts_that_no_run_could_have_are_refused_in_one_line(points: Run) -> None:
    experiment = assemble(metarun.compose(points[0]))

    def told(changes: dict[str, Any]) -> str:
        return refusal(lambda: apply_shift(experiment, changes, "mine"))

    assert told({"amplitud": [1, 2]}) == "mine.amplitud: no such shift of these data, did you mean amplitude?"
    assert told({"amplitude": [2, 1]}).startswith("data.amplitude=[2.0, 1.0]: must be [low, high]")
    assert told({"shots": 0}) == "mine.shots=0: must be a whole number of at least 1"
    assert told({"rotate": 15}).startswith("mine.rotate: no such shift of these data, choices: amplitude")
    assert told({"classes": "train"}).startswith("mine.classes: no such shift of these data")
    whole = refusal(lambda: analyse(points, "task_shift", "+analysis.regression.mine={amplitud:[1,2]}"))
    assert whole.startswith("analysis.regression.mine.amplitud: no such shift")


def test_wrong_changes_of_images_are_refused_in_one_line(protonet: Run) -> None:
    experiment = assemble(metarun.compose(protonet[0]))

    def told(changes: dict[str, Any]) -> str:
        return refusal(lambda: apply_shift(experiment, changes, "mine"))

    assert told({"blur": -1}) == "mine.blur=-1.0: must be at least 0 and finite"
    assert told({"rotate": "left"}) == "mine.rotate=left: must be of type float"
    assert told({"classes": "dogs"}).startswith("mine.classes=dogs: choices: train, val, within_groups")
    assert "no inner loop" in refusal(lambda: analyse(protonet, "sensitivity"))


@pytest.mark.parametrize(
    ("analysis", "changes", "message"),
    [
        ("task_shift", {"tasks": 1}, "analysis.tasks=1: must be at least 2"),
        ("task_shift", {"regression": {"none": {"shots": 3}}}, "is the name of the tasks without a shift"),
        ("task_shift", {"regression": {"more": 3}}, "analysis.regression"),
        ("sensitivity", {"rates": [-1.0]}, r"analysis.rates=[-1.0]: must be above 0"),
        ("sensitivity", {"strengths": [0.0]}, r"analysis.strengths=[0.0]: must be above 0"),
        ("sensitivity", {"steps": [-1]}, r"analysis.steps=[-1]: must be whole numbers of at least 0"),
        ("sensitivity", {"cg_steps": [0]}, r"analysis.cg_steps=[0]: must be whole numbers of at least 1"),
        ("support_resampling", {"draws": 1}, "analysis.draws=1: must be at least 2"),
        ("support_resampling", {"queries": 0}, "analysis.queries=0: must be at least 1, or null"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(analysis: str, changes: dict[str, Any], message: str) -> None:
    node = yaml.safe_load((conf_folder() / "analysis" / f"{analysis}.yaml").read_text())
    build("analysis", node)
    assert message in refusal(lambda: build("analysis", node | changes))


@pytest.mark.parametrize("analysis", ["task_shift", "support_resampling", "sensitivity"])
def test_an_analysis_of_a_run_needs_one(analysis: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this analysis needs a trained run"):
        metarun.run(metarun.compose(["job=analyze", f"analysis={analysis}", *POINTS]), tmp_path)


def test_support_sets_are_resampled_and_the_table_resumes(points: Run) -> None:
    summary, rows, folder = analyse(points, "support_resampling", "analysis.tasks=4", "analysis.draws=3")
    assert [len(r["scores"]) for r in rows] == [3] * 4
    expected = nested_components([r["scores"] for r in rows])
    assert summary["share_support"] == pytest.approx(expected.share)
    assert summary["worst_draw"] == pytest.approx(np.mean([max(r["scores"]) for r in rows]))
    table = folder / "results.jsonl"
    lines = table.read_text().splitlines(True)
    table.write_text("".join(lines[:2]) + lines[2][:20])
    assert analyse(points, "support_resampling", "analysis.tasks=4", "analysis.draws=3")[1] == rows


def test_each_draw_is_scored_as_if_it_were_the_only_one(points: Run) -> None:
    _, rows, _ = analyse(points, "support_resampling", "analysis.tasks=2", "analysis.draws=2")
    experiment = assemble(metarun.compose(points[0]))
    context = Context(experiment.config, RunFolder(points[1]), points[1], train_job)
    learner, params = experiment.tested, context.run.params
    for index, row in enumerate(rows):
        support, query = resample_support(experiment.dataset, index, experiment.test_spec, 2)
        for r in range(2):
            *_, phi = learner.adaptations(params, Batch(support.x[r], support.y[r]), 3)
            score = learner.loss.score(learner.predict(phi, query.x[r]), query.y[r])
            assert float(score) == pytest.approx(row["scores"][r], rel=1e-4)  # there by vmap, in float32


def test_sensitivity_tells_the_tuned_cell_as_the_run_did(points: Run) -> None:
    few = ["analysis.tasks=6", "analysis.rates=[0.5,4]", "analysis.steps=[1,5]"]
    summary, rows, _ = analyse(points, "sensitivity", *few)
    own = json.loads((points[1] / "summary.json").read_text())
    assert summary["tuned"]["value"] == pytest.approx(own["mean"], rel=1e-6)
    assert [r["inner_lr"] for r in rows] == [0.005, 0.01, 0.04]
    assert (summary["steps"], summary["cells"]) == ([0, 1, 3, 5], 8)
    values = [r[f"after_{k}"] for r in rows for k in (1, 3, 5)]
    tuned, before = summary["tuned"]["value"], rows[0]["after_0"]
    others = [v for v in values if v != tuned]
    assert summary["mean_drop"] == pytest.approx(np.mean([v - tuned for v in others]))
    assert summary["gain_lost"] == pytest.approx(np.mean([min(1, (v - tuned) / (before - tuned)) for v in others]))
    assert summary["best"]["value"] == min(values)


def test_a_proximal_learner_has_its_meta_gradient_over_lambda_and_solver_steps(folder: Path) -> None:
    """With lambda far above the curvature the system is positive definite, and conjugate gradient solves it; then the
    implicit gradient is that through many inner steps."""
    strong = [
        "algo.prox=400",
        "algo.inner_lr=0.002",
        "algo.inner_steps=30",
        "algo.cg_steps=3",
        "algo.cg_damping=0",
    ]
    run = train(folder / "imaml", "algo=imaml", *strong, *POINTS, "train.steps=1", "device.precision=float64")
    few = ["analysis.tasks=2", "analysis.cg_tasks=2", "analysis.unroll_steps=30", "analysis.cg_steps=[1,20]"]
    lists = ["analysis.strengths=[0.5]", "analysis.rates=[1]", "analysis.steps=[1]"]
    summary, rows, where = analyse(run, "sensitivity", *few, *lists)
    assert sum("after_0" in r for r in rows) == 2
    table = [r for r in rows if "cg_steps" in r]
    assert [(r["prox"], r["cg_steps"]) for r in table] == [(p, k) for p in (200.0, 400.0) for k in (1, 3, 20)]
    for one, three, many in (table[:3], table[3:]):
        assert one["cg_residual"] > three["cg_residual"] > many["cg_residual"]
        assert one["implicit_error"] > many["implicit_error"]
        assert many["cg_negative"] == 0
    last = table[-1]  # with the smaller lambda a minimiser lies at a kink of the ReLU, where no gradient vanishes
    assert last["stationarity"] < 1e-12
    assert last["implicit_error"] < 1e-12
    assert (summary["tuned"]["prox"], summary["tuned"]["cg_steps"]) == (400.0, 3)
    for name in ("cg_residual", "implicit_error"):
        assert (where / f"{name}.png").stat().st_size > 1000


def test_an_accuracy_of_outputs_that_are_no_numbers_is_none() -> None:
    losses, scores = torch.tensor([0.1, torch.inf, torch.nan]), torch.tensor([0.9, 0.2, 0.2])
    assert mask_diverged(losses, scores).isnan().tolist() == [False, True, True]

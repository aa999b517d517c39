"""Episodes of images, on tables whose pixels say which class and which image they are."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from metarun.data.images import ImageEpisodes, ImageTable, make_variants, members_sha256, number_groups
from metarun.errors import SettingError
from metarun.report.statistics.intervals import normal_interval, t_interval
from metarun.types import Batch, EpisodeSpec, Task


class Decoded(NamedTuple):
    """What the pixels of a batch say, each [T, rows]."""

    classes: np.ndarray
    images: np.ndarray
    turns: np.ndarray


def table(counts: list[int]) -> ImageTable:
    """Image i of class c is [[c, i], [0, 255]]: the corner with 255 tells how it was turned."""
    images = [[[[c, i], [0, 255]]] for c, count in enumerate(counts) for i in range(count)]
    counts_C = np.array(counts, dtype=np.intp)
    names = tuple(f"class{c}" for c in range(len(counts)))
    return ImageTable(torch.tensor(images, dtype=torch.uint8), names, np.cumsum(counts_C) - counts_C, counts_C)


def decode(batch: Batch) -> Decoded:
    assert batch.x.dtype == torch.uint8
    pixels = batch.x.numpy().astype(int)
    found = np.full((3, *pixels.shape[:2]), -1)
    for turns in range(4):
        upright = np.rot90(pixels, -turns, axes=(3, 4))[:, :, 0]
        here = (upright[:, :, 1, 1] == 255) & (upright[:, :, 1, 0] == 0)
        found[:2, here] = upright[here][:, 0].T
        found[2, here] = turns
    assert found.min() >= 0
    return Decoded(*found)


def episodes(counts: list[int]) -> ImageEpisodes:
    return ImageEpisodes(table(counts), np.arange(len(counts))[:, None])


def turned_by_task(counts: list[int]) -> ImageEpisodes:
    """Four variants of each class, of which an episode takes one."""
    return ImageEpisodes(table(counts), make_variants(np.arange(len(counts)), len(counts), "task"))


def turned_classes(counts: list[int]) -> ImageEpisodes:
    """Four classes of each class."""
    return ImageEpisodes(table(counts), make_variants(np.arange(len(counts)), len(counts), "classes"))


def draw(data: ImageEpisodes, tasks: int, spec: EpisodeSpec, seed: int = 0) -> Task:
    return data.draw("train", seed, 0, range(tasks), spec)


def assert_equally_often(outcomes: np.ndarray, kinds: int) -> None:
    """Rows [n, ...] take `kinds` values equally often: Pearson's statistic has mean df and variance 2 df; five sd."""
    _, seen = np.unique(outcomes.reshape(len(outcomes), -1), axis=0, return_counts=True)
    assert len(seen) == kinds
    expected = len(outcomes) / kinds
    assert abs(((seen - expected) ** 2 / expected).sum() - (kinds - 1)) < 5 * np.sqrt(2 * (kinds - 1))


def assert_same(a: Task, b: Task) -> None:
    for one, other in zip([*a.support, *a.query], [*b.support, *b.query], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


SPEC = EpisodeSpec(ways=4, shots=3, queries=2)
KINDS = pytest.mark.parametrize("kind", [episodes, turned_by_task])
ALL_KINDS = pytest.mark.parametrize("kind", [episodes, turned_by_task, turned_classes])


def test_shapes_and_types_are_those_of_the_protocol() -> None:
    task = draw(episodes([6] * 7), 5, SPEC)
    assert task.support.x.shape == (5, 12, 1, 2, 2)
    assert task.query.x.shape == (5, 8, 1, 2, 2)
    assert task.support.y.shape == (5, 12)
    assert task.query.y.shape == (5, 8)
    assert task.support.y.dtype == task.query.y.dtype == torch.int64
    assert task.support.x.dtype == task.query.x.dtype == torch.uint8


@ALL_KINDS
def test_support_and_query_never_share_an_image(kind: type) -> None:
    """Five of six images are used, so that drawing the two sets apart would make them meet in nearly all tasks. An
    image turned another way is of another class, and so another image, where rotations are classes."""
    task = draw(kind([6] * 7), 300, SPEC)
    sets = [decode(batch) for batch in task]
    for t in range(300):
        images = [image for s in sets for image in zip(s.classes[t], s.turns[t], s.images[t], strict=True)]
        images = images if kind is turned_classes else [(c, i) for c, _, i in images]
        assert len(set(images)) == SPEC.ways * (SPEC.shots + SPEC.queries)


@ALL_KINDS
def test_row_k_n_plus_n_is_of_class_n_and_has_label_n(kind: type) -> None:
    """Learners may reshape rows to [K, N]; a class has one label, one class and one variant in both sets."""
    task = draw(kind([6] * 7), 100, SPEC)
    support, query = (decode(batch) for batch in task)
    for what in ("classes", "turns"):
        of_class_TN = getattr(support, what)[:, : SPEC.ways]
        np.testing.assert_array_equal(getattr(support, what), np.tile(of_class_TN, SPEC.shots))
        np.testing.assert_array_equal(getattr(query, what), np.tile(of_class_TN, SPEC.queries))
    for batch, each in zip(task, (SPEC.shots, SPEC.queries), strict=True):
        assert (batch.y == torch.arange(SPEC.ways).repeat(each)).all()


@KINDS
def test_classes_of_an_episode_are_distinct(kind: type) -> None:
    """With variants too: two turns of one class never meet."""
    support = decode(draw(kind([6] * 7), 500, SPEC).support)
    assert all(len(set(row[: SPEC.ways])) == SPEC.ways for row in support.classes.tolist())


def test_turned_classes_of_an_episode_are_distinct_and_equally_often_drawn() -> None:
    """3 classes in 4 turns: 12 x 11 ordered pairs, among them those of one class in two turns."""
    spec = EpisodeSpec(ways=2, shots=1, queries=1)
    support = decode(draw(turned_classes([3] * 3), 12_000, spec).support)
    assert_equally_often(support.classes * 4 + support.turns, 12 * 11)


def test_every_image_of_a_class_is_drawn_equally_often_in_each_place() -> None:
    """First support row and last query row: 5 classes of 4 images, 20 equally likely outcomes each."""
    task = draw(episodes([4] * 5), 4000, EpisodeSpec(ways=2, shots=1, queries=2))
    for batch, row in ((task.support, 0), (task.query, -1)):
        drawn = decode(batch)
        assert_equally_often(np.stack([drawn.classes[:, row], drawn.images[:, row]], axis=1), 20)


def test_labels_are_the_order_of_the_draw() -> None:
    """Tasks must be mutually exclusive: a class must not betray its label. 4 x 3 ordered pairs, equally often."""
    support = decode(draw(episodes([3] * 4), 6000, EpisodeSpec(ways=2, shots=1, queries=1)).support)
    assert_equally_often(support.classes, 12)


def test_each_class_of_an_episode_has_a_variant_of_its_own() -> None:
    """Two classes, four turns each: 16 equally likely pairs; one turn per episode would give only 4."""
    support = decode(draw(turned_by_task([3] * 4), 4000, EpisodeSpec(ways=2, shots=1, queries=1)).support)
    assert_equally_often(support.turns, 16)


@pytest.mark.parametrize("rotations", ["none", "task", "classes"])
def test_only_the_classes_of_the_split_are_drawn(rotations: str) -> None:
    data = ImageEpisodes(table([4] * 6), make_variants(np.array([5, 1, 2]), 6, rotations))
    drawn = decode(draw(data, 200, EpisodeSpec(ways=2, shots=1, queries=1)).support)
    assert set(drawn.classes.ravel()) == {1, 2, 5}
    assert set(drawn.turns.ravel()) == ({0} if rotations == "none" else {0, 1, 2, 3})


@ALL_KINDS
def test_classes_with_fewer_images_never_yield_one_that_they_lack(kind: type) -> None:
    """Counts 3, 9, 5, 4: the smallest class must give all it has, the largest must still use all of its nine."""
    counts = [3, 9, 5, 4]
    task = draw(kind(counts), 2000, EpisodeSpec(ways=3, shots=1, queries=2))
    used = {(c, i) for b in map(decode, task) for c, i in zip(b.classes.ravel(), b.images.ravel(), strict=True)}
    assert used == {(c, i) for c, count in enumerate(counts) for i in range(count)}


def test_unequal_classes_are_drawn_equally_often() -> None:
    support = decode(draw(episodes([3, 9, 5, 4]), 4000, EpisodeSpec(ways=2, shots=1, queries=1)).support)
    assert_equally_often(support.classes, 12)


def test_all_images_of_all_classes_can_be_asked_for() -> None:
    spec = EpisodeSpec(ways=3, shots=2, queries=2)
    data = episodes([4] * 3)
    data.check(spec, "train")
    support, query = (decode(batch) for batch in draw(data, 20, spec))
    for t in range(20):
        rows = [*zip(support.classes[t], support.images[t], strict=True)]
        rows += zip(query.classes[t], query.images[t], strict=True)
        assert sorted(rows) == [(c, i) for c in range(3) for i in range(4)]


@ALL_KINDS
def test_an_episode_is_the_same_whichever_tasks_are_drawn_beside_it(kind: type) -> None:
    data = kind([6] * 7)
    whole = data.draw("test", 3, 8, range(10), SPEC)
    assert_same(data.draw("test", 3, 8, range(6, 9), SPEC), Task(*(Batch(b.x[6:9], b.y[6:9]) for b in whole)))


def test_split_seed_step_and_task_each_give_another_episode() -> None:
    """12 rows out of 7 x 30 images: that two of these eight tasks agree by chance has probability below 1e-20."""
    data = episodes([30] * 7)
    places = [("train", 0, 0), ("val", 0, 0), ("train", 1, 0), ("train", 0, 1)]
    drawn = torch.cat([data.draw(split, seed, step, range(2), SPEC).support.x for split, seed, step in places])
    assert len(drawn.flatten(1).unique(dim=0)) == 8


@pytest.mark.parametrize(
    ("spec", "key", "value", "limits"),
    [
        (EpisodeSpec(1, 1, 1), "ways", 1, "2 to 7"),
        (EpisodeSpec(0, 1, 1), "ways", 0, "2 to 7"),
        (EpisodeSpec(8, 1, 1), "ways", 8, "2 to 7"),
        (EpisodeSpec(5, 0, 1), "shots", 0, "at least 1"),
        (EpisodeSpec(5, 6, 1), "shots", 6, "below 6"),
        (EpisodeSpec(5, 2, 5), "queries", 5, "1 to 4"),
        (EpisodeSpec(5, 2, 0), "queries", 0, "1 to 4"),
        (EpisodeSpec(5, 2, -1), "queries", -1, "1 to 4"),
    ],
)
def test_impossible_episodes_are_refused_with_key_value_and_limits(
    spec: EpisodeSpec, key: str, value: int, limits: str
) -> None:
    """Limits are those of the smallest class: 6 images here, and 9 elsewhere."""
    with pytest.raises(SettingError) as caught:
        episodes([9, 9, 6, 9, 9, 9, 9]).check(spec, "val")
    assert (caught.value.key, caught.value.value) == (key, value)
    assert limits in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", [EpisodeSpec(7, 1, 5), EpisodeSpec(2, 5, 1)])
def test_the_largest_possible_episodes_pass_the_check_and_can_be_drawn(spec: EpisodeSpec) -> None:
    data = episodes([9, 9, 6, 9, 9, 9, 9])
    data.check(spec, "val")
    assert draw(data, 2, spec).query.x.shape[:2] == (2, spec.ways * spec.queries)


@pytest.mark.parametrize(("split", "name", "images"), [([0, 1, 3, 4], "class3", 5), ([1, 4, 2, 0], "class2", 3)])
@pytest.mark.parametrize("rotations", ["none", "task", "classes"])
def test_the_smallest_class_of_the_split_sets_the_limit_and_is_named(
    split: list[int], name: str, images: int, rotations: str
) -> None:
    """Not the smallest of the table, which may be of another split; by its own name, however it is turned."""
    data = ImageEpisodes(table([9, 7, 3, 5, 8]), make_variants(np.array(split), 5, rotations))
    assert data.smallest_class() == images
    data.check(EpisodeSpec(2, 1, images - 1), "val")
    with pytest.raises(SettingError, match=f"must be below {images}, the images of class {name}$"):
        data.check(EpisodeSpec(2, images, 1), "val")
    with pytest.raises(SettingError, match=f"must be 1 to {images - 1}: class {name} has {images} images"):
        data.check(EpisodeSpec(2, 1, images), "val")


@pytest.mark.parametrize(("rotations", "classes"), [("none", 3), ("task", 3), ("classes", 12)])
def test_ways_are_limited_by_the_classes_with_their_turns(rotations: str, classes: int) -> None:
    data = ImageEpisodes(table([2] * 3), make_variants(np.arange(3), 3, rotations))
    data.check(EpisodeSpec(classes, 1, 1), "test")
    with pytest.raises(SettingError, match=f"must be 2 to {classes}, the classes of the test split"):
        data.check(EpisodeSpec(classes + 1, 1, 1), "test")


def test_variants_are_one_four_of_a_class_or_four_classes() -> None:
    """Variant c + r C is class c turned r times; C counts the classes of all splits."""
    classes = np.array([4, 0])
    np.testing.assert_array_equal(make_variants(classes, 5, "none"), [[4], [0]])
    np.testing.assert_array_equal(make_variants(classes, 5, "task"), [[4, 9, 14, 19], [0, 5, 10, 15]])
    as_classes = make_variants(classes, 5, "classes")
    assert as_classes.shape == (8, 1)
    assert sorted(as_classes.ravel()) == [0, 4, 5, 9, 10, 14, 15, 19]


def test_rotations_are_those_of_numpy_for_every_image() -> None:
    """Class c + r C is class c turned r times by 90 degrees, counter-clockwise, in each channel."""
    rng = np.random.default_rng(0)
    counts = np.array([2, 4, 3])
    images = rng.integers(0, 256, (9, 3, 5, 5), dtype=np.uint8)
    plain = ImageTable(torch.from_numpy(images.copy()), ("a", "b", "c"), np.array([0, 2, 6]), counts)
    for r in range(4):
        for c in range(3):
            start, count = plain.starts[c], counts[c]
            task = draw(ImageEpisodes(plain, np.array([[c + 3 * r]])), 1, EpisodeSpec(1, count - 1, 1))
            turned = torch.cat([task.support.x[0], task.query.x[0]])
            assert turned.shape == (count, 3, 5, 5)
            assert turned.dtype == torch.uint8
            expected = [np.stack([np.rot90(channel, r) for channel in i]) for i in images[start : start + count]]
            assert sorted(i.tobytes() for i in turned.numpy()) == sorted(i.tobytes() for i in expected)
    np.testing.assert_array_equal(plain.images.numpy(), images)  # turning is done on copies


def test_the_hash_of_a_split_ignores_the_order_of_its_members() -> None:
    one = {"train": ["a", "b", "c"], "test": ["d", "e"]}
    other = {"test": ["e", "d"], "train": ["c", "a", "b"]}
    assert members_sha256(one) == members_sha256(other)
    assert len(members_sha256(one)) == 64


@pytest.mark.parametrize(
    "other",
    [
        {"train": ["a", "b", "c", "d"], "test": ["e"]},
        {"train": ["b", "c", "e"], "test": ["a", "d"]},
        {"train": ["a", "b"], "test": ["d", "e"]},
        {"train": ["a", "b", "x"], "test": ["d", "e"]},
        {"train": ["d", "e"], "test": ["a", "b", "c"]},
        {"train": ["a", "b", "c"], "val": ["d", "e"]},
        {"test": ["a", "b", "c", "d", "e"]},
    ],
    ids=["moved", "exchanged", "lost", "renamed", "swapped", "another part", "all in one"],
)
def test_the_hash_of_a_split_changes_when_its_members_do(other: dict[str, list[str]]) -> None:
    """Also when the members in their order stay the same, and only the border between the parts moves."""
    assert members_sha256(other) != members_sha256({"train": ["a", "b", "c"], "test": ["d", "e"]})
    border = {"train": ["d", "e"], "test": ["a", "b", "c"]}, {"train": ["c", "d", "e"], "test": ["a", "b"]}
    assert members_sha256(border[0]) != members_sha256(border[1])


def test_the_classes_of_an_episode_are_of_one_group_and_all_large_enough_groups_are_drawn() -> None:
    names = [f"{group}/{n}" for group, size in (("a", 5), ("b", 2), ("c", 3)) for n in range(size)]
    groups = number_groups(names)
    data = ImageEpisodes(table([4] * 10), make_variants(np.arange(10), 10, "none"), groups)
    spec = EpisodeSpec(3, 1, 2)
    _, class_TN, _ = data.draw_classes("train", 0, 0, range(400), spec)
    drawn = groups[class_TN]
    assert (drawn == drawn[:, :1]).all()
    counts = np.bincount(drawn[:, 0], minlength=3)
    assert counts[1] == 0  # two classes are too few
    assert abs(counts[0] - 200) < 5 * 10
    assert {tuple(sorted(row)) for row in class_TN[drawn[:, 0] == 0]} == {*itertools.combinations(range(5), 3)}
    with pytest.raises(SettingError, match=r"ways=6: must be 2 to 5, the classes of the largest group of the train"):
        data.check(EpisodeSpec(6, 1, 1), "train")


def test_rotated_classes_stay_in_their_group() -> None:
    names = ["a/0", "a/1", "b/0", "b/1"]
    variants = make_variants(np.arange(4), 4, "classes")
    groups = number_groups([names[i % 4] for i in variants[:, 0]])
    data = ImageEpisodes(table([4] * 4), variants, groups)
    _, class_TN, _ = data.draw_classes("train", 0, 0, range(50), EpisodeSpec(6, 1, 1))
    assert all({*row} <= {0, 1} or {*row} <= {2, 3} for row in class_TN.tolist())


def test_classes_without_a_folder_in_their_names_have_no_groups() -> None:
    with pytest.raises(SettingError, match="these classes have no groups"):
        number_groups(["dog", "cat"])


# ------------------------------------------------------------------------------------------------- disjoint tasks


@pytest.mark.parametrize("kind", [episodes, turned_by_task])
def test_disjoint_tasks_share_no_class_however_they_are_drawn(kind: type) -> None:
    """11 classes make 5 tasks of two; the same tasks one at a time, in another order for another seed."""
    data = replace(kind([4] * 11), disjoint=True)
    spec = EpisodeSpec(ways=2, shots=1, queries=2)
    together = draw(data, 5, spec)
    classes = decode(together.support).classes
    assert len(set(classes.ravel().tolist())) == 10
    single = [data.draw("train", 0, 0, range(i, i + 1), spec) for i in range(5)]
    np.testing.assert_array_equal(np.concatenate([decode(t.support).classes for t in single]), classes)
    assert not np.array_equal(decode(draw(data, 5, spec, seed=1).support).classes, classes)


def test_an_interval_over_disjoint_tasks_is_for_new_classes() -> None:
    """Classes differ by N(0, 1), a task's score is the mean of its five. 300 data sets of 60 classes: Student's
    interval over the 12 disjoint tasks holds the mean of all classes in 95 %, the one over 600 drawn tasks in far
    fewer, for it is an interval for the mean of the data set's own classes, which it holds."""
    spec, sets = EpisodeSpec(ways=5, shots=1, queries=1), 300
    drawn, own, disjoint = [], [], []
    rng = np.random.default_rng(0)
    for seed in range(sets):
        ease, data = rng.normal(size=60), episodes([2] * 60)
        scores = ease[data.draw_classes("test", seed, 0, range(600), spec)[1]].mean(1)
        mean, half = normal_interval(scores)
        drawn.append(abs(mean) <= half)
        own.append(abs(mean - ease.mean()) <= half)
        apart = replace(data, disjoint=True).draw_classes("test", seed, 0, range(12), spec)[1]
        mean, half = t_interval(ease[apart].mean(1))
        disjoint.append(abs(mean) <= half)
    noise = 3 * np.sqrt(0.95 * 0.05 / sets)
    assert np.mean(drawn) < 0.5
    assert np.mean(own) == pytest.approx(0.95, abs=noise)
    assert np.mean(disjoint) == pytest.approx(0.95, abs=noise)

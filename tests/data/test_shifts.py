"""Test tasks unlike those of training: changed images, other classes, episodes within a group."""

from __future__ import annotations

import pytest
import torch
from helpers.alphabets import ALPHABETS, SPEC, alphabets, draw, drawn_classes, same

from metarun.data.shifts import (
    ChangedImages,
    ImageChange,
    ShiftedDataset,
    WithinGroups,
    blur_images,
    group_classes,
    rotate_images,
    with_test_classes,
)
from metarun.errors import SettingError


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("outside", ["zeros", "reflection"])
def test_turning_by_quarters_is_rot90(side: int, outside: str) -> None:
    images = torch.rand(2, 3, side, side, dtype=torch.float64)
    for quarter in (1, 2, 3):
        expected = torch.rot90(images, quarter, (2, 3))
        torch.testing.assert_close(rotate_images(images, 90 * quarter, outside), expected, rtol=0, atol=1e-12)


def test_turning_brings_paper_from_outside_of_a_drawing_and_the_picture_itself_for_photographs() -> None:
    white = torch.ones(1, 1, 20, 20)
    assert float(rotate_images(white, 45, "zeros")[0, 0, 0, 0]) == 0
    torch.testing.assert_close(rotate_images(white, 45, "reflection"), white)


def test_a_turned_spot_lies_where_the_rotation_matrix_puts_it() -> None:
    """A spot 8 pixels to the right of the middle, by 30 degrees counter-clockwise: 8 cos 30 right, 8 sin 30 up."""
    images = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    images[0, 0, 16, 24] = 1.0
    found = rotate_images(images, 30, "zeros")[0, 0]
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
    torch.testing.assert_close(blur_images(spot, 1.5)[0, 0], torch.outer(line, line), rtol=0, atol=1e-9)


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
    shifted = ShiftedDataset(data, ChangedImages(data, data.pixels, ImageChange(rotate=90)))
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
    with pytest.raises(SettingError, match="ways=6: no group of test classes has so many"):
        within.check("test", SPEC._replace(ways=6))


def test_a_data_set_with_other_test_classes_keeps_all_else() -> None:
    data = alphabets()
    chosen = data.source.splits["train"]
    other = with_test_classes(data, chosen)
    assert set(drawn_classes(draw(other)).flatten().tolist()) <= set(chosen.tolist())
    assert same(draw(other, split="train"), draw(data, split="train"))
    assert {g: len(ids) for g, ids in group_classes(data, data.source.splits["test"]).items()} == ALPHABETS["test"]

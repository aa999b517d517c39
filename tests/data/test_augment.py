"""Random changes of training images: each is a function of its place, and is what its name says.

Tolerances of frequencies are five standard deviations at a fixed seed, as in test_draws.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.philox import assert_equally_often, philox4x64
from torch import Tensor

from metarun.compute.random import SPLITS, augmentation_bits, random_bits, uniform
from metarun.data import augment
from metarun.data.augment import BOX_WORDS, WORDS, Augmentation, draw_boxes, resize_boxes
from metarun.data.images import ImageData, ImageTable, Source
from metarun.data.pixels import Pixels
from metarun.data.torchvision import load_torchvision
from metarun.errors import SettingError
from metarun.types import EpisodeSpec, Task

ALL = Augmentation(crop=2, flip=True, jitter=0.4, resized_crop=(0.2, 1.0))
KINDS = pytest.mark.parametrize(
    "change",
    [
        Augmentation(crop=2),
        Augmentation(flip=True),
        Augmentation(jitter=0.4),
        Augmentation(resized_crop=(0.3, 0.9)),
        ALL,
    ],
    ids=str,
)


def images(tasks: int, rows: int, channels: int = 3, height: int = 6, width: int = 5) -> Tensor:
    return torch.rand((tasks, rows, channels, height, width), generator=torch.Generator().manual_seed(0))


def alike(tasks: int, rows: int, channels: int = 1, height: int = 4, width: int = 5) -> Tensor:
    """The same image over and over, in which all numbers differ."""
    return images(1, 1, channels, height, width).repeat(tasks, rows, 1, 1, 1)


def changed(change: Augmentation, x: Tensor, seed: int = 0, step: int = 0, first: int = 0, part: int = 0) -> Tensor:
    return change(x, seed, step, range(first, first + len(x)), part)


# Words


@pytest.mark.parametrize("part", [0, 1, 3])
def test_words_are_the_philox_blocks_that_the_module_documents(part: int) -> None:
    """Key = seed, counter = (block, step, part, 1), by the reference of test_draws.py."""
    seed, step, words = 11, 5, 6
    drawn = augmentation_bits(seed, step, range(2, 5), part, words)
    for row, task in zip(drawn, range(2, 5), strict=True):
        blocks = [philox4x64([2 * task + b + 1, step, part, 1], (seed, 0)) for b in range(2)]
        assert row.tolist() == (blocks[0] + blocks[1])[:words]


def test_words_that_change_images_are_none_of_those_that_draw_episodes() -> None:
    """Of 12000 words of 64 bits two are the same by chance once in 10^11 times."""
    streams = [random_bits(split, 3, 7, range(4), 300) for split in SPLITS]
    streams += [augmentation_bits(3, 7, range(4), part, 300) for part in (0, 1)]
    streams += [random_bits(split, 3, 8, range(4), 300) for split in SPLITS]
    streams += [augmentation_bits(3, 8, range(4), part, 300) for part in (0, 1)]
    assert len(np.unique(np.stack(streams))) == 10 * 4 * 300


# Episodes


def shown(*settings: Any, flat: bool) -> ImageData:
    """Nine classes of five images of 8 x 8; `flat` images have one number, which says which image it is."""
    number = torch.arange(45, dtype=torch.uint8).view(45, 1, 1, 1).expand(45, 1, 8, 8)
    noise = torch.randint(0, 256, (45, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names, counts = tuple("abcdefghi"), np.full(9, 5)
    table = ImageTable((number if flat else noise).contiguous(), names, np.arange(9) * 5, counts)
    splits = {split: np.arange(3) + 3 * i for i, split in enumerate(SPLITS)}
    source = Source(table, splits, "thirds", {}, Path())  # type: ignore[arg-type]
    return ImageData(Pixels(8, 1, "area"), "none", Augmentation(*settings), lambda verify: source)


def episodes(data: ImageData, split: Any = "train", step: int = 0) -> Task:
    return data.episodes(split, 1, step, range(4), EpisodeSpec(3, 2, 2))


def test_switching_it_on_changes_no_episode() -> None:
    """Flat images stay what they are when they are shifted and mirrored."""
    for step in range(5):
        off, on = (episodes(shown(*settings, flat=True), step=step) for settings in ((), (3, True)))
        for a, b in zip(off, on, strict=True):
            assert torch.equal(a.x, b.x)
            assert torch.equal(a.y, b.y)


def test_support_and_query_of_training_are_changed_and_nothing_else() -> None:
    off, on = shown(flat=False), shown(3, True, 0.2, flat=False)
    for a, b in zip(episodes(off), episodes(on), strict=True):
        assert a.x.shape == b.x.shape
        assert not (a.x == b.x).flatten(2).all(-1).any()
    for split in ("val", "test"):
        for a, b in zip(episodes(off, split), episodes(on, split), strict=True):
            assert torch.equal(a.x, b.x)
    assert torch.equal(off.reference_inputs(6), on.reference_inputs(6))


def test_it_is_off_by_default_and_each_setting_switches_it_on() -> None:
    assert not Augmentation().active
    x = images(2, 3)
    assert torch.equal(changed(Augmentation(), x), x)
    for change in (Augmentation(crop=1), Augmentation(flip=True), Augmentation(jitter=0.1)):
        assert change.active
        assert not torch.equal(changed(change, images(2, 30)), images(2, 30))


# Each image by words of its own


@KINDS
def test_an_image_is_changed_alike_whichever_tasks_are_beside_it(change: Augmentation) -> None:
    x = images(7, 5)
    whole = changed(change, x, seed=3, step=9)
    for start, stop in ((0, 1), (2, 5), (6, 7)):
        part = changed(change, x[start:stop], seed=3, step=9, first=start)
        torch.testing.assert_close(part, whole[start:stop], rtol=0, atol=1e-6 if change.jitter else 0)


def test_seed_step_task_part_and_row_each_give_another_change() -> None:
    """One image, changed in 2^4 x 3 places: all differ."""
    places = [(seed, step, first, part) for seed in (0, 1) for step in (0, 1) for first in (0, 1) for part in (0, 1)]
    found = torch.cat([changed(Augmentation(jitter=0.5), alike(1, 3), *place)[0] for place in places])
    assert len(found.flatten(1).unique(dim=0)) == len(places) * 3


@KINDS
def test_the_same_place_gives_the_same_change(change: Augmentation) -> None:
    """A resumed run goes on with the images that an uninterrupted one would have seen."""
    x = images(3, 4)
    first = changed(change, x, 5, 6, 7, 1)
    changed(change, x, 8, 9, 10, 0)
    torch.manual_seed(1)
    assert torch.equal(changed(change, x, 5, 6, 7, 1), first)


@KINDS
@pytest.mark.parametrize("shape", [(1, 1, 1, 8, 8), (2, 3, 3, 6, 5), (3, 2, 1, 5, 9)])
def test_shape_and_type_are_kept_and_the_input_is_not_touched(change: Augmentation, shape: Any) -> None:
    for x in (images(*shape), images(*shape[:3], shape[4], shape[3]).transpose(-1, -2)):
        before = x.clone()
        found = changed(change, x)
        assert found.shape == x.shape
        assert found.dtype == torch.float32
        assert torch.equal(x, before)


# Crop and mirror


def windows(image: np.ndarray, crop: int) -> np.ndarray:
    """[2 crop + 1, 2 crop + 1, C, H, W]: what each offset cuts from the reflected image."""
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (crop, crop), (crop, crop)), mode="reflect")
    offsets = range(2 * crop + 1)
    return np.stack([np.stack([padded[:, r : r + height, c : c + width] for c in offsets]) for r in offsets])


def places(found: Tensor, candidates: np.ndarray) -> np.ndarray:
    """[n, ...]: which one of the candidates each image is; exactly one."""
    flat = found.flatten(0, 1).flatten(1).numpy()
    cut = candidates.shape[: candidates.ndim - 3]
    same = (flat[:, None] == candidates.reshape(-1, flat.shape[1])).all(-1)
    assert (same.sum(1) == 1).all()
    return np.stack(np.unravel_index(same.argmax(1), cut), axis=1)


@pytest.mark.parametrize(("crop", "channels"), [(1, 1), (2, 3), (3, 1)])
def test_a_crop_is_a_window_of_the_reflected_image_at_any_offset_equally_often(crop: int, channels: int) -> None:
    x = alike(40, 100, channels, 5, 6)
    candidates = windows(x[0, 0].numpy(), crop)
    np.testing.assert_array_equal(candidates[crop, crop], x[0, 0].numpy())
    found = places(changed(Augmentation(crop=crop), x), candidates)
    assert_equally_often(found, (2 * crop + 1) ** 2)


def test_every_second_image_is_mirrored() -> None:
    x = alike(100, 100, 3)
    both = np.stack([x[0, 0].numpy(), x[0, 0].numpy()[:, :, ::-1]])
    mirrored = places(changed(Augmentation(flip=True), x), both)[:, 0]
    assert_equally_often(mirrored, 2)
    assert_equally_often(np.stack([mirrored[:-1], mirrored[1:]], axis=1)[::2], 4)  # two rows beside each other


def test_mirror_and_offset_are_independent() -> None:
    x = alike(90, 100)
    image = x[0, 0].numpy()
    candidates = np.stack([windows(image, 1), windows(image[:, :, ::-1], 1)])
    assert_equally_often(places(changed(Augmentation(crop=1, flip=True), x), candidates), 18)


@pytest.mark.parametrize(("word", "place"), [(0, 0), (2**64 - 1, -1)])
def test_the_first_and_the_last_word_cut_at_the_two_ends(
    monkeypatch: pytest.MonkeyPatch, word: int, place: int
) -> None:
    """A long run meets them: one word in 2^25 is so near to 1 that float32 makes it 1, which is no offset. At
    crop 3 the image of 4 rows is padded by all that reflection has."""
    monkeypatch.setattr(augment, "augmentation_bits", lambda *a: np.full((2, 3 * WORDS), word, dtype=np.uint64))
    x = alike(2, 3)
    for crop in (1, 2, 3):
        expected = torch.from_numpy(windows(x[0, 0].numpy(), crop)[place, place])
        assert torch.equal(changed(Augmentation(crop=crop), x), expected.expand(x.shape))


def test_a_place_where_a_word_is_next_to_one_is_passed() -> None:
    """Found by search: the query images of 5 ways and 15 queries at this step of seed 0, four tasks a step."""
    x = torch.zeros(4, 75, 1, 8, 8)
    assert torch.equal(changed(Augmentation(crop=4), x, seed=0, step=9264, part=1), x)


# Colours


def by_hand(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """[C, H, W] in float64, as torchvision's ColorJitter: brighter, away from the mean grey, away from the grey."""

    def grey(colours: np.ndarray) -> np.ndarray:
        return colours if len(colours) == 1 else np.tensordot([0.299, 0.587, 0.114], colours, 1)[None]

    image = (image * brightness).clip(0, 1)
    mean = grey(image).mean()
    image = (mean + contrast * (image - mean)).clip(0, 1)
    return (grey(image) + saturation * (image - grey(image))).clip(0, 1)


@pytest.mark.parametrize("jitter", [0.1, 0.4, 0.99])
@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_is_brightness_contrast_and_saturation_of_each_image(channels: int, jitter: float) -> None:
    tasks, rows = 6, 5
    x = images(tasks, rows, channels)
    found = changed(Augmentation(jitter=jitter), x, 2, 3, 4, 1)
    shares = uniform(augmentation_bits(2, 3, range(4, 10), 1, rows * WORDS), 0, 1).reshape(tasks, rows, WORDS)
    for t in range(tasks):
        for row in range(rows):
            factors = 1 - jitter + 2 * jitter * shares[t, row, 3:]
            expected = by_hand(x[t, row].double().numpy(), *factors)
            np.testing.assert_allclose(found[t, row].numpy(), expected, rtol=0, atol=3e-6)
    assert 0 <= found.min() <= found.max() <= 1


def test_brightness_and_contrast_are_uniform_and_independent() -> None:
    """Read from grey images of two values, far from the ends: 3 x 3 parts of the range, equally often."""
    x = torch.tensor([0.4, 0.6]).repeat(90, 100, 1, 4, 2)
    found = changed(Augmentation(jitter=0.3), x).double().flatten(0, 1).flatten(1)
    brightness = found.mean(1) / 0.5
    contrast = (found.amax(1) - found.amin(1)) / (0.2 * brightness)
    factors = torch.stack([brightness, contrast], 1).numpy()
    assert abs(factors - 1).max() <= 0.3 + 1e-5
    assert_equally_often(((factors - 0.7) / 0.2).astype(int).clip(0, 2), 9)


def test_greys_stay_grey() -> None:
    """Saturation does nothing to a grey image, whether it has one channel or three."""
    grey = images(4, 25, channels=1)
    one, three = (changed(Augmentation(jitter=0.5), x) for x in (grey, grey.repeat(1, 1, 3, 1, 1)))
    torch.testing.assert_close(three, one.expand_as(three), rtol=0, atol=1e-6)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_black_and_white_images_stay_in_the_range(level: float) -> None:
    found = changed(Augmentation(jitter=0.99), torch.full((3, 50, 3, 4, 4), level))
    assert 0 <= found.min() <= found.max() <= 1
    assert level == 1 or found.max() == 0


# Settings


@pytest.mark.parametrize(
    ("key", "value"), [("crop", -1), ("jitter", -0.1), ("jitter", 1.0), ("jitter", 7.0), ("jitter", float("nan"))]
)
def test_settings_that_cannot_work_are_refused_by_their_name(key: str, value: float) -> None:
    with pytest.raises(SettingError, match=f"^{key}=") as caught:
        Augmentation(**{key: value})  # type: ignore[arg-type]
    assert caught.value.key == key
    assert "\n" not in str(caught.value)


def test_a_crop_wider_than_the_image_is_refused() -> None:
    """Reflection has one pixel less than the image."""
    episodes(shown(7, flat=False))
    with pytest.raises(SettingError, match=r"^crop=8: .*image_size=8"):
        shown(8, flat=False)


# Resized crop


def test_boxes_are_distributed_as_those_of_torchvision() -> None:
    """The largest gap of two empirical distributions of n = 20000 is below 0.02 in all but 1 of 10^3 draws (Kolmogorov,
    Smirnov: 1.95 sqrt(2 / n)); both draws are seeded."""
    load_torchvision()
    from torchvision.transforms import v2

    draws = torch.rand(20000, BOX_WORDS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    image = torch.zeros(1, 32, 32)
    for shares in ((0.08, 1.0), (0.5, 1.0), (0.99, 1.0), (0.9999, 1.0)):
        found = draw_boxes(draws, shares, 32, 32).double()
        crop = v2.RandomResizedCrop(32, scale=shares, ratio=(3 / 4, 4 / 3))
        made = [crop.make_params([image]) for _ in range(20000)]
        theirs = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in made]).double()
        for measure in (lambda b: b[:, 0], lambda b: b[:, 1], lambda b: b[:, 2], lambda b: b[:, 3], area, aspect):
            assert largest_gap(measure(found), measure(theirs)) < 0.02


def area(boxes: Tensor) -> Tensor:
    return boxes[:, 2] * boxes[:, 3]


def aspect(boxes: Tensor) -> Tensor:
    return boxes[:, 3] / boxes[:, 2]


def largest_gap(a: Tensor, b: Tensor) -> float:
    """Of the two empirical distributions."""
    points = torch.cat([a, b]).sort().values
    below = [torch.searchsorted(v.sort().values, points, right=True) / len(v) for v in (a, b)]
    return float((below[0] - below[1]).abs().max())


def test_a_box_is_resized_as_torchvision_resizes_it() -> None:
    load_torchvision()
    from torchvision.transforms.v2.functional import resized_crop

    x = images(1, 60, height=11, width=13)[0].double()
    draws = torch.rand(60, BOX_WORDS, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    boxes = draw_boxes(draws, (0.1, 1.0), 11, 13)
    boxes[0] = torch.tensor([0, 0, 11, 13])
    found = resize_boxes(x, boxes)
    for image, box, resized in zip(x, boxes.tolist(), found, strict=True):
        torch.testing.assert_close(resized, resized_crop(image, *box, [11, 13]), rtol=0, atol=1e-12)
    torch.testing.assert_close(found[0], x[0], rtol=0, atol=1e-12)


def test_a_resized_crop_leaves_the_random_numbers_of_other_changes_as_they_are() -> None:
    x = alike(3, 4, 1, 6, 6).mul(0) + 0.5  # of which every box is the same
    for change in (Augmentation(jitter=0.4), Augmentation(crop=1, flip=True, jitter=0.2)):
        both = Augmentation(change.crop, change.flip, change.jitter, (0.3, 0.6))
        torch.testing.assert_close(changed(both, x), changed(change, x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shares", [(0.5,), (0.0, 1.0), (0.6, 0.5), (0.5, 1.1), (0.1, 0.2, 0.3), ()])
def test_shares_that_are_no_range_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(SettingError, match=r"resized_crop=\[.*least, largest"):
        Augmentation(resized_crop=shares)
